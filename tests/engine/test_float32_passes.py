"""Each image is evaluated once in float32 where nothing else is asked for; and a run says where its time went."""

import pytest
import torch
from small import curved_model, grey_images, predicted
from torch import nn

import fastadv as fa
from fastadv.core.spent import Spent
from fastadv.engine import Job, stream_jobs

MODEL, X = curved_model(), grey_images(8)
LABELS = predicted(MODEL, X)
GOAL = fa.Misclassify(LABELS)
ENGINE = fa.Engine(batch=4, slots=4)
# its steps are no whole levels, so that rounding changes the image
ATTACK = fa.attacks.pgd(eps=8 / 255, steps=5)


class Watched(nn.Sequential):
    """A network whose calls are counted."""


def watched():
    torch.manual_seed(0)
    size = X[0].numel()
    network = Watched(nn.Flatten(), nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, 10))
    return fa.wrap(network, input_size=tuple(X.shape[2:]))


def without_gradient(engine=ENGINE, known=None):
    """Passes without a gradient that one more image takes: those of a run of eight less those of four.

    The first run checks the network too.
    """
    model, counts = watched(), []
    for count in (4, 4, 8):
        jobs = [
            Job(name=str(i), id=i, image=X[i], goal=GOAL.row(i), known=None if known is None else known[i])
            for i in range(count)
        ]
        seen = []

        def count_in(module, given, seen=seen):
            if isinstance(module, Watched) and not given[0].requires_grad:
                seen.append(len(given[0]))

        hook = nn.modules.module.register_module_forward_pre_hook(count_in)
        try:
            list(stream_jobs(ATTACK, jobs, model, engine=engine))
        finally:
            hook.remove()
        counts.append(sum(seen))
    return (counts[2] - counts[1]) / 4


def test_an_image_passes_once_before_and_once_after_the_attack():
    assert without_gradient() == 2


def test_success_before_rounding_is_one_more_pass():
    assert without_gradient(engine=fa.Engine(batch=4, slots=4, success_float=True)) == 3


def test_what_is_known_of_the_clean_image_is_not_computed_again():
    with torch.no_grad():
        clean = MODEL.logits(X)
        assert without_gradient(known=watched().logits(X)) == 1
    jobs = [Job(name=str(i), id=i, image=X[i], goal=GOAL.row(i)) for i in range(8)]
    told = [Job(name=str(i), id=i, image=X[i], goal=GOAL.row(i), known=clean[i]) for i in range(8)]
    for a, b in zip(stream_jobs(ATTACK, jobs, MODEL), stream_jobs(ATTACK, told, MODEL), strict=True):
        assert torch.equal(a.image, b.image)
        assert (a.success, a.flags) == (b.success, b.flags)
        assert a.score_before == pytest.approx(b.score_before, abs=1e-5)


def test_success_before_rounding_is_there_where_it_is_asked_for():
    plain = fa.run(ATTACK, GOAL, MODEL, X)
    measured = fa.run(ATTACK, GOAL, MODEL, X, engine=fa.Engine(success_float=True))
    assert plain.success_float is None
    assert measured.success_float.shape == (8,)
    assert torch.equal(plain.images, measured.images)


def test_a_run_says_where_its_time_went():
    spent = Spent()
    jobs = (Job(name=str(i), id=i, image=X[i], goal=GOAL.row(i)) for i in range(8))
    list(stream_jobs(ATTACK, jobs, MODEL, engine=ENGINE, spent=spent))
    assert set(spent.seconds) == {"steps", "evaluation", "preparation", "images", "results"}
    assert min(spent.seconds.values()) > 0
    line = spent.line()
    assert line.startswith("time: ")
    shares = [float(part.split()[-2]) for part in line.split(", ")[1:]]
    assert sum(shares) == pytest.approx(100, abs=4)  # each is rounded
