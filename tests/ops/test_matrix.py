"""Every backend gives the bits of the reference, on every case."""

import importlib.util
from dataclasses import fields

import pytest
import torch

from fastadv import _native, backends, ops
from fastadv.ops import _define
from fastadv.testing.cases import STEP_CASES, StepCase, StepInputs
from fastadv.testing.tolerances import assert_same_bits

MOMENTUM = [("l1", "sign"), ("l2", "sign"), ("l1", "l2"), ("l2", "l2")]

BACKENDS = [
    *(pytest.param("cpu", isa, "cpu", id=f"cpu-{isa}") for isa in ("baseline", "avx2", "avx512")),
    pytest.param("triton", "", "cpu", id="triton-interpreted"),
    pytest.param("reference", "", "cuda", id="reference-gpu", marks=pytest.mark.gpu),
    pytest.param("cuda", "", "cuda", id="cuda-gpu", marks=pytest.mark.gpu),
    pytest.param("triton", "", "cuda", id="triton-gpu", marks=pytest.mark.gpu),
]


@pytest.fixture
def use_isa(monkeypatch):
    def choose(isa):
        if isa and isa not in _native.cpu_isas():
            pytest.skip(f"this processor does not run {isa}")
        if isa:
            monkeypatch.setenv("FASTADV_CPU_ISA", isa)
        backends.cpu_isa.cache_clear()

    yield choose
    monkeypatch.undo()
    backends.cpu_isa.cache_clear()


def ready(backend: str, isa: str, device: str, use_isa) -> None:
    if backend == "triton" and device == "cpu":
        if importlib.util.find_spec("triton") is None:
            pytest.skip("triton is not installed")
        if not backends.interpreted():
            pytest.skip("the interpreter is off where there is a GPU")
    use_isa(isa)


def compare(actual: StepInputs, expected: StepInputs) -> None:
    for f in fields(expected):
        value = getattr(expected, f.name)
        if isinstance(value, torch.Tensor):
            assert_same_bits(getattr(actual, f.name), value, f.name)


def sign(inputs: StepInputs, backend: str) -> None:
    i = inputs
    out = ops.sign_step_(
        i.x, i.grad, i.origin, alpha=i.alpha, eps=i.eps, active=i.active, stats=i.stats, backend=backend
    )
    assert out is i.x


def momentum(inputs: StepInputs, backend: str, norm: str, step: str) -> None:
    i = inputs
    scratch = ops.momentum_workspace(i.x).fill_(float("nan"))
    out = ops.momentum_step_(
        *(i.x, i.grad, i.origin, i.velocity),
        **{"alpha": i.alpha, "eps": i.eps, "mu": 0.9, "norm": norm, "step": step},
        **{"active": i.active, "stats": i.stats, "workspace": scratch, "backend": backend},
    )
    assert out is i.x


@pytest.mark.parametrize(("backend", "isa", "device"), BACKENDS)
@pytest.mark.parametrize("case", STEP_CASES, ids=lambda case: case.name)
def test_sign_step_matches_the_reference(case, backend, isa, device, use_isa):
    ready(backend, isa, device, use_isa)
    expected, actual = case.make(), case.make(device)
    for _ in range(2):
        sign(expected, "reference")
        sign(actual, backend)
    compare(actual, expected)


@pytest.mark.parametrize(("backend", "isa", "device"), BACKENDS)
@pytest.mark.parametrize(("norm", "step"), MOMENTUM)
@pytest.mark.parametrize("case", STEP_CASES, ids=lambda case: case.name)
def test_momentum_step_matches_the_reference(case, norm, step, backend, isa, device, use_isa):
    ready(backend, isa, device, use_isa)
    expected, actual = case.make(), case.make(device)
    for _ in range(2):
        momentum(expected, "reference", norm, step)
        momentum(actual, backend, norm, step)
    compare(actual, expected)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_number_of_threads_changes_no_bit(threads):
    case = StepCase(shape=(4, 3, 113, 127), special=True)
    before = torch.get_num_threads()
    expected, actual = case.make(), case.make()
    try:
        torch.set_num_threads(1)
        momentum(expected, "cpu", "l2", "l2")
        torch.set_num_threads(threads)
        momentum(actual, "cpu", "l2", "l2")
    finally:
        torch.set_num_threads(before)
    compare(actual, expected)


def test_images_larger_than_the_partial_sums(use_isa):
    case = StepCase(shape=(1, 3, 1200, 1200), special=True)  # more chunks than an image may have
    expected, actual = case.make(), case.make()
    momentum(expected, "reference", "l2", "sign")
    momentum(actual, "cpu", "l2", "sign")
    compare(actual, expected)


def test_every_operation_has_every_backend():
    assert set(_define.IMPLEMENTATIONS) == set(backends.STEMS)
    for op, implementations in _define.IMPLEMENTATIONS.items():
        assert tuple(implementations) == backends.NAMES, op
        stem = backends.STEMS[op]
        assert importlib.util.find_spec(f"fastadv.ops.reference.{stem}")
        assert importlib.util.find_spec(f"fastadv.kernels.triton.{stem}")
        assert _native.has(f"cpu_{stem}")
        assert _native.has(f"cuda_{stem}") == bool(_native.cuda_architectures())
