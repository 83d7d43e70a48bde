"""The warp against its formula, its gradient against its own adjoint, and its bits in any batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fastadv.surrogates.warp import affine_warp


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def matrix(scale: float, degrees: float, x: float, y: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """The map of a point of the result to a point of the image that is turned and ``scale`` times as far out."""
    angle = math.radians(degrees)
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor([[[a, -b, x], [b, a, y]]], dtype=dtype)


def reach_of(matrices: Tensor) -> float:
    return float(torch.linalg.inv(matrices[:, :, :2]).abs().sum(2).max())


def by_formula(image: Tensor, m: Tensor) -> Tensor:
    """The sum of the docstring, pixel by pixel; one image."""
    _, height, width = image.shape
    made = torch.zeros_like(image)
    cx, cy = (width - 1) / 2, (height - 1) / 2
    for row in range(height):
        for column in range(width):
            x = float(m[0, 0] * (column - cx) + m[0, 1] * (row - cy) + m[0, 2] + cx)
            y = float(m[1, 0] * (column - cx) + m[1, 1] * (row - cy) + m[1, 2] + cy)
            for i in range(height):
                for j in range(width):
                    weight = max(0.0, 1 - abs(x - j)) * max(0.0, 1 - abs(y - i))
                    made[:, row, column] += weight * image[:, i, j]
    return made


MAPS = st.tuples(st.floats(0.6, 2.5), st.floats(-180, 180), st.floats(-5, 5), st.floats(-5, 5))


@settings(max_examples=15)
@given(values=MAPS)
def test_is_the_formula(values):
    m, x = matrix(*values), images(1, 2, 6, 7)
    got = affine_warp(x, m, reach=reach_of(m))
    torch.testing.assert_close(got[0], by_formula(x[0], m[0]), rtol=1e-11, atol=1e-12)


@settings(max_examples=40)
@given(values=MAPS)
def test_the_gradient_is_the_adjoint(values):
    m = matrix(*values)
    x, g = images(1, 3, 9, 6, seed=1).requires_grad_(), images(1, 3, 9, 6, seed=2)
    y = affine_warp(x, m, reach=reach_of(m))
    (gradient,) = torch.autograd.grad(y, x, g)
    torch.testing.assert_close((gradient * x).sum(), (g * y).sum(), rtol=1e-11, atol=1e-12)


def test_gradcheck():
    m = torch.cat([matrix(1.1, 8, 0.3, -1.2), matrix(0.9, -20, 2.0, 0.5)])
    x = images(2, 1, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: affine_warp(v, m, reach=reach_of(m)), (x,))


def test_agrees_with_grid_sample():
    m, x = matrix(1.05, 7, 4.2, -3.1, torch.float32), images(1, 3, 20, 20, dtype=torch.float32)
    scaled = m * torch.tensor([1, 1, 2 / 20])
    expected = F.grid_sample(x, F.affine_grid(scaled, (1, 3, 20, 20), align_corners=False), align_corners=False)
    torch.testing.assert_close(affine_warp(x, m), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identity_to_the_bit(dtype):
    x = images(3, 3, 112, 96, dtype=dtype).requires_grad_()
    y = affine_warp(x, matrix(1, 0, 0, 0, dtype).expand(3, 2, 3))
    assert torch.equal(y, x)
    g = torch.randn(y.shape, dtype=dtype)
    assert torch.equal(torch.autograd.grad(y, x, g)[0], g)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -5), (-111, 2), (200, 0)])
def test_a_whole_pixel_translation_is_a_shift(right, down):
    x = images(1, 3, 112, 112, dtype=torch.float32)
    y = affine_warp(x, matrix(1, 0, -right, -down, torch.float32))
    expected = torch.zeros_like(x)
    rows, columns = range(112), range(112)
    kept_rows = [r for r in rows if 0 <= r - down < 112]
    kept_columns = [c for c in columns if 0 <= c - right < 112]
    for r in kept_rows:
        if kept_columns:
            expected[..., r, kept_columns] = x[..., r - down, [c - right for c in kept_columns]]
    assert torch.equal(y, expected)


def test_bits_do_not_depend_on_the_batch():
    n = 7
    x, g = images(n, 3, 33, 30, dtype=torch.float32), images(n, 3, 33, 30, seed=5, dtype=torch.float32)
    m = torch.cat([matrix(1 + 0.01 * i, 3 * i - 9, i - 3, 2 * i, torch.float32) for i in range(n)])

    def both(rows: list[int]) -> tuple[Tensor, Tensor]:
        leaf = x[rows].requires_grad_()
        y = affine_warp(leaf, m[rows], reach=1.5)
        return y.detach(), torch.autograd.grad(y, leaf, g[rows])[0]

    whole = both(list(range(n)))
    for rows in ([4], [6, 0, 3], [5, 4, 3, 2, 1, 0, 6]):
        for part, all_of in zip(both(rows), whole, strict=True):
            assert torch.equal(part, all_of[rows])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_is_kept_and_changes_no_bit(layout):
    x = images(2, 3, 12, 10, dtype=torch.float32)
    m = matrix(1.1, 5, 0.5, 0.5, torch.float32).expand(2, 2, 3)
    leaf = x.contiguous(memory_format=layout).requires_grad_()
    y = affine_warp(leaf, m)
    assert y.is_contiguous(memory_format=layout)
    assert torch.equal(y, affine_warp(x, m))
    (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    assert gradient.is_contiguous(memory_format=layout)


def test_refuses():
    x, m = images(2, 3, 8, 8), matrix(1, 0, 0, 0).expand(2, 2, 3)
    with pytest.raises(TypeError, match="images: expected torch.float32 or torch.float64, got torch.bfloat16"):
        affine_warp(x.bfloat16(), m)
    with pytest.raises(ValueError, match=r"images: expected shape \(N, C, H, W\), got \(3, 8, 8\)"):
        affine_warp(x[0], m)
    with pytest.raises(TypeError, match="matrices: expected torch.float64, like the images, got torch.float32"):
        affine_warp(x, m.float())
    with pytest.raises(ValueError, match=r"matrices: expected shape \(2, 2, 3\), got \(1, 2, 3\)"):
        affine_warp(x, m[:1])
    with pytest.raises(ValueError, match="reach: expected a positive number of pixels, got 0"):
        affine_warp(x, m, reach=0)
