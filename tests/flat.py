"""What a process holds, and work after which it should hold the same: for tests and for ``python -m bench.flat``."""

from __future__ import annotations

import gc
import linecache
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

import fastadv as fa
from fastadv.attacks.feature_goals import MatchFeatures
from fastadv.detection import Architecture, Detector, Network, Trajectory, centroids
from fastadv.engine import trace
from fastadv.surrogates import FeatureDropout, SkipGradient, Surrogate

SIZE, STEPS = (8, 8), 25
X, TARGETS = (torch.rand(8, 3, *SIZE, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
#: MiB that resident memory may grow by. Freed memory is handed out again in other pieces; but of a tensor that stayed
#: at each of 10,000 ticks, the Python object and the storage without its numbers take 5 MiB.
MOST_RESIDENT = 4.0
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a process holds.

    Attributes:
        hooks: Of all modules that live, and of all modules at once.
        threads: Of the operating system.
        files: Descriptors: files, sockets, pipes.
        tensors: That Python knows.
        modules: Networks and their parts: a copy that stays is many.
        sources: Texts of generated code, which torch.fx keeps.
    """

    hooks: int
    threads: int
    files: int
    tensors: int
    modules: int
    sources: int

    @classmethod
    def now(cls) -> Held:
        """Behind a collection of garbage."""
        gc.collect()
        everything = gc.get_objects()
        modules = [each for each in everything if issubclass(type(each), nn.Module)]
        own = sum(len(getattr(each, name, ())) for each in modules for name in _HOOKS)
        shared = sum(len(getattr(global_hooks, f"_global{name}")) for name in _HOOKS)
        return cls(
            hooks=own + shared,
            threads=len(os.listdir("/proc/self/task")),
            files=len(os.listdir("/proc/self/fd")),
            tensors=sum(issubclass(type(each), Tensor) for each in everything),
            modules=len(modules),
            sources=sum(name.startswith("<") for name in linecache.cache),
        )

    @classmethod
    def settled(cls, like: Held) -> Held:
        """The same, once threads that have ended have left the system's list: within a second."""
        stop = time.monotonic() + 1
        while (found := cls.now()).threads > like.threads and time.monotonic() < stop:
            time.sleep(0.01)
        return found


def resident() -> float:
    """Resident memory of the process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class DeliberateError(Exception):
    """Fails a run in the middle."""


TICKS = [0]
FAULT: list[type[BaseException]] = []


class Counted(nn.Identity):
    """Counts gradient evaluations, and raises what `FAULT` holds at every tenth."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            TICKS[0] += 1
            if FAULT and TICKS[0] % 10 == 0:
                raise FAULT[0]
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.prelu = nn.Conv2d(6, 6, 3, padding=1), nn.PReLU(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.prelu(self.conv(x))


def small_model() -> fa.FaceModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = (Counted(), nn.Conv2d(3, 6, 3, 2, 1), nn.PReLU(6))
        net = nn.Sequential(*stem, Block(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 6))
    half = (0.5, 0.5, 0.5)
    return fa.FaceModel(net, input_size=SIZE, mean=half, std=half, name="small", layers=("2", "3")).eval()


MODEL = small_model()
GOAL = fa.Impersonate(TARGETS, threshold=0.99999)
PLAIN = fa.attacks.pgd(eps=8 / 255, steps=STEPS)
BRIEF = fa.attacks.pgd(eps=8 / 255, steps=2)
SURROGATE = Surrogate(skip=SkipGradient(gamma=0.5), dropout=FeatureDropout(rate=0.1))


def _jobs(count: int, *, fails_at: int = -1) -> Iterator[fa.Job]:
    for i in range(count):
        if i == fails_at:
            raise DeliberateError
        yield fa.Job(name=str(i), id=i, image=X[i % len(X)], goal=GOAL.row(i % len(X)))


def _ticks(times: int) -> None:
    """One engine whose four slots are always full."""
    for _ in fa.stream_jobs(PLAIN, _jobs(4 * times // STEPS), MODEL, engine=fa.Engine(slots=4, batch=4)):
        pass


def _engines(times: int) -> None:
    """Engines one after the other, with and without a surrogate, of two goals, and the iterates of one."""
    engine, goal, x = fa.Engine(slots=2, batch=2), fa.Impersonate(TARGETS[:3], threshold=0.99999), X[:3]
    kinds: list[Callable[[], object]] = [
        lambda: fa.run(BRIEF, goal, MODEL, x, engine=engine),
        lambda: fa.run(replace(BRIEF, surrogate=SURROGATE), goal, MODEL, x, engine=engine),
        lambda: fa.run(BRIEF, MatchFeatures(guides=TARGETS[:3], layer="3"), MODEL, x, engine=engine),
        lambda: list(trace(BRIEF, goal, MODEL, x, at=[1, 2], engine=engine)),
    ]
    for k in range(times):
        kinds[k % len(kinds)]()


def _left_early(times: int) -> None:
    """Streams and iterates that are closed, or forgotten, after the first result."""
    for k in range(times):
        results = fa.stream_jobs(BRIEF, _jobs(8), MODEL, engine=fa.Engine(slots=2, batch=2))
        next(results)
        if k % 2:
            results.close()  # type: ignore[attr-defined]
        next(trace(BRIEF, GOAL, MODEL, X, at=[1, 2]))


def _failures(times: int) -> None:
    """Errors and interrupts within an evaluation, and of the stream of images."""
    plain = fa.attacks.pgd(eps=8 / 255, steps=5)
    recipes = (plain, replace(plain, surrogate=SURROGATE))
    for k in range(times):
        FAULT[:] = ([DeliberateError], [KeyboardInterrupt], [])[k % 3]
        jobs = _jobs(8, fails_at=-1 if FAULT else 5)
        try:
            list(fa.stream_jobs(recipes[k % 2], jobs, MODEL, engine=fa.Engine(slots=2, batch=2)))
        except (DeliberateError, KeyboardInterrupt):
            continue
        finally:
            FAULT.clear()
        raise AssertionError("expected an error, got none")


def _guard() -> fa.Guard:
    draw, labels = torch.Generator().manual_seed(3), torch.arange(8) % 2
    features = [torch.rand(8, 6, generator=draw) for _ in MODEL.layers]
    kinds = centroids([(features, labels)], layers=MODEL.layers, classes=("ada", "bob"), model="small")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(Architecture(kind="mlp", layers=2, width=2, hidden=6)).eval().requires_grad_(False)
    detector = Detector(trajectory=Trajectory(representatives=kinds, metric="l2"), network=network)
    return fa.Guard(model=MODEL, detector=detector, threshold=0.0)


def _guards(times: int) -> None:
    """Guards, each for one batch."""
    for _ in range(times):
        _guard()(X[:3])


def _verdicts(times: int) -> None:
    """One guard, for batches of every size, and images that it refuses."""
    guard = _guard()
    for k in range(times):
        guard(X[: 1 + k % len(X)])
        try:
            guard(X * 2)
        except ValueError:
            continue
        raise AssertionError("expected an error, got none")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done, how often, and how often before that.

    Much is made at its first use; and memory grows until the heap holds the most garbage that waits for its collection:
    of failures, which leave cycles of frames behind, after about 200.
    """

    do: Callable[[int], None]
    times: int
    before: int

    def held(self, rounds: int = 1) -> tuple[Held, Held, float]:
        """What is held before and after, and MiB of resident memory more."""
        self.do(self.before)
        before, size = Held.now(), resident()
        for _ in range(rounds):
            self.do(self.times)
            gc.collect()  # or more rounds would let more garbage wait, and the heap grow for it
        return before, Held.settled(before), resident() - size


WORKS: Mapping[str, Work] = MappingProxyType(
    {
        "ticks": Work(do=_ticks, times=10_000, before=1000),
        "engines": Work(do=_engines, times=100, before=100),
        "streams left early": Work(do=_left_early, times=100, before=10),
        "failures": Work(do=_failures, times=100, before=200),
        "guards": Work(do=_guards, times=100, before=10),
        "verdicts": Work(do=_verdicts, times=1000, before=100),
    }
)


def measured(name: str, rounds: int) -> dict[str, object]:
    """The row of one work."""
    work, ticks = WORKS[name], TICKS[0]
    before, after, more = work.held(rounds)
    gained = {f"{key}_more": value - asdict(before)[key] for key, value in asdict(after).items()}
    return {"work": name, "times": rounds * work.times, "ticks": TICKS[0] - ticks, **gained, "resident_mib_more": more}
