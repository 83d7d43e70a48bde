"""The mask of feature dropout in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.ops.reference import philox

DRAWS = 16  # of a Philox block


def keep_mask(
    x: Tensor, ids: Tensor | None, seed: int | Tensor, tick: int | Tensor, layer: int, threshold: int
) -> Tensor:
    """Which elements of the batch ``x`` are kept: those whose 16-bit draw is not below ``threshold``."""
    if ids is None or not x.numel():
        return torch.ones_like(x, dtype=torch.bool)
    size = x[0].numel()
    words = philox.words(seed, ids, tick, layer, 4 * -(-size // DRAWS), philox.MASK_ROUNDS)
    return (draws(words)[:, :size] >= threshold).view(x.shape)


def draws(words: Tensor) -> Tensor:
    r"""Sixteen draws of 16 bits from the four words of each block.

    With the bytes :math:`b_0, \dots, b_{15}` of a block, the lowest of a word first, draw k is
    :math:`2^8\,b_k + (b_{k \oplus 1} \oplus b_{(k \oplus 1) + 4 \bmod 16})`: any two draws of a block are independent.

    Args:
        words: ``(N, 4 * blocks)`` int64 in ``[0, 2**32)``.

    Returns:
        ``(N, 16 * blocks)`` int64 in ``[0, 2**16)``.
    """
    each = torch.stack([words >> 8 * k & 0xFF for k in range(4)], dim=-1).view(*words.shape[:-1], -1, DRAWS)
    beside = each.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)  # draw k: byte k ^ 1
    return (each << 8 | (beside ^ beside.roll(-4, -1))).flatten(-2)


def masked(x: Tensor, mask: Tensor, factor: float) -> Tensor:
    """``x * factor`` where ``mask``, else 0; float32 arithmetic for all types but float64."""
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.where(mask, wide * factor, torch.zeros((), dtype=wide.dtype, device=x.device))
