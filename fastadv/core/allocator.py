"""What a process frees stays its own, so that a pass of a network takes the memory that the last one gave back."""

from __future__ import annotations

import ctypes
import os
import platform

# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1  # bytes; of a single block and of what may lie idle
_SAID_ALREADY = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next pass, rather than give it back to the system.

    glibc returns every large block when it is freed and takes it again, page by page, for the next one: the activations
    of a network, some hundred MB at each evaluation. The commands of ``fastadv`` call this. A library does not change
    its host's allocator unasked, so who uses fastadv from Python decides. The process stays as large as it has been.

    Returns:
        Whether it was done: not where the C library is another than glibc, nor where an environment variable of glibc's
        (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_`` or ``GLIBC_TUNABLES``) says how the user wants it.
    """
    if any(name in os.environ for name in _SAID_ALREADY):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
