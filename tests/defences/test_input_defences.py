"""Input defences: what they compute, what their gradient is, and that draws hang on the image only."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fastadv import ops
from fastadv.defences import (
    BitDepth,
    Chain,
    GaussianBlur,
    InputDefence,
    Jpeg,
    MeanFilter,
    Median,
    OneOf,
    RandomResizePad,
    content_ids,
    content_key,
    straight_through,
)

EVERY: tuple[InputDefence, ...] = (
    MeanFilter(),
    MeanFilter(size=5),
    GaussianBlur(),
    Median(),
    BitDepth(),
    Jpeg(),
    RandomResizePad(),
    Chain(parts=(BitDepth(), MeanFilter(), RandomResizePad())),
    OneOf(parts=(MeanFilter(), Jpeg(), BitDepth(bits=1))),
)


def faces(count: int, size: int = 24, *, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size + 8, generator=torch.Generator().manual_seed(seed))


def apply(defence: InputDefence, images: Tensor, *, seed: int = 0) -> Tensor:
    return defence(images, content_key(images, seed))


def windows(images: Tensor, size: int) -> Tensor:
    """``(N, C, H, W, size * size)``: each pixel's window by brute force."""
    n, c, height, width = images.shape
    half = size // 2
    found = torch.empty(n, c, height, width, size * size, dtype=images.dtype)
    for i in range(height):
        for j in range(width):
            k = 0
            for a in range(-half, half + 1):
                for b in range(-half, half + 1):
                    row, column = min(max(i + a, 0), height - 1), min(max(j + b, 0), width - 1)
                    found[:, :, i, j, k] = images[:, :, row, column]
                    k += 1
    return found


@pytest.mark.parametrize("size", [3, 5, 7])
def test_mean_is_the_mean_of_the_window(size):
    x = faces(2, 9).double()
    torch.testing.assert_close(apply(MeanFilter(size=size), x), windows(x, size).mean(-1))


def test_the_3_by_3_mean_is_the_fused_operation():
    x = faces(3)
    assert torch.equal(apply(MeanFilter(), x), ops.box_blur(x))
    torch.testing.assert_close(apply(MeanFilter(), x).double(), apply(MeanFilter(), x.double()))


@pytest.mark.parametrize(("size", "sigma"), [(5, 2.0), (3, 0.5), (9, 1.0)])
def test_gaussian_is_the_weighted_sum_of_the_window(size, sigma):
    x = faces(2, 9).double()
    half = size // 2
    line = torch.tensor([math.exp(-(a * a) / (2 * sigma**2)) for a in range(-half, half + 1)], dtype=torch.float64)
    weights = torch.outer(line, line).flatten()
    torch.testing.assert_close(
        apply(GaussianBlur(size=size, sigma=sigma), x), windows(x, size) @ (weights / weights.sum())
    )


@pytest.mark.parametrize("size", [3, 5])
def test_median_is_the_median_of_the_window(size):
    x = faces(2, 9)
    assert torch.equal(apply(Median(size=size), x), windows(x, size).median(-1).values)


def test_median_removes_single_pixels_and_keeps_constants():
    x = torch.full((1, 3, 8, 8), 0.25)
    x[0, :, 3, 4] = 1.0
    assert torch.equal(apply(Median(), x), torch.full_like(x, 0.25))


@pytest.mark.parametrize("defence", [MeanFilter(size=5), GaussianBlur(), Median()], ids=lambda d: d.name)
def test_gradients_agree_with_differences(defence):
    x = faces(1, 5).double().requires_grad_()
    key = content_key(x, 0)
    assert torch.autograd.gradcheck(lambda t: defence(t, key), (x,), eps=1e-5)


@given(st.integers(1, 8), st.integers(0, 255))
def test_bit_depth_takes_the_nearest_level(bits, level):
    x = torch.full((1, 3, 2, 2), level / 255)
    y = apply(BitDepth(bits=bits), x)
    levels = torch.arange(2**bits) / (2**bits - 1)
    assert float((levels - y[0, 0, 0, 0]).abs().min()) < 1e-7
    assert float((levels - x[0, 0, 0, 0]).abs().min()) == pytest.approx(float((y - x).abs().max()), abs=1e-6)


def test_8_bits_keep_8_bit_images():
    x = (faces(2) * 255).round() / 255
    assert torch.equal(apply(BitDepth(bits=8), x), x)


def test_jpeg_is_the_codec_s():
    x = faces(2)
    y = apply(Jpeg(quality=35, subsampling="4:4:4"), x)
    for k in range(2):
        buffer = io.BytesIO()
        Image.fromarray((x[k] * 255).round().byte().permute(1, 2, 0).numpy()).save(
            buffer, "JPEG", quality=35, subsampling=0
        )
        expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255
        assert torch.equal(y[k], expected)


def test_jpeg_loses_more_at_a_lower_quality():
    x = ops.box_blur(ops.box_blur(faces(4, 40)))
    lost = [float((apply(Jpeg(quality=q), x) - x).square().mean()) for q in (95, 50, 20, 5)]
    assert lost == sorted(lost)
    whole, half = (apply(Jpeg(quality=90, subsampling=s), x) for s in ("4:4:4", "4:2:0"))
    assert float((whole - x).square().mean()) < float((half - x).square().mean())


@pytest.mark.parametrize("defence", [BitDepth(), Jpeg()], ids=lambda d: d.name)
def test_what_has_no_gradient_passes_it_on(defence):
    x, g = faces(2).requires_grad_(), torch.randn(2, 3, 24, 32)
    y = apply(defence, x)
    assert torch.equal(torch.autograd.grad(y, x, g)[0], g)
    assert torch.equal(y, apply(defence, x.detach()))


def test_straight_through_gives_one_s_value_and_the_other_s_gradient():
    x = torch.tensor([1.0, 1e8], requires_grad=True)
    value = torch.tensor([0.1, 0.3])
    y = straight_through(value, x * 2)
    assert torch.equal(y, value)  # x + (value - x) would have lost it
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.tensor([2.0, 2.0]))


def test_kornia_is_asked_for_by_name():
    try:
        import kornia  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install kornia"):
            Jpeg(gradient="kornia")
        return
    x = faces(2).requires_grad_()
    y = apply(Jpeg(quality=50, gradient="kornia"), x)
    assert torch.equal(y, apply(Jpeg(quality=50), x.detach()))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert float(gradient.abs().max()) > 0
    assert not torch.equal(gradient, 2 * y)


def test_resize_and_pad_moves_all_within_the_canvas():
    x = torch.ones(64, 3, 40, 40)
    key = content_key(faces(64, 4), 3)
    y = RandomResizePad(smallest=0.8)(x, key)
    area = (y[:, 0] > 0.5).float().flatten(1).mean(1)
    assert float(area.min()) >= 0.8**2 - 0.05
    assert float(area.max()) <= 1
    assert float(area.std()) > 0.05
    assert torch.equal(RandomResizePad(smallest=1.0)(x, key), x)


def test_a_chain_is_one_after_the_other():
    x = faces(3)
    chained = apply(Chain(parts=(BitDepth(bits=3), MeanFilter())), x)
    assert torch.equal(chained, apply(MeanFilter(), apply(BitDepth(bits=3), x)))


def test_parts_of_a_chain_draw_independently():
    x = faces(8, 40)
    twice = Chain(parts=(RandomResizePad(smallest=0.5), RandomResizePad(smallest=0.5)))
    key = content_key(x, 0)
    seen = []

    class Spy(RandomResizePad):
        def __call__(self, images, key):
            seen.append(key)
            return super().__call__(images, key)

    nested = Chain(parts=(Spy(), Chain(parts=(Spy(), OneOf(parts=(Spy(), Spy())))), Spy()))
    nested(x, key)
    ticks = [int(k.ticks[0]) for k in seen]
    assert len(set(ticks)) == len(ticks) == 5
    assert all(torch.equal(k.ids, key.ids) for k in seen)
    assert not torch.equal(apply(twice, x), apply(RandomResizePad(smallest=0.5), x))


def test_one_of_takes_one_whole_for_each_image():
    x = faces(40, 12)
    parts = (MeanFilter(), BitDepth(bits=1), Median())
    value = OneOf(parts=parts)
    key = content_key(x, 5)
    y, chosen = value(x, key), value.chosen(key)
    assert set(chosen.tolist()) == {0, 1, 2}
    for k in range(40):
        assert torch.equal(y[k], apply(parts[int(chosen[k])], x)[k])


def test_one_of_draws_by_the_weights():
    n = 6000
    key = content_key(torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(0)), 1)
    value = OneOf(parts=(MeanFilter(), Median(), BitDepth(), Jpeg()), weights=(1, 0, 3, 0))
    counts = torch.bincount(value.chosen(key), minlength=4) / n
    assert counts[1] == counts[3] == 0
    assert abs(float(counts[0]) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / n)


@pytest.mark.parametrize("defence", EVERY, ids=lambda d: d.name)
def test_an_image_s_result_hangs_on_the_image_only(defence):
    x = faces(6, 40)
    y = apply(defence, x, seed=9)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert float(y.min()) >= -1e-6
    assert float(y.max()) <= 1 + 1e-6
    order = [4, 0, 5]
    assert torch.equal(apply(defence, x[order], seed=9), y[order])
    last = x.contiguous(memory_format=torch.channels_last)
    made = apply(defence, last, seed=9)
    assert torch.equal(made, y)
    assert torch.equal(apply(defence, x[:0]), x[:0])


def test_random_defences_see_another_seed_and_say_so():
    x = faces(8, 40)
    for defence in EVERY:
        same = torch.equal(apply(defence, x, seed=1), apply(defence, x, seed=2))
        assert same is not defence.random
    assert not OneOf(parts=(MeanFilter(),)).random


def test_content_ids_tell_images_apart():
    x = (faces(500, 8) * 255).round() / 255
    ids = content_ids(x)
    assert len(set(ids.tolist())) == 500
    assert int(ids.min()) >= 0
    other = x.clone()
    other[:, 1, 2, 3] += 1 / 255
    assert not (content_ids(other) == ids).any()
    assert torch.equal(content_ids(x.contiguous(memory_format=torch.channels_last)), ids)
    assert torch.equal(content_ids(x.double()), ids)
    assert not (content_ids(x.flip(3)) == ids).any()
    # both halves of the number are used
    assert 200 < int((ids >> 62 & 1).sum()) < 300
    assert 200 < int((ids & 1).sum()) < 300


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([8, 64, 1000]))
def test_swapped_pixels_are_another_image(seed, width):
    x = torch.rand(1, 3, 1, width, generator=torch.Generator().manual_seed(seed))
    y = x.clone()
    y[..., 0], y[..., 1] = x[..., 1], x[..., 0]
    assert int(content_ids(x)) != int(content_ids(y))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MeanFilter(size=4), "size: expected an odd integer in .3, 31., got 4"),
        (lambda: MeanFilter(size=True), "size"),
        (lambda: GaussianBlur(size=1), "size"),
        (lambda: GaussianBlur(sigma=0), "sigma: expected a number in .0, 31., got 0"),
        (lambda: GaussianBlur(sigma=float("nan")), "sigma"),
        (lambda: Median(size=9), "size: expected an odd integer in .3, 7., got 9"),
        (lambda: BitDepth(bits=0), "bits: expected an integer in .1, 8., got 0"),
        (lambda: BitDepth(bits=2.5), "bits"),
        (lambda: Jpeg(quality=96), "quality: expected an integer in .1, 95., got 96"),
        (lambda: Jpeg(subsampling="4:1:1"), "subsampling: expected one of 4:4:4, 4:2:2, 4:2:0, got '4:1:1'"),
        (lambda: Jpeg(gradient="soft"), "gradient: expected one of identity, kornia, got 'soft'"),
        (lambda: RandomResizePad(smallest=0.4), "smallest: expected a number in .0.5, 1., got 0.4"),
        (lambda: Chain(parts=()), "parts: expected a tuple of 1 to 15"),
        (lambda: Chain(parts=(MeanFilter(),) * 16), "parts: expected a tuple of 1 to 15"),
        (lambda: OneOf(parts=(MeanFilter(),), weights=(1.0, 2.0)), "weights: expected 1 numbers"),
        (
            lambda: OneOf(parts=(MeanFilter(),), weights=(0.0,)),
            r"weights: expected at least one above 0, got \(0\.0,\)",
        ),
        (lambda: OneOf(parts=(MeanFilter(),), weights=(-1.0,)), "weights: expected a number"),
    ],
)
def test_wrong_fields(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_parts_are_defences():
    with pytest.raises(TypeError, match="parts: expected input defences, got str"):
        Chain(parts=("mean",))


def test_compositions_end():
    value: InputDefence = MeanFilter()
    for _ in range(4):
        value = Chain(parts=(value,))
    with pytest.raises(ValueError, match="at most 4 compositions within each other, got 5"):
        OneOf(parts=(value,))


def test_a_composition_is_on_the_host_where_a_part_is():
    assert Jpeg().on_host
    assert not Chain(parts=(MeanFilter(), Median())).on_host
    assert OneOf(parts=(MeanFilter(), Chain(parts=(Jpeg(),)))).on_host
