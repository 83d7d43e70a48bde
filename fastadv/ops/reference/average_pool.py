"""Average pooling in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor


def average_pool(maps: list[Tensor]) -> Tensor:
    """See :func:`fastadv.ops.average_pool`; the means of all maps in one row per image."""
    return torch.cat([value.mean((2, 3), dtype=torch.float32) for value in maps], dim=1)
