"""Numbers of an interval: every form, size and place of a number that is out of it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv import _native, backends
from fastadv.ops.all_within import all_within

needs_native = pytest.mark.skipif(not _native.has("cpu_all_within"), reason="needs the compiled module")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_native), None]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60)
@given(
    size=st.one_of(st.integers(1, 300), st.sampled_from([2**16 - 1, 2**16, 2**16 + 1, 2**17 + 65])),
    place=st.floats(0, 1, exclude_max=True),
    value=st.sampled_from([0.0, 1.0, -0.0, 0.5, 1 + 2**-23, -1e-45, math.nan, math.inf, -math.inf]),
)
def test_one_number_decides(size, place, value, backend):
    values = torch.linspace(0, 1, size)
    values[int(place * size)] = value
    assert all_within(values, 0.0, 1.0, backend=backend) is (0.0 <= value <= 1.0)


@needs_native
@pytest.mark.parametrize("isa", range(len(_native.cpu_isas())))
def test_every_instruction_set_and_place(isa, monkeypatch):
    monkeypatch.setenv("FASTADV_CPU_ISA", _native.cpu_isas()[isa])
    backends.cpu_isa.cache_clear()
    try:
        for place in range(200):
            for wrong in (1.5, -0.5, math.nan):
                values = torch.full((200,), 0.25)
                assert all_within(values, 0.0, 1.0, backend="cpu")
                values[place] = wrong
                assert not all_within(values, 0.0, 1.0, backend="cpu")
    finally:
        monkeypatch.undo()
        backends.cpu_isa.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types_and_memory_orders(dtype):
    whole = torch.rand(3, 4, 5, 6).to(dtype)
    for made in (
        whole,
        whole.contiguous(memory_format=torch.channels_last),
        whole.permute(1, 0, 3, 2),
        whole[:, 1:3, ::2],
        whole[:0],
        torch.empty(0, dtype=dtype),
        torch.tensor(0.5, dtype=dtype),
    ):
        assert all_within(made, 0.0, 1.0)
    outside = whole.clone()
    outside[1, 3, 4, 5] = 1.5
    assert all_within(outside[:, :3], 0.0, 1.0)
    assert not all_within(outside, 0.0, 1.0)
    assert not all_within(outside.contiguous(memory_format=torch.channels_last), 0.0, 1.0)
    assert not all_within(torch._neg_view(whole), 0.0, 1.0)  # what lies in its memory is in the interval


def test_memory_that_is_not_aligned():
    for value in (0.5, 1.5):
        data = bytearray(b"x" + torch.full((3,), value).numpy().tobytes())
        assert all_within(torch.frombuffer(data, dtype=torch.float32, offset=1), 0.0, 1.0) is (value == 0.5)


def test_gradients_and_an_unknown_backend():
    assert all_within(torch.rand(4, requires_grad=True), 0.0, 1.0)
    with pytest.raises(ValueError, match="backend: expected 'reference', 'cpu' or None, got 'triton'"):
        all_within(torch.rand(4).double(), 0.0, 1.0, backend="triton")
