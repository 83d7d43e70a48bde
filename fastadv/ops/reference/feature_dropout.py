"""Feature dropout in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.ops.reference import philox


def keep_mask(x: Tensor, ids: Tensor, seed: int | Tensor, tick: int | Tensor, layer: int, threshold: int) -> Tensor:
    """Which elements of the batch ``x`` are kept: those whose 16-bit draw is not below ``threshold``.

    Element ``e`` draws the lower (even ``e``) or the upper half of word ``e // 2``.
    """
    if not x.numel():
        return torch.ones_like(x, dtype=torch.bool)
    size = x[0].numel()
    words = philox.words(seed, ids, tick, layer, -(-size // 2))
    draws = torch.stack([words & 0xFFFF, words >> 16], dim=-1).flatten(1)[:, :size]
    return (draws >= threshold).view(x.shape)


def masked(x: Tensor, mask: Tensor, factor: float) -> Tensor:
    """``x * factor`` where ``mask``, else 0; float32 arithmetic for all types but float64."""
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.where(mask, wide * factor, torch.zeros((), dtype=wide.dtype, device=x.device))


def feature_dropout(
    x: Tensor, ids: Tensor, seed: int | Tensor, tick: int | Tensor, layer: int, threshold: int, factor: float
) -> Tensor:
    """See :func:`fastadv.ops.feature_dropout`."""
    return masked(x, keep_mask(x, ids, seed, tick, layer, threshold), factor).to(x.dtype)
