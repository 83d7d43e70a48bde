"""Dropout, affine map and PReLU in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.ops.reference.feature_dropout import keep_mask, masked


def feature_dropout_bn_prelu(
    x: Tensor,
    grad: Tensor | None,
    ids: Tensor,
    seed: int | Tensor,
    tick: int | Tensor,
    layer: int,
    threshold: int,
    factor: float,
    scale: Tensor,
    shift: Tensor,
    slope_each: Tensor | None,
    slope: float,
) -> Tensor:
    """See :func:`fastadv.ops.feature_dropout_bn_prelu`; with ``grad``, the gradient with respect to ``x``."""
    mask = keep_mask(x, ids, seed, tick, layer, threshold)
    value = masked(x, mask, factor)
    along_channels = (1, -1, *(1,) * (x.dim() - 2))
    scale, shift = scale.view(along_channels), shift.view(along_channels)
    each = torch.full((1,), slope, dtype=scale.dtype, device=x.device) if slope_each is None else slope_each
    each = each.view(along_channels)
    made = scale * value + shift
    if grad is None:
        return torch.where(made > 0, made, each * made).to(x.dtype)
    wide = grad.to(value.dtype)
    return masked(torch.where(made > 0, wide, each * wide) * scale, mask, factor).to(x.dtype)
