"""The two memory orders that the kernels walk: contiguous, and channels-last. Others are copied."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` lies in memory as (N, H, W, C), and not also as (N, C, H, W)."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def readable(x: Tensor) -> Tensor:
    """``x`` itself where it is contiguous or channels-last, else a contiguous copy."""
    return x if is_channels_last(x) else x.contiguous()


def empty(x: Tensor, *_: object) -> Tensor:
    """A new tensor that lies in memory as ``readable(x)`` does, whatever else an operation takes."""
    order = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=order)


def sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Images, channels, pixels of a channel, and 1 where ``readable(x)`` is channels-last."""
    channels = x.shape[1] if x.dim() > 1 else 1
    return x.shape[0], channels, math.prod(x.shape[2:]), int(is_channels_last(x))


def arranged(made: Tensor, out: Tensor) -> Tensor:
    """``made`` where it lies in memory as ``out`` does, else ``out`` with its values."""
    return made if made.stride() == out.stride() else out.copy_(made)
