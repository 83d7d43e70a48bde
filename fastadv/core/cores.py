"""How many threads may work at a time."""

from __future__ import annotations

import os

_MOST = 8  # images are read and written; more threads would wait for each other


def workers() -> int:
    """Threads for reading and writing images: as many as the process has cores, two at least and eight at most."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(_MOST, found))
