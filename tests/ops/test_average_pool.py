"""Average pooling: closed forms, float64, every backend and layout, the derivative."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastadv import ops
from fastadv.testing.cases import arrange
from fastadv.testing.layer_cases import LAYER_CASES, MANY_LAYERS, LayerCase
from fastadv.testing.tolerances import assert_same_bits

TOLERANCE = 4e-6  # of the mean magnitude of a channel, as documented
CASE = LayerCase(images=2, layers=((5, 3, 4), (7, 1, 1), (3, 6, 2)))


@pytest.fixture(autouse=True)
def _poisoned(poisoned):
    """What is not written is NaN."""


def assert_means(actual, maps):
    for y, x in zip(actual, maps, strict=True):
        wide = x.cpu().double()
        assert y.dtype == torch.float32
        assert y.shape == x.shape[:2]
        bound = TOLERANCE * wide.abs().mean((2, 3)) + 1e-44
        assert bool(((y.cpu().double() - wide.mean((2, 3))).abs() <= bound).all())


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_every_backend_against_float64(case, target):
    maps = case.maps(target.device)
    assert_means(ops.average_pool(maps, backend=target.backend), maps)


def test_more_layers_than_one_launch_takes(target):
    maps = MANY_LAYERS.maps(target.device)
    assert_means(ops.average_pool(maps, backend=target.backend), maps)


def test_by_hand(backend):
    ramp = torch.arange(24.0).view(1, 2, 3, 4)
    ones = torch.ones(1, 3, 1, 1)
    first, second = ops.average_pool([ramp, ones], backend=backend)
    assert first.tolist() == [[5.5, 17.5]]
    assert second.tolist() == [[1.0, 1.0, 1.0]]


def test_a_constant_stays_what_it_is(backend):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        maps = [torch.full((1, 2, 8, 8), 0.375, dtype=dtype), torch.full((1, 1, 3, 5), -3.0, dtype=dtype)]
        first, second = ops.average_pool(maps, backend=backend)
        assert first.tolist() == [[0.375, 0.375]]
        assert second.tolist() == [[-3.0]]


def test_slices_of_larger_maps(backend):
    whole = torch.randn(4, 6, 9, 10)
    for base in (whole, whole.to(memory_format=torch.channels_last)):
        maps = [base[::2], base[:, 1:4], base[..., 2:7], base[:, :, 1::3, ::2], base.flip(0), base.transpose(2, 3)]
        for part in maps:
            assert_means(ops.average_pool([part], backend=backend), [part])
    expanded = torch.randn(2, 1, 1, 1).expand(2, 3, 4, 5)
    assert_means(ops.average_pool([expanded], backend=backend), [expanded])


def test_a_nan_stays_in_its_channel(backend):
    maps = [torch.ones(2, 3, 4, 5), torch.ones(2, 3, 2, 2).to(memory_format=torch.channels_last)]
    for value in maps:
        value[1, 2, 1, 1] = float("nan")
    for y in ops.average_pool(maps, backend=backend):
        assert y.isnan().nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_mean_has_the_same_bits_in_any_batch(layout, target):
    # of 300 images each map is read by fewer warps on a GPU than of one
    shapes = ((33, 24, 23), (64, 34, 33), (40, 7, 7))
    images = 300 if target.device == "cuda" else 3
    maps = LayerCase(images=images, layers=shapes, layout=layout).maps(target.device)
    together = torch.cat(ops.average_pool(maps, backend=target.backend), 1)
    for n in (0, images - 1):
        alone = ops.average_pool([value[n : n + 1] for value in maps], backend=target.backend)
        assert_same_bits(torch.cat(alone, 1), together[n : n + 1])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_long_sums_keep_their_digits(layout):
    # Added up one after the other in float32, a million ones and a half would lose theirs.
    value = arrange(torch.full((1, 2, 1100, 1000), 1.5) + torch.rand(1, 2, 1100, 1000) * 1e-3, layout)
    assert_means(ops.average_pool([value], backend="cpu"), [value])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_threads_and_instruction_sets_change_no_bit(layout, monkeypatch):
    from fastadv import _native, backends

    maps = LayerCase(images=4, layers=((257, 13, 11), (16, 40, 40)), layout=layout).maps()
    made = []
    before = torch.get_num_threads()
    try:
        for isa in _native.cpu_isas():
            monkeypatch.setenv("FASTADV_CPU_ISA", isa)
            backends.cpu_isa.cache_clear()
            for threads in (1, 3):
                torch.set_num_threads(threads)
                made.append(torch.cat(ops.average_pool(maps, backend="cpu"), 1))
    finally:
        torch.set_num_threads(before)
        monkeypatch.undo()
        backends.cpu_isa.cache_clear()
    for value in made[1:]:
        assert_same_bits(value, made[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_is_spread_evenly(dtype, layout, backend):
    maps = [arrange(value.to(dtype), layout).requires_grad_(True) for value in CASE.maps()]
    maps[1].requires_grad_(False)
    weights = [torch.randn(value.shape[:2]) for value in maps]
    means = ops.average_pool(maps, backend=backend)
    sum((y * w).sum() for y, w in zip(means, weights, strict=True)).backward()
    assert maps[1].grad is None
    for value, weight in ((maps[0], weights[0]), (maps[2], weights[2])):
        expected = (weight / value[0, 0].numel()).to(dtype)[:, :, None, None].expand(value.shape)
        assert_same_bits(value.grad, expected)
        assert value.grad.stride() == value.stride()


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from(["contiguous", "channels_last", "columns", "offset"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(layers, images, layout, dtype):
    maps = LayerCase(images=images, layers=tuple(layers), layout=layout, dtype=dtype).maps()
    assert_means(ops.average_pool(maps), maps)
