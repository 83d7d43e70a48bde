"""One writer at a time."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl


class FolderLock:
    """An advisory lock on a folder, held by the process until `release` or its end, however it ends."""

    def __init__(self, path: Path) -> None:
        """Takes the lock.

        Args:
            path: The lock file; made here and removed by `release`.

        Raises:
            BlockingIOError: Somebody holds it.
            OSError: The file cannot be made.
        """
        self._path = path
        self._descriptor: int | None = None
        while self._descriptor is None:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if sys.platform != "win32":
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder before may have removed the file between our open and our lock.
                if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)

    def release(self) -> None:
        """Removes the lock file and gives the lock up; a second call does nothing."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = None
