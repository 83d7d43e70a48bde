"""Timing, peaks of memory, and the machine's own limits.

On a GPU the calls are recorded as one CUDA graph and replayed, so that what is measured is the device's work; what the
host spends on a call is measured by itself.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastadv.models.capture import Captured

_LARGE = 64 * 2**20  # float32 values: 256 MiB, beyond every cache
_PROCESS = Path("/proc/self")
_MIB = 2.0**20


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one call: the median and two quantiles of many.

    Attributes:
        median: The middle.
        low: 20% are below.
        high: 20% are above.
        count: How many times were taken.
        host: On a GPU, the median that the host spends until a call returns, without waiting for the device.
    """

    median: float
    low: float
    high: float
    count: int
    host: float | None = None


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
    if not device.startswith("cuda"):
        return _times(_repeated(lambda k: _clock(calls[k % len(calls)]), seconds, least))
    host = _host(calls)
    together = _recorded(calls)
    _events(together)
    found = [spent / len(calls) for spent in _repeated(lambda k: _events(together), seconds, least)]
    return _times(found, host=host)


def _repeated(once: Callable[[int], float], seconds: float, least: int) -> list[float]:
    found: list[float] = []
    stop = time.perf_counter() + seconds
    while len(found) < least or (time.perf_counter() < stop and len(found) < 2000):
        found.append(once(len(found)))
    return found


def _times(found: Sequence[float], *, host: float | None = None) -> Times:
    low, *_, high = statistics.quantiles(found, n=5)
    return Times(median=statistics.median(found), low=low, high=high, count=len(found), host=host)


def _clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    """Wait for what a CUDA device was given to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _events(call: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _host(calls: Sequence[Callable[[], Any]]) -> float:
    found = []
    for k in range(30):
        torch.cuda.synchronize()
        found.append(_clock(calls[k % len(calls)]))
    torch.cuda.synchronize()
    return statistics.median(found)


def _recorded(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    def everything() -> None:
        for call in calls:
            call()

    return Captured(everything, warmup=1)


def launches(call: Callable[[], Any]) -> int | None:
    """How many kernels and copies one call starts on the GPU; None where the profiler sees none."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        call()
        torch.cuda.synchronize()
    return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in profile.events()) or None


def copy_bandwidth(device: str, *, seconds: float = 1.0) -> float:
    """Bytes read and written per second by a copy of 256 MiB."""
    source, target = torch.rand(_LARGE, device=device), torch.zeros(_LARGE, device=device)
    return 2 * 4 * _LARGE / timed([lambda: target.copy_(source)], device, seconds=seconds).median


def read_bandwidth(device: str, *, seconds: float = 1.0) -> float:
    """Bytes read per second by a sum over 256 MiB."""
    source = torch.rand(_LARGE, device=device)
    return 4 * _LARGE / timed([source.sum], device, seconds=seconds).median


def reset_peak(device: str) -> float | None:
    """MiB in use now, from where a peak is counted; None where the system does not say."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / _MIB
    with suppress(OSError, AttributeError):  # what was freed goes back to the system, so that it counts again
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        (_PROCESS / "clear_refs").write_text("5")
        return _status("VmRSS")
    except (OSError, StopIteration):
        return None


def peak(device: str, before: float | None) -> float | None:
    """MiB at the peak since ``reset_peak`` gave ``before``, less that."""
    if before is None:
        return None
    now = torch.cuda.max_memory_allocated(device) / _MIB if device.startswith("cuda") else _status("VmHWM")
    return now - before


def _status(name: str) -> float:
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))
