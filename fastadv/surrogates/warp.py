"""A bilinear affine warp whose result and gradient have the same bits in any slot, batch and run."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError

_MARGIN = 1e-3  # pixels; the float32 rounding of a coordinate is far below it


def affine_warp(images: Tensor, matrices: Tensor, *, reach: float = 1.0) -> Tensor:
    r"""Resample every image under its own affine map, bilinearly, with zeros outside the image.

    The pixel at :math:`o` of the result is read at :math:`s = A(o - c) + b + c` of the image, with :math:`(A\,|\,b)`
    the image's matrix, coordinates ``(x, y)`` in pixels and the centre :math:`c = ((W - 1)/2, (H - 1)/2)`:

    .. math:: y_o = \sum_i x_i\,\max(0, 1 - |s_x - i_x|)\,\max(0, 1 - |s_y - i_y|)

    The identity and whole-pixel translations give exact copies. The backward pass collects for every pixel what it gave
    to its neighbours, rather than scattering: nothing is added atomically, so a GPU repeats its bits too (that of
    ``torch.nn.functional.grid_sample`` does not). The gradient goes to the images only, and once.

    Args:
        images: ``(N, C, H, W)``, float32 or float64.
        matrices: ``(N, 2, 3)``, of the type and device of the images, invertible in the left 2×2 part.
        reach: At least the largest absolute row sum of the inverse of ``A``: how far in pixels, along either axis, a
            pixel of the image can spread. The backward pass takes ``ceil(2 * reach)`` candidates squared; a reach that
            is too small loses parts of the gradient.

    Returns:
        ``(N, C, H, W)`` in the layout and type of the images.

    Raises:
        TypeError: The images are not float32 or float64, or the matrices not like them.
        ValueError: A shape or ``reach`` is wrong.
    """
    if images.dtype not in (torch.float32, torch.float64):
        raise ArgumentTypeError(f"images: expected torch.float32 or torch.float64, got {images.dtype}")
    if images.dim() != 4:
        raise ArgumentError(f"images: expected shape (N, C, H, W), got {tuple(images.shape)}")
    if matrices.dtype != images.dtype:
        raise ArgumentTypeError(f"matrices: expected {images.dtype}, like the images, got {matrices.dtype}")
    if matrices.shape != (len(images), 2, 3):
        raise ArgumentError(f"matrices: expected shape {(len(images), 2, 3)}, got {tuple(matrices.shape)}")
    if not (math.isfinite(reach) and reach > 0):
        raise ArgumentError(f"reach: expected a positive number of pixels, got {brief(reach)}")
    return _Warp.apply(images, matrices.detach(), reach)


class _Warp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, matrices: Tensor, reach: float) -> Tensor:
        ctx.save_for_backward(matrices)
        ctx.reach = reach
        x, y = _mapped(matrices, *_grid(images))
        left, top = x.floor(), y.floor()
        taps = _square(2, matrices)
        return _collected(images, (left, top), (x - left, y - top), (-taps[0], -taps[1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (matrices,) = ctx.saved_tensors
        columns, rows = _grid(gradient)
        # Where a pixel came out; the first pixel of the result that may have read it; how far off that one read.
        x, y = _mapped(_inverse(matrices), columns, rows)
        half = ctx.reach + _MARGIN
        left, top = (x - half).floor() + 1, (y - half).floor() + 1
        x, y = _mapped(matrices, left, top)
        right, down = _square(math.ceil(2 * half), matrices)
        a = matrices.view(-1, 6, 1).unbind(1)
        steps = (a[0] * right + a[1] * down, a[3] * right + a[4] * down)
        return _collected(gradient, (left, top), (x - columns, y - rows), steps), None, None


_Pair = tuple[Tensor, Tensor]


def _grid(images: Tensor) -> _Pair:
    """The columns and the rows of the pixels, ``(N, H, W)``."""
    n, _, height, width = images.shape
    columns = torch.arange(width, dtype=images.dtype, device=images.device)
    rows = torch.arange(height, dtype=images.dtype, device=images.device).view(-1, 1)
    return columns.expand(n, height, width), rows.expand(n, height, width)


def _square(size: int, like: Tensor) -> _Pair:
    """The steps from one pixel to those of a square that begins there, ``(1, size * size)`` to the right and down."""
    steps = torch.arange(size * size, dtype=like.dtype, device=like.device)[None]
    down = torch.floor(steps / size)
    return steps - size * down, down


def _mapped(matrices: Tensor, x: Tensor, y: Tensor) -> _Pair:
    """``A (p - c) + b + c`` for the points ``p = (x, y)``, ``(N, H, W)``."""
    height, width = x.shape[1:]
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    a = matrices.view(-1, 6, 1, 1).unbind(1)
    x, y = x - centre_x, y - centre_y
    # No fused forms: vector and scalar code would round differently, and a pixel may meet either.
    return a[0] * x + a[1] * y + (a[2] + centre_x), a[3] * x + a[4] * y + (a[5] + centre_y)


def _inverse(matrices: Tensor) -> Tensor:
    """The matrices of the inverse maps."""
    a, b, c, d, e, f = matrices.double().view(-1, 6).unbind(1)
    inverse = (e, -b, b * f - c * e, -d, a, c * d - a * f)
    return (torch.stack(inverse, 1) / (a * e - b * d)[:, None]).view(-1, 2, 3).to(matrices.dtype)


def _collected(values: Tensor, corner: _Pair, off: _Pair, steps: _Pair) -> Tensor:
    """Sums of the pixels of a square, weighted by ``hat(off + step)`` along both axes.

    Args:
        values: ``(N, C, H, W)``, zero outside.
        corner: Column and row of the first pixel of each square, ``(N, H, W)``.
        off: The distances of that one, ``(N, H, W)``.
        steps: What each of the K pixels adds to the distances, ``(N or 1, K)``.
    """
    n, channels, height, width = values.shape
    count = steps[0].shape[1]
    border = size = math.isqrt(count)
    # A border of zeros that holds a whole square, to which those that lie outside are moved.
    padded = values.new_zeros(n, height + 2 * border, width + 2 * border, channels)
    padded[:, border:-border, border:-border] = values.permute(0, 2, 3, 1)
    stride = width + 2 * border
    place = (corner[1].clamp(-size, height) + border) * stride + (corner[0].clamp(-size, width) + border)
    first = torch.arange(n, dtype=torch.int32, device=values.device) * (stride * (height + 2 * border))
    down = torch.arange(size, dtype=torch.int32, device=values.device)
    taps = (down.view(-1, 1) * stride + down).flatten()
    index = (place.int() + first.view(n, 1, 1)).unsqueeze(-1) + taps  # int32: half of int64's traffic
    weight = _hat(off[0].unsqueeze(-1) + steps[0].view(-1, 1, 1, count))
    weight *= _hat(off[1].unsqueeze(-1) + steps[1].view(-1, 1, 1, count))
    rows = functional.embedding_bag(
        index.view(-1, count), padded.view(-1, channels), per_sample_weights=weight.view(-1, count), mode="sum"
    )
    made = rows.view(n, height, width, channels).permute(0, 3, 1, 2)
    return made if values.stride() == made.stride() else torch.empty_like(values).copy_(made)


def _hat(distance: Tensor) -> Tensor:
    """``max(0, 1 - |distance|)``, in place."""
    return distance.abs_().neg_().add_(1).clamp_(min=0)
