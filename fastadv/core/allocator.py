"""Keep freed memory in the process, so that the next pass of a network reuses the memory of the last one."""

from __future__ import annotations

import ctypes
import os
import platform

# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST = 2**31 - 1  # bytes: the largest block taken from the heap, and the free memory kept at its end
_SAID_ALREADY = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, instead of returning it to the system.

    By default glibc returns a large block to the system when it is freed, and the next block costs page faults again.
    The activations of a network are such blocks, some hundred MB at each evaluation. Threads that start later share the
    memory of the first thread: by default each has heaps of 64 MB of its own, which are returned when they are free.
    The commands of ``fastadv`` call this function; in Python you call it, before other threads start, since ``import
    fastadv`` does not change the allocator of your process. The process does not shrink afterwards.

    Returns:
        Whether the setting was changed. It is not where the C library is not glibc, or where the environment sets
        ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_ARENA_MAX`` or ``GLIBC_TUNABLES``.
    """
    if any(name in os.environ for name in _SAID_ALREADY):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    chosen = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _LARGEST), (_ARENA_MAX, 1))
    return all(mallopt(name, value) for name, value in chosen)
