"""A stream that has no job at the moment holds nothing back."""

import pytest
import torch
from small import curved_model, grey_images

import fastadv as fa
from fastadv.engine import Engine, Job, stream_jobs

NET, X = curved_model(), grey_images(7)
ATTACK = fa.attacks.pgd(eps=40 / 255, steps=9, stop_at_success=True)
JOBS = [Job(name=str(k), id=k, image=X[k], goal=fa.Misclassify(torch.tensor([k % 6]))) for k in range(7)]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("parts", [(7,), (1, 6), (3, 4), (2, 2, 1, 2)])
def test_results_come_before_the_stream_is_asked_for_more(parts, overlap):
    engine = Engine(slots=4, batch=2, overlap=overlap)
    found = {}

    def pausing():
        asked, given = 0, 0
        for part in parts:
            while len(found) < given:
                asked += 1
                assert asked < 10_000, "results are held back"
                yield None
            yield from JOBS[given : given + part]
            given += part

    for result in stream_jobs(ATTACK, pausing(), NET, seed=3, engine=engine):
        found[result.name] = result
    expected = {result.name: result for result in stream_jobs(ATTACK, JOBS, NET, seed=3, engine=engine)}
    assert found.keys() == expected.keys()
    for name, result in found.items():
        assert torch.equal(result.image, expected[name].image)
        assert (result.ticks, result.success) == (expected[name].ticks, expected[name].success)
