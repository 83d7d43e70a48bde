"""``Engine(overlap=True)``: the host works while the device computes, with the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small import curved_model, grey_images, predicted
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import Engine, Job, stream_jobs

COUNT, BATCH = 13, 4
MODEL, X = curved_model(), grey_images(COUNT)
LABELS = predicted(MODEL, X)
GOAL = fa.Misclassify(LABELS)
ATTACKS = {
    "fixed": fa.attacks.pgd(eps=4 / 255, steps=5),
    "stop": fa.attacks.pgd(eps=32 / 255, step_size=1 / 255, steps=40, stop_at_success=True),
    "one": fa.attacks.fgsm(eps=8 / 255),
    "minimal": fa.attacks.deepfool(steps=8),
}


class Counting(nn.Module):
    """Tells of every evaluation with a gradient."""

    def __init__(self, network: nn.Module, tell: Callable[[str], Any]) -> None:
        super().__init__()
        self.network, self.tell = network, tell

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.tell("evaluation")
        return self.network(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> Counting:
        return self


def told(tell: Callable[[str], Any]) -> fa.FaceModel:
    backbone = Counting(copy.deepcopy(MODEL.backbone), tell)
    return fa.FaceModel(
        backbone, input_size=MODEL.input_size, mean=(0.5,) * 3, std=(0.5,) * 3, name="told", head=MODEL.head
    ).eval()


def jobs(tell: Callable[[str], Any] = lambda _: None) -> Iterator[Job]:
    for i in range(COUNT):
        tell("image")
        yield Job(name=str(i), id=i, image=X[i], goal=GOAL.row(i))


@pytest.mark.parametrize("poll", [1, 3])
@pytest.mark.parametrize("slots", [BATCH, 3 * BATCH, 5 * BATCH])
@pytest.mark.parametrize("name", ATTACKS)
def test_overlap_changes_no_result(name, slots, poll):
    expected = fa.run(ATTACKS[name], GOAL, MODEL, X, engine=Engine(slots=BATCH, batch=BATCH))
    engine = Engine(slots=slots, batch=BATCH, poll=poll, overlap=True)
    got = fa.run(ATTACKS[name], GOAL, MODEL, X, engine=engine)
    for field in ("images", "success", "ticks", "linf", "l2", "score_before", "score_after"):
        assert torch.equal(getattr(got, field), getattr(expected, field)), field
    assert got.flags == expected.flags


@pytest.mark.parametrize("name", ATTACKS)
def test_overlap_evaluates_at_most_one_batch_more_for_each_that_finishes_early(name):
    counts = []
    for overlap in (False, True):
        seen: list[str] = []
        engine = Engine(slots=BATCH, batch=BATCH, overlap=overlap)
        assert len(list(stream_jobs(ATTACKS[name], jobs(), told(seen.append), engine=engine))) == COUNT
        counts.append(len(seen))
    plain, overlapped = counts
    if name in ("fixed", "one"):  # the host knows when they are done
        assert overlapped == plain
    assert plain <= overlapped <= plain + COUNT


def test_images_are_read_and_results_given_while_ticks_are_under_way():
    events: list[str] = []
    engine = Engine(slots=BATCH, batch=BATCH, overlap=True)
    for _ in stream_jobs(ATTACKS["fixed"], jobs(events.append), told(events.append), engine=engine):
        events.append("result")
    assert events[: events.index("evaluation")].count("image") >= 2 * BATCH  # the next batch is ready before
    first = events.index("result")
    assert events[:first].count("evaluation") == ATTACKS["fixed"].steps + 1  # the next batch's first tick goes before
    assert events.count("result") == COUNT


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fixed", "stop"])
def test_on_cuda_the_host_never_waits_for_the_whole_device(name):
    """It waits for events of its own copies alone: ``set_sync_debug_mode`` makes everything else an error."""
    model = curved_model().cuda()
    expected = fa.run(ATTACKS[name], GOAL, model, X, engine=Engine(slots=BATCH, batch=BATCH, overlap=False))
    stream = stream_jobs(ATTACKS[name], jobs(), model, engine=Engine(slots=BATCH, batch=BATCH))
    found = {(first := next(stream)).name: first}  # recording the tick may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found |= {r.name: r for r in stream}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(found[str(i)].image, expected.images[i]) for i in range(COUNT))
