"""Smoothing of the gradient: the convolution by brute force, and what a kernel must be."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from fastadv.surrogates.translation_invariant import KERNELS, TranslationInvariant


def gradient(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [1, 3, 7, 15])
def test_is_the_convolution(kernel, size):
    value = TranslationInvariant(size=size, kernel=kernel)
    g, w = gradient(2, 3, 12, 9), torch.tensor(value.weights, dtype=torch.float64)
    kernel_2d = torch.outer(w, w).expand(3, 1, size, size)
    expected = F.conv2d(g, kernel_2d, padding=size // 2, groups=3)
    torch.testing.assert_close(value(g), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(value(g.float()), expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [1, 5, 21])
def test_weights_sum_to_1_and_are_symmetric(kernel, size):
    w = TranslationInvariant(size=size, kernel=kernel).weights
    assert math.isclose(math.fsum(w), 1, rel_tol=1e-15)
    assert w == w[::-1]
    assert len(w) == size
    assert all(a <= b for a, b in itertools.pairwise(w[: size // 2 + 1]))


def test_weights_in_closed_form():
    assert TranslationInvariant(size=5, kernel="uniform").weights == (0.2,) * 5
    linear = TranslationInvariant(size=5, kernel="linear").weights
    assert linear == pytest.approx([i / 9 for i in (1, 2, 3, 2, 1)])
    gaussian = TranslationInvariant(size=7, sigma=2.0).weights
    assert gaussian[3] / gaussian[5] == pytest.approx(math.exp(0.5))
    # the default ends at three standard deviations
    default = TranslationInvariant(size=7).weights
    assert default[3] / default[0] == pytest.approx(math.exp(4.5))


def test_size_1_changes_no_bit():
    g = gradient(2, 3, 5, 5)
    assert torch.equal(TranslationInvariant(size=1)(g), g)


def test_a_constant_stays_in_the_middle_and_the_argument_is_not_written():
    g = torch.ones(1, 3, 20, 20)
    before = g.clone()
    made = TranslationInvariant(size=5)(g)
    torch.testing.assert_close(made[..., 2:-2, 2:-2], torch.ones(1, 3, 16, 16), rtol=1e-6, atol=0)
    assert bool((made[..., 0, 0] < 1).all())
    assert torch.equal(g, before)


def test_bits_do_not_depend_on_batch_and_layout():
    g = gradient(5, 3, 30, 28).float()
    value = TranslationInvariant(size=9)
    whole = value(g)
    assert torch.equal(value(g[3:4]), whole[3:4])
    assert torch.equal(value(g.flip(0)), whole.flip(0))
    last = value(g.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, whole)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 4}, "size: expected an odd number of pixels, at least 1, got 4"),
        ({"size": 0}, "size: expected an odd number"),
        ({"size": 7.0}, "size: expected an odd number"),
        ({"kernel": "box"}, "kernel: expected one of gaussian, linear, uniform, got 'box'"),
        ({"sigma": 0.0}, "sigma: expected None or a positive number of pixels, got 0.0"),
        (
            {"sigma": 1.0, "kernel": "linear"},
            "sigma: expected None with kernel='linear', since it belongs to the Gaussian kernel, got ",
        ),
    ],
)
def test_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        TranslationInvariant(**fields)


def test_refuses_what_is_no_gradient():
    with pytest.raises(TypeError, match="gradient: expected a floating-point tensor, got torch.int64"):
        TranslationInvariant()(torch.zeros(1, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"gradient: expected shape \(N, C, H, W\), got \(3, 4, 4\)"):
        TranslationInvariant()(torch.zeros(3, 4, 4))
