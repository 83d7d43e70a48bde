"""Whether there is memory for a call into a library."""

from __future__ import annotations

import mmap


def require_memory(size: int) -> None:
    """Check that the process may map ``size`` bytes more, without touching them.

    For a call into a library that, refused memory, ends the process or does not return.

    Raises:
        MemoryError: It may not.
    """
    try:
        mmap.mmap(-1, size).close()
    except OSError as error:
        raise MemoryError(f"expected {size} bytes more, got none: {error.strerror}") from error
