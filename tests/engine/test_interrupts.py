"""Ctrl-C within a gradient evaluation: modes, hooks, model and settings are as before, and so are the next bits."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import fastadv as fa
from fastadv import attacks
from fastadv.attacks import Impersonate
from fastadv.attacks.feature_goals import MatchFeatures
from fastadv.engine import Engine, trace
from fastadv.surrogates import FeatureDropout, SkipGradient, Surrogate

SIZE = (16, 16)
X, TARGETS = (torch.rand(5, 3, *SIZE, generator=torch.Generator().manual_seed(k)) for k in (1, 2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.prelu = nn.Conv2d(8, 8, 3, padding=1), nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.prelu(self.conv(x))


def interrupt() -> None:
    raise KeyboardInterrupt


LEFT: list[int] = []  # evaluations until the interrupt; empty for none
BY: list[Callable[[], None]] = [interrupt]


class Pressed(nn.Identity):
    """Ctrl-C at the evaluation that `LEFT` counts down to."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and LEFT:
            LEFT[0] -= 1
            if not LEFT[0]:
                LEFT.clear()
                BY[0]()
        return x


def model() -> fa.FaceModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start, end = (nn.Conv2d(3, 8, 3, 2, 1), nn.PReLU(8)), (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6))
        net = nn.Sequential(*start, Pressed(), Block(), *end)
    half = (0.5, 0.5, 0.5)
    return fa.FaceModel(net, input_size=SIZE, mean=half, std=half, name="small", layers=("3",)).eval()


NET = model()
GOAL = Impersonate(TARGETS, threshold=0.9999)
ENGINE = Engine(slots=2, batch=2)
CALLS: dict[str, Callable[[], Tensor]] = {
    "run": lambda: fa.run(attacks.pgd(steps=3), GOAL, NET, X, seed=3, engine=ENGINE).images,
    "surrogate": lambda: (
        fa.run(
            replace(
                attacks.pgd(steps=3),
                surrogate=Surrogate(skip=SkipGradient(gamma=0.5), dropout=FeatureDropout(rate=0.1)),
            ),
            *(GOAL, NET, X),
            engine=ENGINE,
        ).images
    ),
    "layer": lambda: (
        fa.run(attacks.pgd(steps=3), MatchFeatures(guides=TARGETS, layer="3"), NET, X, engine=ENGINE).images
    ),
    "trace": lambda: dict(trace(attacks.pgd(steps=3), GOAL, NET, X, at=[3], engine=ENGINE))[3],
}


def state() -> tuple[object, ...]:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in NET.modules())
    products = [p.fp32_precision for p in (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)]
    return (
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        *(torch.get_default_dtype(), torch.get_default_device(), torch.get_float32_matmul_precision()),
        *(products, hooks, [m.training for m in NET.modules()], torch.get_rng_state().sum().item()),
        *(threading.active_count(), [p.requires_grad and p.grad is None for p in NET.parameters()]),
        sum(value.double().sum().item() for value in NET.state_dict().values()),
    )


@contextlib.contextmanager
def several() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("mode", [contextlib.nullcontext, several])
@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_at_any_evaluation(call, mode):
    expected = CALLS[call]()
    with mode():
        before = state()
        for evaluation, how in ((1, interrupt), (4, lambda: signal.raise_signal(signal.SIGINT))):
            LEFT[:], BY[0] = [evaluation], how
            with pytest.raises(KeyboardInterrupt):
                CALLS[call]()
            assert state() == before
            assert torch.equal(CALLS[call](), expected)


def test_a_stream_that_was_interrupted_has_ended():
    jobs = [fa.Job(name=str(i), id=i, image=X[i], goal=GOAL.row(i)) for i in range(5)]
    results = fa.stream_jobs(attacks.pgd(steps=3), jobs, NET, engine=ENGINE)
    kept = [next(results)]
    LEFT[:] = [2]
    BY[0] = interrupt
    with pytest.raises(KeyboardInterrupt):
        kept.extend(results)
    assert list(results) == []
    whole = {r.name: r.image for r in fa.stream_jobs(attacks.pgd(steps=3), jobs, NET, engine=ENGINE)}
    assert all(torch.equal(r.image, whole[r.name]) for r in kept)  # and what came is final


# Python drops an interrupt that comes within a callback of a weak reference or a finaliser: nobody can pass it on
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this platform has no interval timer")
def test_interrupts_at_any_time(rounds: int) -> None:
    """Ten, times `FASTADV_ROUNDS`, at random moments of a run: the next has its bits, and leaves all as it was."""
    expected, draw = CALLS["surrogate"](), random.Random(0)
    began = time.perf_counter()
    CALLS["surrogate"]()
    duration = time.perf_counter() - began
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted, tried = 0, 0
    try:
        torch.set_default_dtype(torch.float64)
        was = state()
        while interrupted < 10 * rounds:  # a run may end before its interrupt comes, however fast the machine is
            tried += 1
            assert tried <= 200 * rounds
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-4, duration))
                CALLS["surrogate"]()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
                torch.set_grad_enabled(True)  # PyTorch's own no_grad may be interrupted before it can leave
            assert torch.equal(CALLS["surrogate"](), expected)
            assert state() == was
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.set_default_dtype(torch.float32)
