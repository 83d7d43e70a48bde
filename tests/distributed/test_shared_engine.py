"""One engine for several callers: the results of an engine each, without waiting for one another's last images."""

import threading
from collections.abc import Iterator

import pytest
import torch
from small import curved_model, grey_images
from torch import nn

import fastadv as fa
from fastadv.distributed.shared_engine import SharedEngine
from fastadv.engine import Engine, Job, stream_jobs

X = grey_images(24)
ATTACK = fa.attacks.pgd(eps=40 / 255, steps=30, step_size=1 / 255, stop_at_success=True)
ENGINE = Engine(slots=4, batch=4)


def jobs(first: int, last: int) -> list[Job]:
    return [
        Job(name=f"face {k % 6}", id=k, image=X[k], goal=fa.Misclassify(torch.tensor([k % 6])))
        for k in range(first, last)
    ]


class Counted(nn.Module):
    """A network that counts its evaluations, also in copies."""

    seen = 0

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Counted.seen += x.requires_grad
        return self.net(x)


def counted() -> fa.FaceModel:
    made = curved_model()
    made.backbone = Counted(made.backbone).eval()
    Counted.seen = 0
    return made


def shared(engine: SharedEngine, parts: list[list[Job]]) -> list[dict]:
    """What callers in threads of their own get, all there before the first job is drawn."""
    ready, found = threading.Barrier(len(parts) + 1), [{} for _ in parts]

    def held(part: list[Job]) -> Iterator[Job]:
        begin.wait(60)
        yield from part

    def call(k: int) -> None:
        ready.wait(60)
        found[k].update(engine.results(held(parts[k])))

    begin = threading.Event()
    threads = [threading.Thread(target=call, args=(k,)) for k in range(len(parts))]
    for thread in threads:
        thread.start()
    ready.wait(60)
    threading.Event().wait(0.2)  # the callers are in the queue
    begin.set()
    for thread in threads:
        thread.join(60)
    return found


def test_callers_get_their_own_results_in_slots_that_stay_full():
    parts = [jobs(0, 6), jobs(6, 12), jobs(12, 18), jobs(18, 24)]
    net = counted()
    apart = [{r.id: r for r in stream_jobs(ATTACK, part, net, seed=1, engine=ENGINE)} for part in parts]
    evaluations, Counted.seen = Counted.seen, 0
    with SharedEngine(ATTACK, net, seed=1, engine=ENGINE) as engine:
        found = shared(engine, parts)
    assert Counted.seen < evaluations  # nobody waits for the last images of another
    for part, expected, got in zip(parts, apart, found, strict=True):
        assert sorted(got) == list(range(len(part)))
        for place, job in enumerate(part):
            assert (got[place].name, got[place].id) == (job.name, job.id)
            assert type(got[place].name) is str
            assert torch.equal(got[place].image, expected[job.id].image)
            assert got[place].ticks == expected[job.id].ticks


def test_an_engine_waits_and_goes_on():
    with SharedEngine(ATTACK, curved_model(), seed=1, engine=ENGINE) as engine:
        for part in (jobs(0, 3), [], jobs(3, 4)):
            assert sorted(place for place, _ in engine.results(iter(part))) == list(range(len(part)))


def test_an_error_of_one_callers_jobs_is_its_own():
    def broken() -> Iterator[Job]:
        yield from jobs(0, 2)
        raise fa.Error("image 2: expected a picture, got noise")

    with SharedEngine(ATTACK, curved_model(), seed=1, engine=ENGINE) as engine:
        with pytest.raises(fa.Error, match="expected a picture, got noise"):
            list(engine.results(broken()))
        assert len(list(engine.results(iter(jobs(0, 5))))) == 5


def test_an_error_of_the_engine_is_everybodys():
    wrong = Job(name="wrong", id=1, image=torch.zeros(3, 2, 2), goal=fa.Misclassify(torch.tensor([0])))
    engine = SharedEngine(ATTACK, curved_model(), seed=1, engine=ENGINE)
    for part in ([wrong], jobs(0, 2)):
        with pytest.raises(ValueError, match="image 'wrong': expected float32 of shape"):
            list(engine.results(iter(part)))


def test_the_jobs_of_a_caller_that_is_gone_are_not_drawn():
    drawn = []

    def endless() -> Iterator[Job]:
        while True:
            drawn.append(1)
            yield from jobs(0, 1)

    with SharedEngine(ATTACK, curved_model(), seed=1, engine=ENGINE) as engine:
        call = engine.results(endless())
        next(call)
        call.close()
        assert len(list(engine.results(iter(jobs(0, 5))))) == 5
        before = len(drawn)
        assert len(list(engine.results(iter(jobs(0, 5))))) == 5
        assert len(drawn) == before
