"""Memory that runs out: fewer slots and the same results, wherever it happens, until one image is too much."""

from __future__ import annotations

import functools
import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import fastadv as fa
from fastadv import attacks
from fastadv.attacks import Evaluation, Impersonate, SignGradient, SlotState
from fastadv.engine import Engine, Job, stream_jobs, trace
from fastadv.engine.settings import AttackWarning

SIZE = (8, 8)
X, TARGETS = (torch.rand(11, 3, *SIZE, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
GOAL = Impersonate(TARGETS, threshold=0.9999)
ATTACK = attacks.pgd(eps=16 / 255, steps=3)

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError(),
    "c++": RuntimeError("std::bad_alloc"),
    "onednn": RuntimeError("could not create a primitive"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


class Limited(nn.Module):
    """Fails with more than `most` images, from the `since`-th gradient on."""

    def __init__(self, most: int, *, since: int = 0, error: BaseException = ERRORS["cuda"]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.PReLU(6), nn.Flatten(), nn.Linear(54, 8))
        self.most, self.since, self.error, self.seen = [most], since, error, [0]

    def __deepcopy__(self, memo: dict) -> Limited:
        return self  # so that the copies that are attacked count together

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.seen[0] += 1
            if len(x) > self.most[0] and self.seen[0] > self.since:
                raise self.error
        return self.net(x)


def model(net: nn.Module) -> fa.FaceModel:
    return fa.FaceModel(net, input_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, name="small").eval()


def jobs() -> list[Job]:
    return [Job(name=str(i), id=i, image=X[i], goal=GOAL.row(i)) for i in range(len(X))]


@functools.cache
def expected(batch: int) -> Tensor:
    return fa.run(ATTACK, GOAL, model(Limited(64)), X, seed=3, engine=Engine(batch=batch)).images


@pytest.mark.parametrize("error", ERRORS)
def test_every_librarys_word_for_it_is_understood(error):
    net = model(Limited(4, error=ERRORS[error]))
    with pytest.warns(AttackWarning, match="out of memory with 8 slots in batches of 8; going on with 4"):
        made = fa.run(ATTACK, GOAL, net, X, seed=3, engine=Engine(batch=8))
    assert torch.equal(made.images, expected(4))


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("since", [0, 1, 4, 7])
def test_at_any_tick_what_was_in_flight_starts_again(since, overlap):
    engine = Engine(batch=4, overlap=overlap)
    with pytest.warns(AttackWarning, match="out of memory"):
        results = list(stream_jobs(ATTACK, jobs(), model(Limited(1, since=since)), seed=3, engine=engine))
    assert sorted(int(r.name) for r in results) == list(range(len(X)))
    wanted = {batch: expected(batch) for batch in {r.batch for r in results}}
    for r in results:
        assert torch.equal(r.image, wanted[r.batch][int(r.name)])
    assert 1 in wanted


@dataclass(frozen=True, kw_only=True)
class Scarce(SignGradient):
    """Memory runs out at a named moment, as often as `times` says, whatever the number of slots."""

    when: str = "allocate"
    times: tuple[int, ...] = (1, 2)

    def _meet(self, when: str) -> None:
        if when == self.when:
            COUNT[0] += 1
            if COUNT[0] in self.times:
                raise torch.OutOfMemoryError("no more")

    def allocate(self, like: Tensor) -> SlotState:
        self._meet("allocate")
        return super().allocate(like)

    def start(self, state: SlotState, *args, **kwargs) -> None:
        self._meet("start")
        super().start(state, *args, **kwargs)

    def tick(self, state: SlotState, evaluation: Evaluation) -> None:
        self._meet("tick")
        super().tick(state, evaluation)


COUNT = [0]
FIELDS = {name: getattr(ATTACK.attack, name) for name in ("budget", "steps", "step_size", "random_start")}


@pytest.mark.parametrize(
    ("when", "times"),
    [
        ("allocate", (1,)),  # the first build
        ("allocate", (1, 2)),  # and the one after it
        ("start", (2,)),
        ("tick", (2, 4)),
    ],
)
def test_each_failure_halves_once(when, times):
    COUNT[0] = 0
    attack = fa.Recipe(Scarce(**FIELDS, when=when, times=times))
    with pytest.warns(AttackWarning, match="out of memory") as said:
        made = fa.run(attack, GOAL, model(Limited(64)), X, seed=3, engine=Engine(batch=8))
    assert len([w for w in said if "out of memory" in str(w.message)]) == len(times)
    assert torch.equal(made.images, expected(8 >> len(times)))


def test_a_build_that_fails_after_a_tick_that_failed_is_tried_again():
    COUNT[0] = 0
    attack = fa.Recipe(Scarce(**FIELDS, when="allocate", times=(2, 3)))
    with pytest.warns(AttackWarning, match="out of memory"):
        made = fa.run(attack, GOAL, model(Limited(4)), X, seed=3, engine=Engine(batch=8))
    assert torch.equal(made.images, expected(1))


@pytest.mark.parametrize("when", ["allocate", "start", "tick"])
def test_no_memory_for_one_image_is_an_error_in_a_run_and_in_a_trace(when):
    attack = fa.Recipe(Scarce(**FIELDS, when=when, times=tuple(range(1000))))
    for call in (
        lambda: fa.run(attack, GOAL, model(Limited(64)), X, engine=Engine(batch=2)),
        lambda: list(trace(attack, GOAL, model(Limited(64)), X, at=[1], engine=Engine(batch=2))),
    ):
        with (
            pytest.warns(AttackWarning),
            pytest.raises(fa.Error, match="not enough memory for a single image") as error,
        ):
            call()
        assert isinstance(error.value, torch.OutOfMemoryError)


def test_the_old_slots_are_gone_before_the_new_ones_are_built():
    alive: list[weakref.ref] = []

    class Watching(Scarce):
        def allocate(self, like: Tensor) -> SlotState:
            assert [ref() for ref in alive] == [None] * len(alive)
            state = super().allocate(like)
            alive.append(weakref.ref(state.trial))
            return state

    COUNT[0] = 0
    gc.disable()
    try:
        with pytest.warns(AttackWarning, match="out of memory"):
            fa.run(
                fa.Recipe(Watching(**FIELDS, when="tick", times=(1, 3))),
                GOAL,
                model(Limited(64)),
                X,
                engine=Engine(batch=8),
            )
    finally:
        gc.enable()
    assert len(alive) == 3


@pytest.mark.parametrize("since", [0, 2])
def test_a_trace_goes_on_group_by_group(since):
    at = (1, 2, 3)
    whole = dict(trace(ATTACK, GOAL, model(Limited(64)), X, at=at, seed=3, engine=Engine(batch=4)))
    with pytest.warns(AttackWarning, match="out of memory"):
        made = dict(trace(ATTACK, GOAL, model(Limited(4, since=since)), X, at=at, seed=3, engine=Engine(batch=16)))
    assert list(made) == [1, 2, 3]
    for step in at[since:]:  # what came before memory ran out is of the larger batch
        assert torch.equal(made[step], whole[step])


def test_an_error_of_the_callers_own_stream_is_the_callers():
    def reading():
        yield from jobs()[:5]
        raise MemoryError("a file too large")

    with pytest.raises(MemoryError, match="a file too large"):
        list(stream_jobs(ATTACK, reading(), model(Limited(64)), engine=Engine(batch=2)))


def test_a_model_of_which_there_is_no_room_for_a_copy():
    class Huge(nn.Module):
        def __deepcopy__(self, memo: dict) -> Huge:
            raise ERRORS["cpu"]

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    with pytest.raises(fa.Error, match="model: expected one with room for a copy of it on cpu, got 'small'"):
        fa.run(ATTACK, GOAL, model(Huge()), X)


@pytest.mark.parametrize("most", [1, 8])
def test_a_measured_batch_and_precision_where_memory_is_short(most):
    net = Limited(most, error=ERRORS["cpu"])
    resolved = Engine(batch=0, precision="auto").resolve(model(net))
    assert resolved.batch == 8
    assert resolved.precision in ("fp32", "bf16")
