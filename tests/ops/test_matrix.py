"""Every backend gives the bits of the reference, on every case."""

import importlib.util
from dataclasses import fields

import pytest
import torch

from fastadv import _native, backends, ops
from fastadv.ops.declaration import OPERATIONS
from fastadv.testing.cases import STEP_CASES, StepCase, StepInputs
from fastadv.testing.tolerances import assert_same_bits

MOMENTUM = [("l1", "sign"), ("l2", "sign"), ("l1", "l2"), ("l2", "l2")]


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


@pytest.mark.parametrize("case", STEP_CASES, ids=lambda case: case.name)
def test_sign_step_matches_the_reference(case, target):
    expected, actual = case.make(), case.make(target.device)
    for _ in range(2):
        sign(expected, "reference")
        sign(actual, target.backend)
    compare(actual, expected)


@pytest.mark.parametrize(("norm", "step"), MOMENTUM)
@pytest.mark.parametrize("case", STEP_CASES, ids=lambda case: case.name)
def test_momentum_step_matches_the_reference(case, norm, step, target):
    expected, actual = case.make(), case.make(target.device)
    for _ in range(2):
        momentum(expected, "reference", norm, step)
        momentum(actual, target.backend, norm, step)
    compare(actual, expected)


@pytest.mark.parametrize(("norm", "step"), MOMENTUM)
def test_counting_changes_no_bit(norm, step, target):
    case = StepCase(shape=(3, 3, 27, 29), special=True)
    counted, plain = case.make(target.device), case.make(target.device)
    for i, stats in ((counted, counted.stats), (plain, None)):
        options = {"alpha": i.alpha, "eps": i.eps, "mu": 0.9, "norm": norm, "step": step, "stats": stats}
        ops.momentum_step_(i.x, i.grad, i.origin, i.velocity, **options, backend=target.backend)
    assert_same_bits(plain.x, counted.x)
    assert_same_bits(plain.velocity, counted.velocity)


# NumPy, in which Triton's interpreter computes, warns where infinity meets zero.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("alpha", [0.0, -0.01, float("inf")])
def test_signs_of_zeros_and_odd_steps(alpha, target):
    values = torch.tensor([0.0, -0.0, 1e-42, -1e-42, 0.5, -0.5, float("nan")])
    x, grad = (value.reshape(1, 49) for value in torch.meshgrid(values, values, indexing="ij"))
    made = []
    for device, backend in (("cpu", "reference"), (target.device, target.backend)):
        moved = x.to(device, copy=True)
        origin, each = x.to(device, copy=True), torch.tensor([alpha], device=device)
        ops.sign_step_(moved, grad.to(device), origin, alpha=each, eps=1.0, lo=-1, backend=backend)
        made.append(moved)
    assert_same_bits(made[1], made[0])


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


def test_images_larger_than_the_partial_sums():
    case = StepCase(shape=(1, 3, 1200, 1200), special=True)  # more chunks than an image may have
    expected, actual = case.make(), case.make()
    momentum(expected, "reference", "l2", "sign")
    momentum(actual, "cpu", "l2", "sign")
    compare(actual, expected)


def of_subnormals(values: torch.Tensor) -> list[torch.Tensor]:
    """What the C++ kernels make of a map of subnormal numbers, which in float32 half-precision ones are not."""
    key = {"rate": 0.3, "seed": 1, "ids": torch.arange(2), "tick": 0, "layer": 0, "backend": "cpu"}
    scale = {"scale": torch.full((16,), 1.5), "shift": torch.zeros(16), "slope": 0.25}
    x, velocity, stats = torch.full((2, 16, 8, 8), 0.5), torch.zeros(2, 16, 8, 8), torch.zeros(2, 2, dtype=torch.int64)
    ops.momentum_step_(x, values, x.clone(), velocity, alpha=0.1, eps=0.1, mu=0.5, stats=stats, backend="cpu")
    return [
        ops.feature_dropout(values, rescale=True, **key),
        ops.feature_dropout_bn_prelu(values, **scale, **key),
        ops.box_blur(values, backend="cpu"),
        ops.average_pool([values], backend="cpu")[0],
        *(x, velocity, stats),
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_flushing_subnormals_changes_no_bit(dtype, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    if dtype == torch.float16:
        values = torch.randint(1, 1 << 10, (2, 16, 8, 8), generator=draw, dtype=torch.int32).to(torch.int16).view(dtype)
    else:
        values = (torch.rand(2, 16, 8, 8, generator=draw) * 1e-39).to(dtype)
    for isa in _native.cpu_isas():
        monkeypatch.setenv("FASTADV_CPU_ISA", isa)
        backends.cpu_isa.cache_clear()
        expected = of_subnormals(values)
        try:
            assert torch.set_flush_denormal(True)
            made = of_subnormals(values)
            assert float(torch.full((1,), 1e-39) * 0.5) == 0.0  # the caller's mode is back
        finally:
            torch.set_flush_denormal(False)
        for a, b in zip(made, expected, strict=True):
            assert_same_bits(a, b)
    monkeypatch.undo()
    backends.cpu_isa.cache_clear()


def test_every_operation_has_every_backend():
    assert set(OPERATIONS) == set(backends.STEMS)
    for op, declared in OPERATIONS.items():
        assert tuple(declared.implementations) == backends.NAMES, op
        stem = backends.STEMS[op]
        assert importlib.util.find_spec(f"fastadv.ops.reference.{stem}")
        assert importlib.util.find_spec(f"fastadv.kernels.triton.{stem}")
        assert _native.has(f"cpu_{stem}")
        assert _native.has(f"cuda_{stem}") == bool(_native.cuda_architectures())
