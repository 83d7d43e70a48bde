"""Timing and the machine's own limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_LARGE = 64 * 2**20  # float32 values: 256 MiB, beyond every cache


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one call: the median and two quantiles of many.

    Attributes:
        median: The middle.
        low: 20% are below.
        high: 20% are above.
        count: How many calls were timed.
    """

    median: float
    low: float
    high: float
    count: int


def _once(call: Callable[[], Any], device: str) -> float:
    if device.startswith("cuda"):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def timed(calls: Sequence[Callable[[], Any]], device: str, *, seconds: float = 1.0, least: int = 7) -> Times:
    """Time calls that do the same on different data, in turn, so that no cache stays warm on a GPU.

    Args:
        calls: At least one; each is run once before any is timed.
        device: ``"cpu"`` or ``"cuda"``: where the work happens.
        seconds: How long to go on.
        least: But at least so many calls.
    """
    for call in calls:
        call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    found: list[float] = []
    stop = time.perf_counter() + seconds
    while len(found) < least or (time.perf_counter() < stop and len(found) < 2000):
        found.append(_once(calls[len(found) % len(calls)], device))
    low, *_, high = statistics.quantiles(found, n=5)
    return Times(median=statistics.median(found), low=low, high=high, count=len(found))


def copy_bandwidth(device: str, *, seconds: float = 1.0) -> float:
    """Bytes read and written per second by a copy of 256 MiB."""
    source, target = torch.ones(_LARGE, device=device), torch.zeros(_LARGE, device=device)
    return 2 * 4 * _LARGE / timed([lambda: target.copy_(source)], device, seconds=seconds).median


def read_bandwidth(device: str, *, seconds: float = 1.0) -> float:
    """Bytes read per second by a sum over 256 MiB."""
    source = torch.ones(_LARGE, device=device)
    return 4 * _LARGE / timed([source.sum], device, seconds=seconds).median
