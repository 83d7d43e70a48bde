"""NumPy and CuPy arrays are written in place and handed back."""

import numpy as np
import pytest
import torch

from fastadv import ops
from fastadv.testing.cases import StepCase
from fastadv.testing.tolerances import assert_same_bits

CASE = StepCase(shape=(3, 3, 5, 7), special=True, each=True, active="some")
NAMES = ("x", "grad", "origin", "velocity", "alpha", "eps", "active", "stats")


def run(i, convert):
    values = {name: convert(getattr(i, name)) for name in NAMES}
    velocity = values.pop("velocity")
    out = ops.sign_step_(**values)
    assert out is values["x"]
    out = ops.momentum_step_(**values, velocity=velocity, mu=0.9, norm="l2", step="l2")
    assert out is values["x"]
    return {**values, "velocity": velocity}


def test_numpy_arrays():
    expected, i = CASE.make(), CASE.make()
    run(expected, lambda value: value)
    made = run(i, lambda value: value.numpy())
    for name in ("x", "velocity", "stats"):
        assert isinstance(made[name], np.ndarray)
        assert_same_bits(torch.from_numpy(made[name]), getattr(expected, name), name)


def test_numpy_arrays_that_are_only_read_may_be_read_only_reversed_or_of_another_byte_order():
    expected, i = CASE.make(), CASE.make()
    run(expected, lambda value: value)
    grad, origin, alpha = i.grad.numpy(), i.origin.numpy(), i.alpha.numpy()
    grad.flags.writeable = False
    values = {"grad": grad, "origin": np.ascontiguousarray(origin[::-1])[::-1], "alpha": alpha.astype(">f4")}
    x, velocity, stats = i.x.numpy(), i.velocity.numpy(), i.stats.numpy()
    options = {"eps": i.eps.numpy(), "active": i.active.numpy(), "stats": stats}
    ops.sign_step_(x, **values, **options)
    ops.momentum_step_(x, velocity=velocity, mu=0.9, norm="l2", step="l2", **values, **options)
    assert_same_bits(torch.from_numpy(x), expected.x)
    assert_same_bits(torch.from_numpy(stats), expected.stats)


def test_numpy_scalars_are_numbers():
    i, expected = CASE.make(), CASE.make()
    ops.sign_step_(i.x, i.grad, i.origin, alpha=np.float64(0.1), eps=np.float32(0.25))
    ops.sign_step_(expected.x, expected.grad, expected.origin, alpha=0.1, eps=0.25)
    assert_same_bits(i.x, expected.x)


def test_a_workspace_for_an_array():
    assert ops.momentum_workspace(np.zeros((2, 3, 112, 112), np.float32)).shape == (2, 2, 19)


@pytest.mark.gpu
def test_cupy_arrays():
    cupy = pytest.importorskip("cupy")
    expected, i = CASE.make(), CASE.make()
    run(expected, lambda value: value)
    with cupy.cuda.Stream(non_blocking=True):
        made = run(i, lambda value: cupy.asarray(value.numpy()))
        for name in ("x", "velocity", "stats"):
            assert isinstance(made[name], cupy.ndarray)
            assert_same_bits(torch.from_numpy(made[name].get()), getattr(expected, name), name)
