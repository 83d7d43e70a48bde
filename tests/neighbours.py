"""Attacks whose result for an image depends on nothing but the image."""

import torch

from fastadv.engine import Engine, Job, stream_jobs


def assert_alone(attack, goal, model, x, *, seed=0, varied=True, scores=False, last=None) -> None:
    """Slots, order and neighbours change no bit of a result.

    Args:
        attack: A recipe.
        goal: Of all images.
        model: The network.
        x: The images, more than there are slots.
        seed: Of the attack.
        varied: Whether the images must take different numbers of evaluations, as a test of refilled slots needs.
        scores: Whether the scores must be equal to the bit, as they are of networks that compute images alike in any
            batch.
        last: The engine of two images among others; None: one of four slots.
    """
    count = len(x)

    def results(order, engine):
        jobs = [Job(name=str(i), id=i, image=x[i], goal=goal.row(i)) for i in order]
        return {r.name: r for r in stream_jobs(attack, jobs, model, seed=seed, engine=engine)}

    reference = results(range(count), Engine(slots=4, batch=4))
    assert len(reference) == count
    assert len({r.ticks for r in reference.values()}) > 1 or not varied
    for order, engine in (
        (range(count), Engine(slots=12, batch=4)),
        (reversed(range(count)), Engine(slots=8, batch=4, poll=3)),
        ([count - 2, 2], last or Engine(slots=4, batch=4)),
    ):
        for name, result in results(order, engine).items():
            expected = reference[name]
            assert torch.equal(result.image, expected.image)
            assert (result.ticks, result.success) == (expected.ticks, expected.success)
            assert result.score_after == expected.score_after or not scores
