"""NumPy and CuPy arrays are written in place and handed back."""

import contextlib
import sys
import types

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


class _FakeStreams:
    """CuPy and PyTorch's streams in words: what waited for what. The arrays themselves are NumPy's."""

    def __init__(self, monkeypatch, pointers):
        self.waits, self.device = [], 0
        cupy = types.ModuleType("cupy")
        cupy.ndarray = type("ndarray", (), {"__module__": "cupy"})
        cupy.from_dlpack = lambda value: self.array(value.numpy(), self.device)
        cupy.cuda = types.SimpleNamespace(
            Device=self._on, get_current_stream=lambda: types.SimpleNamespace(ptr=pointers[self.device])
        )
        self.cupy = cupy
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        from_dlpack = torch.utils.dlpack.from_dlpack
        monkeypatch.setattr(
            torch.utils.dlpack,
            "from_dlpack",
            lambda v: torch.from_numpy(v.held) if hasattr(v, "held") else from_dlpack(v),
        )
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"torch's on {device}")
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: self._stream(f"default on {device}"))
        monkeypatch.setattr(
            torch.cuda, "ExternalStream", lambda pointer, device=None: self._stream(f"{pointer} on {device}")
        )

    @contextlib.contextmanager
    def _on(self, device):
        before, self.device = self.device, device
        yield
        self.device = before

    def _stream(self, name):
        return types.SimpleNamespace(wait_stream=lambda other: self.waits.append((name, other)))

    def array(self, values, device):
        made = self.cupy.ndarray()
        made.held, made.device = values, types.SimpleNamespace(id=device)
        return made


@pytest.mark.parametrize(
    ("pointer", "name"), [(0, "default on 3"), (1, "default on 3"), (2, "2 on 3"), (77, "77 on 3")]
)
def test_the_stream_of_cupy_waits_for_that_of_pytorch(pointer, name, monkeypatch):
    # The current device of both is 0, the arrays are on 3.
    streams = _FakeStreams(monkeypatch, {0: 55, 3: pointer})
    x, grad, origin = (streams.array(np.full((2, 3, 4, 5), 0.5, np.float32), 3) for _ in range(3))
    ops.sign_step_(x, grad, origin, alpha=0.1, eps=0.1)
    assert streams.waits == [(name, "torch's on 3")]
    assert float(x.held[0, 0, 0, 0]) == pytest.approx(0.6)
    made = ops.box_blur(x)
    assert streams.waits == [(name, "torch's on 3")] * 2
    assert made.held.shape == (2, 3, 4, 5)


@pytest.mark.gpu
def test_cupy_arrays_on_the_default_stream_and_another_device():
    cupy = pytest.importorskip("cupy")
    expected = CASE.make()
    run(expected, lambda value: value)
    device = torch.cuda.device_count() - 1
    with torch.cuda.stream(torch.cuda.Stream(device)):
        for _ in range(20):
            with cupy.cuda.Device(device):
                arrays = run(CASE.make(), lambda value: cupy.asarray(value.numpy()))
                found = {name: arrays[name].get() for name in ("x", "velocity", "stats")}
            for name, value in found.items():
                assert_same_bits(torch.from_numpy(value), getattr(expected, name), name)


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
