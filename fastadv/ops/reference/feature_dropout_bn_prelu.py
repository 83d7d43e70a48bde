"""Dropout, affine map and PReLU in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.ops.reference.mask import keep_mask, masked


def feature_dropout_bn_prelu(
    x: Tensor,
    grad: Tensor | None,
    ids: Tensor | None,
    seed: int | Tensor,
    tick: int | Tensor,
    layer: int,
    threshold: int,
    factor: float,
    scale: Tensor,
    shift: Tensor,
    slope_each: Tensor | None,
    slope: float,
    ceiling: float | None,
    from_result: bool,
) -> Tensor:
    """See :func:`fastadv.ops.feature_dropout_bn_prelu`; with ``grad``, the gradient with respect to its ``x``.

    Then ``x`` is what the forward pass saw, or, ``from_result``, what it made.
    """
    mask = keep_mask(x, ids, seed, tick, layer, threshold)
    along_channels = (1, -1, *(1,) * (x.dim() - 2))
    scale, shift = scale.view(along_channels), shift.view(along_channels) if shift.dim() == 1 else shift
    relu = slope_each is None and slope == 0  # as torch's, a select: 0 of minus infinity too, and a NaN stays one
    each = torch.full((1,), slope, dtype=scale.dtype, device=x.device) if slope_each is None else slope_each
    each = each.view(along_channels)
    value = masked(x, mask, factor)
    if from_result and grad is not None:
        inner = made = x.to(value.dtype)
    else:
        inner = scale * value + shift
        made = torch.where(inner <= 0, 0.0, inner) if relu else torch.where(inner > 0, inner, each * inner)
    if grad is None:
        return (made if ceiling is None else torch.where(made > ceiling, ceiling, made)).to(x.dtype)
    wide = grad.to(value.dtype)
    passed = torch.where(inner <= 0, 0.0, wide) if relu else torch.where(inner > 0, wide, each * wide)
    if ceiling is not None:
        passed = torch.where(made >= ceiling, 0.0, passed)
    return masked(passed * scale, mask, factor).to(x.dtype)
