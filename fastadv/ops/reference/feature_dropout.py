"""Feature dropout in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

from torch import Tensor

from fastadv.ops.reference.mask import keep_mask, masked


def feature_dropout(
    x: Tensor, ids: Tensor, seed: int | Tensor, tick: int | Tensor, layer: int, threshold: int, factor: float
) -> Tensor:
    """See :func:`fastadv.ops.feature_dropout`."""
    return masked(x, keep_mask(x, ids, seed, tick, layer, threshold), factor).to(x.dtype)
