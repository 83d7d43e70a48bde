"""Every mistake of a caller is an error that names the argument, what came and what was expected."""

import numpy as np
import pytest
import torch

from fastadv import backends, ops
from fastadv.testing.cases import StepCase

CASE = StepCase(shape=(2, 3, 4, 5))
NAN = float("nan")


def arguments() -> dict:
    i = CASE.make()
    return {"x": i.x, "grad": i.grad, "origin": i.origin, "alpha": 0.1, "eps": 0.2}


def sign(**change):
    return ops.sign_step_(**{**arguments(), **change})


def momentum(**change):
    return ops.momentum_step_(**{**arguments(), "velocity": CASE.make().velocity, "mu": 1.0, **change})


def image(shape=(2, 3, 4, 5), dtype=torch.float32, **options):
    return torch.zeros(shape, dtype=dtype, **options)


SHARED = [
    ({"x": [0.5]}, TypeError, "x: expected a torch.Tensor or a NumPy or CuPy array, got list"),
    ({"x": image(dtype=torch.float64)}, TypeError, "x: expected dtype torch.float32, got torch.float64"),
    ({"x": image((4,))}, ValueError, r"x: expected a batch \(N, C, H, W\), got shape \(4,\)"),
    (
        {"x": image((2, 3, 4, 10))[..., ::2]},
        ValueError,
        r"x: expected a dense batch, one image after the other \(contiguous or channels-last\), sinc",
    ),
    (
        {"x": image((3, 4, 5, 2)).permute(3, 0, 1, 2)},
        ValueError,
        "expected a dense batch, one image after the other",
    ),
    ({"x": image((1, 3, 4, 5)).expand(2, 3, 4, 5)}, ValueError, "expected a dense batch"),
    ({"grad": None}, TypeError, r"grad: expected a torch\.Tensor, like x, got NoneType"),
    (
        {"grad": image((2, 3, 4, 6))},
        ValueError,
        r"grad: expected shape \(2, 3, 4, 5\), the shape of x, got \(2, 3, 4, 6\)",
    ),
    (
        {"grad": image(dtype=torch.float64)},
        TypeError,
        r"grad: expected dtype torch\.float32, torch\.bfloat16 or torch\.float16, got torch\.float64",
    ),
    ({"grad": image(device="meta")}, ValueError, "grad: expected cpu, the device of x, got meta"),
    (
        {"origin": image((2, 3, 4))},
        ValueError,
        r"origin: expected shape \(2, 3, 4, 5\), the shape of x, got \(2, 3, 4\)",
    ),
    (
        {"origin": image(dtype=torch.bfloat16)},
        TypeError,
        "origin: expected dtype torch.float32, got torch.bfloat16",
    ),
    ({"origin": 0.5}, TypeError, "origin: expected .*, got float"),
    ({"alpha": NAN}, ValueError, r"alpha: expected a finite number, or a float32 tensor \(N,\), got nan"),
    ({"alpha": float("inf")}, ValueError, r"alpha: expected a finite number, or a float32 tensor \(N,\), got inf"),
    ({"alpha": torch.zeros(3)}, ValueError, r"alpha: expected shape \(2,\), got \(3,\)"),
    ({"alpha": torch.zeros(2, dtype=torch.float64)}, TypeError, "alpha: expected .*, got torch.float64"),
    ({"eps": -0.1}, ValueError, r"eps: expected a finite number >= 0, or a float32 tensor \(N,\), got -0\.1"),
    ({"eps": NAN}, ValueError, "eps: expected .*, got nan"),
    ({"eps": torch.zeros(2, 1)}, ValueError, r"eps: expected .*, got \(2, 1\)"),
    ({"active": torch.ones(2)}, TypeError, "active: expected dtype torch.bool, got torch.float32"),
    ({"active": torch.ones(3, dtype=torch.bool)}, ValueError, r"active: expected .*, got \(3,\)"),
    ({"active": [True, False]}, TypeError, "active: expected .*, got list"),
    ({"stats": torch.zeros(2, 2)}, TypeError, "stats: expected dtype torch.int64, got torch.float32"),
    (
        {"stats": torch.zeros(2, 3, dtype=torch.int64)},
        ValueError,
        r"stats: expected shape \(2, 2\), got \(2, 3\)",
    ),
    (
        {"stats": torch.zeros(2, 2, dtype=torch.int64).t()},
        ValueError,
        r"stats: expected a contiguous tensor, since it is written, got strides \(1, 2\)",
    ),
    ({"lo": 1.0, "hi": 0.0}, ValueError, r"lo, hi: expected lo <= hi, got 1\.0 and 0\.0"),
    ({"lo": NAN}, ValueError, r"lo, hi: expected lo <= hi, got nan and 1\.0"),
    (
        {"backend": "gpu"},
        ValueError,
        "backend: expected one of reference, cpu, cuda, triton or 'auto', got 'gpu'",
    ),
    (
        {"backend": "cuda"},
        backends.BackendUnavailable,
        "backend: expected one that can run .* on cpu, got 'cuda': it takes CUDA tensors",
    ),
]
OWN = [
    (
        {"velocity": image((2, 3, 4))},
        ValueError,
        r"velocity: expected shape \(2, 3, 4, 5\), the shape of x, got \(2, 3, 4\)",
    ),
    ({"velocity": image(dtype=torch.float16)}, TypeError, "velocity: expected .*, got torch.float16"),
    (
        {"velocity": image().to(memory_format=torch.channels_last)},
        ValueError,
        r"velocity: expected strides \(60, 20, 5, 1\), the layout of x, since it is written in place",
    ),
    ({"mu": NAN}, ValueError, "mu: expected a finite number, got nan"),
    ({"norm": "linf"}, ValueError, "norm: expected 'l1' or 'l2', got 'linf'"),
    ({"step": "l1"}, ValueError, "step: expected 'sign' or 'l2', got 'l1'"),
    (
        {"workspace": torch.zeros(4)},
        TypeError,
        r"workspace: expected dtype torch\.float64, from momentum_workspace\(x\), got torch\.float32",
    ),
    (
        {"workspace": torch.zeros(3, dtype=torch.float64)},
        ValueError,
        r"workspace: expected 4 elements or more, from momentum_workspace\(x\), got 3",
    ),
    ({"workspace": torch.zeros(8, dtype=torch.float64)[::2]}, ValueError, "workspace: expected .*, got strides"),
    (
        {"workspace": torch.zeros(4, dtype=torch.float64, device="meta")},
        ValueError,
        "workspace: expected cpu, the device of x, got meta",
    ),
    ({"workspace": 3}, TypeError, "workspace: expected .*, got int"),
]


def number(value) -> str:
    return f"{next(iter(value))}" if isinstance(value, dict) else ""


@pytest.mark.parametrize(("change", "error", "message"), SHARED, ids=number)
@pytest.mark.parametrize("function", [sign, momentum])
def test_mistakes(function, change, error, message):
    if "x" in change and isinstance(change["x"], torch.Tensor):
        like = {name: torch.zeros(change["x"].shape) for name in ("grad", "origin")}
        change = {**like, **change}
        if function is momentum:
            change = {"velocity": torch.zeros(change["x"].shape), **change}
    before = change["x"].clone() if isinstance(change.get("x"), torch.Tensor) else None
    with pytest.raises(error, match=message):
        function(**change)
    if before is not None:
        assert torch.equal(change["x"], before)


@pytest.mark.parametrize(("change", "error", "message"), OWN, ids=number)
def test_mistakes_of_the_momentum_step(change, error, message):
    with pytest.raises(error, match=message):
        momentum(**change)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_written_memory_must_not_be_read_as_something_else(backend):
    x = image()
    with pytest.raises(ValueError, match="x, origin: expected separate tensors, got shared memory"):
        sign(x=x, origin=x, backend=backend)
    with pytest.raises(ValueError, match="x, grad: expected separate tensors, got shared memory"):
        sign(x=x, grad=x, backend=backend)
    with pytest.raises(ValueError, match="x, velocity: expected separate tensors, got shared memory"):
        momentum(x=x, velocity=x, backend=backend)
    with pytest.raises(ValueError, match="velocity, grad: expected separate tensors, got shared memory"):
        momentum(velocity=x, grad=x, backend=backend)


def test_a_workspace_needs_images():
    with pytest.raises(TypeError, match="x: expected .*, got list"):
        ops.momentum_workspace([1, 2])


def test_a_mistyped_option():
    with pytest.raises(TypeError, match="epsilon"):
        sign(epsilon=0.1)


def test_read_only_arrays_are_refused_where_they_are_written():
    x = np.zeros((2, 3, 4, 5), np.float32)
    x.flags.writeable = False
    others = {name: np.zeros(x.shape, np.float32) for name in ("grad", "origin")}
    with pytest.raises(
        ValueError, match="x: expected a writable array, since it is written in place, got a read-only one"
    ):
        sign(x=x, **others)
    with pytest.raises(
        ValueError, match=r"x: expected an array that PyTorch can share, got one that it cannot \(At least one stride"
    ):
        sign(x=np.zeros(x.shape, np.float32)[:, ::-1], **others)
    with pytest.raises(TypeError, match="grad: expected a dtype that PyTorch has, got complex256"):
        sign(**{**others, "x": np.zeros(x.shape, np.float32), "grad": np.zeros(x.shape, np.clongdouble)})
