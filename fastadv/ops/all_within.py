"""Whether every number of a tensor lies in an interval: the check of every batch of images that comes from outside."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.ops import native_only


def all_within(values: Tensor, low: float, high: float, *, backend: str | None = None) -> bool:
    """Whether all numbers are in [low, high], so that none is NaN; waits for a device.

    On a CPU one compiled call for dense and aligned float32, whatever the backend PyTorch operations for the others.

    Args:
        values: of any shape, floating point.
        low: a number that float32 holds.
        high: the same.
        backend: ``"reference"`` or ``"cpu"``; None for the fastest that can run.

    Raises:
        ValueError: The backend is another.
        BackendUnavailable: The backend that was named cannot run here.
    """
    dense = values.dtype is torch.float32 and (
        values.is_contiguous() or (values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last))
    )
    compiled = native_only.chosen("cpu_all_within", "all_within", (values,), backend)
    if compiled and dense and values.data_ptr() % 4 == 0:  # a tensor over a file's bytes may begin at any of them
        size = values.numel()
        return bool(_native.module().cpu_all_within(values.data_ptr(), size, low, high, *backends.on_cpu()))
    if not values.numel():
        return True
    ends = torch.aminmax(values.detach())
    # one wait for a device; on a CPU two numbers cost less than a third operation
    least, most = torch.stack(ends).tolist() if values.device.type != "cpu" else (ends[0].item(), ends[1].item())
    return bool(least >= low and most <= high)
