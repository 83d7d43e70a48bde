"""One writer at a time."""

from __future__ import annotations

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout


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
        self._lock = FileLock(path, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise BlockingIOError(f"{path}: held by another process") from error

    def release(self) -> None:
        """Removes the lock file and gives the lock up; a second call does nothing."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._lock.release()
