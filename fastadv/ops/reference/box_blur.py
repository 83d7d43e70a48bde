"""The 3 x 3 mean filter in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor


def _sum3(x: Tensor, dim: int) -> Tensor:
    """The sum of each slice along ``dim`` and its two neighbours; the border is repeated."""
    size = x.shape[dim]
    at = torch.arange(-1, size + 1, device=x.device).clamp(0, max(size - 1, 0))
    padded = x.index_select(dim, at)
    before, here, after = (padded.narrow(dim, start, size) for start in (0, 1, 2))
    return (before + here) + after


def box_blur(x: Tensor) -> Tensor:
    """See :func:`fastadv.ops.box_blur`."""
    if not x.numel():
        return x.clone()
    wide = x if x.dtype == torch.float64 else x.float()
    nine = torch.full((), 9, dtype=wide.dtype, device=x.device)  # a number would be divided by as a product on CUDA
    return (_sum3(_sum3(wide, 2), 3) / nine).to(x.dtype)
