"""Arithmetic on one number or one row an image, without temporaries of the images' size.

Attacks see their images as rows ``(N, D)`` in memory order, so that a factor an image broadcasts along contiguous
memory in any layout. Every sum is over one row in a fixed order: its bits do not depend on the other rows, nor on
how many there are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.core.errors import ArgumentError


def as_rows(images: Tensor) -> Tensor:
    """A view ``(N, D)`` of dense images ``(N, C, H, W)``, in memory order.

    Raises:
        ValueError: The images are neither contiguous nor channels-last.
    """
    if images.is_contiguous():
        return images.view(len(images), -1)
    if images.is_contiguous(memory_format=torch.channels_last):
        return images.permute(0, 2, 3, 1).view(len(images), -1)
    raise ArgumentError(f"images: expected contiguous or channels-last ones, got strides {images.stride()}")


def rows_like(images: Tensor, model: Tensor) -> Tensor:
    """``images`` as rows in the memory order of ``model``; copied where their own is another."""
    if images.stride() == model.stride():
        return as_rows(images)
    return as_rows(torch.empty_like(model).copy_(images))


def column(values: Tensor) -> Tensor:
    """``(N,)`` to ``(N, 1)``, to broadcast over rows."""
    return values[:, None]


def _thirds(rows: Tensor) -> Tensor:
    """``(N, D)`` as ``(N, 3, D / 3)``, for sums in two steps: a single row as a whole would be cut among threads."""
    rest = -rows.shape[1] % 3
    return (F.pad(rows, (0, rest)) if rest else rows).view(len(rows), 3, -1)


def row_sum(rows: Tensor) -> Tensor:
    """The sum of each row ``(N, D)``; float32 and bool rows give float32 and int64."""
    return _thirds(rows).sum(2).sum(1)


def row_norm(rows: Tensor, order: float = 2.0) -> Tensor:
    """The L1 or L2 norm of each row."""
    parts = torch.linalg.vector_norm(_thirds(rows), order, dim=2)
    return torch.linalg.vector_norm(parts, order, dim=1)


def row_dot(a: Tensor, b: Tensor, *, work: Tensor) -> Tensor:
    """The product of each row of ``a`` with that of ``b``; ``work`` is written over."""
    return row_sum(torch.mul(a, b, out=work))


def put_where(into: Tensor, mask: Tensor, rows: Tensor) -> None:
    """Copy the rows that the mask ``(N,)`` names, in place."""
    torch.where(column(mask), rows, into, out=into)
