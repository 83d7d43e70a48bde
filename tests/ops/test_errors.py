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
    ({"x": [0.5]}, TypeError, "x is a list; expected a torch.Tensor or a NumPy or CuPy array"),
    ({"x": image(dtype=torch.float64)}, TypeError, "x has dtype torch.float64; expected torch.float32"),
    ({"x": image((4,))}, ValueError, r"x has shape \(4,\); expected a batch \(N, C, H, W\)"),
    ({"x": image((2, 3, 4, 10))[..., ::2]}, ValueError, "x has .* strides .*; expected a dense batch"),
    (
        {"x": image((3, 4, 5, 2)).permute(3, 0, 1, 2)},
        ValueError,
        "expected a dense batch, one image after the other",
    ),
    ({"x": image((1, 3, 4, 5)).expand(2, 3, 4, 5)}, ValueError, "expected a dense batch"),
    ({"grad": None}, TypeError, "grad is a NoneType; expected a torch.Tensor"),
    ({"grad": image((2, 3, 4, 6))}, ValueError, r"grad has shape \(2, 3, 4, 6\); expected \(2, 3, 4, 5\)"),
    (
        {"grad": image(dtype=torch.float64)},
        TypeError,
        "grad has dtype torch.float64; expected torch.float32, torch.bf",
    ),
    ({"grad": image(device="meta")}, ValueError, "grad is on meta; expected cpu"),
    ({"origin": image((2, 3, 4))}, ValueError, "origin has shape"),
    (
        {"origin": image(dtype=torch.bfloat16)},
        TypeError,
        "origin has dtype torch.bfloat16; expected torch.float32",
    ),
    ({"origin": 0.5}, TypeError, "origin is a float"),
    ({"alpha": NAN}, ValueError, "alpha is nan; expected a finite number"),
    ({"alpha": float("inf")}, ValueError, "alpha is inf; expected a finite number"),
    ({"alpha": torch.zeros(3)}, ValueError, r"alpha has shape \(3,\); expected \(2,\)"),
    ({"alpha": torch.zeros(2, dtype=torch.float64)}, TypeError, "alpha has dtype torch.float64"),
    ({"eps": -0.1}, ValueError, "eps is -0.1; expected a finite number >= 0"),
    ({"eps": NAN}, ValueError, "eps is nan"),
    ({"eps": torch.zeros(2, 1)}, ValueError, r"eps has shape \(2, 1\)"),
    ({"active": torch.ones(2)}, TypeError, "active has dtype torch.float32; expected torch.bool"),
    ({"active": torch.ones(3, dtype=torch.bool)}, ValueError, r"active has shape \(3,\)"),
    ({"active": [True, False]}, TypeError, "active is a list"),
    ({"stats": torch.zeros(2, 2)}, TypeError, "stats has dtype torch.float32; expected torch.int64"),
    (
        {"stats": torch.zeros(2, 3, dtype=torch.int64)},
        ValueError,
        r"stats has shape \(2, 3\); expected \(2, 2\)",
    ),
    (
        {"stats": torch.zeros(2, 2, dtype=torch.int64).t()},
        ValueError,
        "stats has strides .* expected a contiguous",
    ),
    ({"lo": 1.0, "hi": 0.0}, ValueError, "lo is 1.0 and hi is 0.0; expected lo <= hi"),
    ({"lo": NAN}, ValueError, "lo is nan"),
    (
        {"backend": "gpu"},
        ValueError,
        "backend is 'gpu'; expected one of reference, cpu, cuda, triton or 'auto'",
    ),
    (
        {"backend": "cuda"},
        backends.BackendUnavailable,
        "backend 'cuda' cannot run on cpu: it takes CUDA tensors",
    ),
]
OWN = [
    ({"velocity": image((2, 3, 4))}, ValueError, "velocity has shape"),
    ({"velocity": image(dtype=torch.float16)}, TypeError, "velocity has dtype torch.float16"),
    (
        {"velocity": image().to(memory_format=torch.channels_last)},
        ValueError,
        "velocity has strides .* layout of x",
    ),
    ({"mu": NAN}, ValueError, "mu is nan; expected a finite number"),
    ({"norm": "linf"}, ValueError, "norm is 'linf'; expected 'l1' or 'l2'"),
    ({"step": "l1"}, ValueError, "step is 'l1'; expected 'sign' or 'l2'"),
    ({"workspace": torch.zeros(4)}, TypeError, "workspace has dtype torch.float32; expected torch.float64"),
    (
        {"workspace": torch.zeros(3, dtype=torch.float64)},
        ValueError,
        "workspace has 3 elements; expected 4 or more",
    ),
    ({"workspace": torch.zeros(8, dtype=torch.float64)[::2]}, ValueError, "workspace has strides"),
    ({"workspace": torch.zeros(4, dtype=torch.float64, device="meta")}, ValueError, "workspace is on meta"),
    ({"workspace": 3}, TypeError, "workspace is a int"),
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
    with pytest.raises(ValueError, match="x and origin share their memory"):
        sign(x=x, origin=x, backend=backend)
    with pytest.raises(ValueError, match="x and grad share their memory"):
        sign(x=x, grad=x, backend=backend)
    with pytest.raises(ValueError, match="x and velocity share their memory"):
        momentum(x=x, velocity=x, backend=backend)
    with pytest.raises(ValueError, match="velocity and grad share their memory"):
        momentum(velocity=x, grad=x, backend=backend)


def test_a_workspace_needs_images():
    with pytest.raises(TypeError, match="x is a list"):
        ops.momentum_workspace([1, 2])


def test_a_mistyped_option():
    with pytest.raises(TypeError, match="epsilon"):
        sign(epsilon=0.1)


def test_read_only_arrays_are_refused_where_they_are_written():
    x = np.zeros((2, 3, 4, 5), np.float32)
    x.flags.writeable = False
    others = {name: np.zeros(x.shape, np.float32) for name in ("grad", "origin")}
    with pytest.raises(ValueError, match="x is a read-only array"):
        sign(x=x, **others)
    with pytest.raises(ValueError, match="x cannot be shared with PyTorch"):
        sign(x=np.zeros(x.shape, np.float32)[:, ::-1], **others)
    with pytest.raises(TypeError, match="grad has dtype complex256, which PyTorch lacks"):
        sign(**{**others, "x": np.zeros(x.shape, np.float32), "grad": np.zeros(x.shape, np.clongdouble)})
