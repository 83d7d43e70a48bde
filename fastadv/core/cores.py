"""How many threads may work at a time, and where."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

_MOST = 8  # images are read and written; more threads would wait for each other
_THREADS = "OMP_NUM_THREADS"
_TOPOLOGY = Path("/sys/devices/system/cpu")


def workers() -> int:
    """Threads for reading and writing images: as many as the process has cores, two at least and eight at most."""
    return max(2, min(_MOST, len(own_cores())))


def own_cores() -> list[int]:
    """The cores that the process may use, those that share a physical core side by side."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0), key=lambda core: (*_place(core), core))


def shares(count: int) -> list[list[int]]:
    """The process's cores in ``count`` disjoint parts of one size; what does not divide stays unused."""
    cores = own_cores()
    size = len(cores) // count
    return [cores[k * size : (k + 1) * size] for k in range(count)]


@contextmanager
def given_to_children(cores: Collection[int] | None, threads: int) -> Iterator[None]:
    """Let processes that are started inside run on these cores only, where the system can do so, with so many threads.

    Args:
        cores: Of the calling thread, whose place a child takes; None: all that it has.
        threads: PyTorch's.
    """
    before = os.environ.get(_THREADS)
    pinned = os.sched_getaffinity(0) if cores is not None and hasattr(os, "sched_setaffinity") else None
    os.environ[_THREADS] = str(threads)
    try:
        if pinned is not None and cores is not None:
            os.sched_setaffinity(0, cores)
        yield
    finally:
        if pinned is not None:
            os.sched_setaffinity(0, pinned)
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before


def _place(core: int) -> tuple[int, int]:
    """Socket and physical core; the same for all where the system does not say it."""
    try:
        files = (_TOPOLOGY / f"cpu{core}" / "topology" / name for name in ("physical_package_id", "core_id"))
        package, physical = (int(file.read_text()) for file in files)
    except (OSError, ValueError):
        return 0, 0
    return package, physical
