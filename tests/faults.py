"""Faults at a change of the disk: the n-th one below a folder ends the process, fails, or is interrupted. Linux only.

A change is a new file, a file opened for writing, a write, an fsync, a rename, a removal, a folder made or removed, or
a file cut short. All but writes and fsyncs are found by the interpreter's audit events, whichever code makes them;
writes and fsyncs go through `os.write`, `os.fsync` and the file that `fastadv.core.files.replacing` opens.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# by audit event: what it is called, and where its arguments have the path and the descriptor of its folder
EVENTS = {
    "os.rename": ("rename", 1, 3),
    "os.remove": ("remove", 0, 1),
    "os.mkdir": ("mkdir", 0, 2),
    "os.rmdir": ("rmdir", 0, 1),
    "os.truncate": ("truncate", 0, None),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
KILLS, INTERRUPTS, ERRORS = ("kill", "half", "power"), ("interrupt", "twice"), ("full", "read-only", "memory")
FULL = ("open", "write", "mkdir")  # what needs room; a file that is opened may be a new one


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens, and when.

    Attributes:
        below: The folder whose changes are counted.
        kind: ``"none"``; ``"kill"`` before the change; ``"half"``, of a write after a half of it; ``"power"``: what was
            written since a file's last fsync is lost too, as in a power cut, whatever was renamed; ``"interrupt"``,
            Ctrl-C; ``"twice"``, another one at the next change; ``"full"``, no room from then on; ``"read-only"``, no
            change at all from then on; ``"memory"``, none left; ``"stall"``: threads that read ahead never get the file
            ``name``; ``"limit"``: the process may take only so many MiB more of memory.
        at: The number of the change, from 0, or of MiB.
        name: The end of a path, of ``"stall"``.
        log: A file for the changes: a JSON list of kind, place in the code and path, written at the end.
    """

    below: str
    kind: str = "none"
    at: int = -1
    name: str = ""
    log: str = ""


def install(fault: Fault) -> None:
    """Have it happen in this process, until its end."""
    disk = _Disk(fault)
    sys.addaudithook(disk.audit)
    os.write, os.fsync = disk.write, disk.fsync  # type: ignore[assignment]
    from fastadv.core import files
    from fastadv.data import stream

    def opened(path: Any, mode: str = "r", **how: Any) -> Any:
        return _Raw(disk, path, mode) if mode == "xb" else open(path, mode, **how)

    files.open = opened  # type: ignore[attr-defined]
    if fault.kind == "limit":
        import resource

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + fault.at * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    if fault.kind == "stall":
        stream._PATIENCE, stream._GRACE = 0.2, 0.5
    if fault.log:
        import atexit

        atexit.register(lambda: Path(fault.log).write_text(json.dumps(disk.changes)))


_write, _fsync = os.write, os.fsync


@dataclass(eq=False)
class _Disk:
    """Counts changes."""

    fault: Fault
    changes: list[tuple[str, str, str]] = field(default_factory=list)
    unsafe: dict[str, int] = field(default_factory=dict)  # by path: how much of a file a power cut leaves
    safe: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes | os.PathLike):
                return
            if isinstance(flags, int) and flags & WRITING:
                self.change("open", _path(path, None))
                self.opened(_path(path, None))
            elif self.fault.kind == "stall":
                self.stall(os.fsdecode(path))
        elif event in EVENTS:
            name, place, folder = EVENTS[event]
            path = _path(arguments[place], None if folder is None else arguments[folder])
            self.change(name, path)
            if name in ("rename", "remove"):
                self.moved(_path(arguments[0], arguments[2]) if name == "rename" else path, path)

    def stall(self, path: str) -> None:
        if path.endswith(self.fault.name) and threading.current_thread().name.startswith("fastadv-stream"):
            while True:
                time.sleep(3600)

    def write(self, descriptor: int, data: Any) -> int:
        return self.written(descriptor, data, _write)

    def written(self, descriptor: int, data: Any, write: Any) -> int:
        path = _path(descriptor, None)
        if self.change("write", path):
            write(descriptor, bytes(data)[: len(data) // 2])
            _die()
        with self.lock:
            self.unsafe.setdefault(path, self.safe.get(path, 0))
        return int(write(descriptor, data))

    def fsync(self, descriptor: int) -> None:
        path = _path(descriptor, None)
        self.change("fsync", path)
        _fsync(descriptor)
        with self.lock:
            self.unsafe.pop(path, None)
            self.safe[path] = os.fstat(descriptor).st_size

    def opened(self, path: str) -> None:
        """What a file of an earlier process holds is safe."""
        with self.lock:
            if path not in self.unsafe and os.path.isfile(path):
                self.safe.setdefault(path, os.stat(path).st_size)

    def moved(self, source: str, target: str) -> None:
        """A file gets another name, or none."""
        with self.lock:
            for sizes in (self.unsafe, self.safe):
                size = sizes.pop(source, None)
                sizes.pop(target, None)
                if size is not None and source != target:
                    sizes[target] = size

    def cut(self) -> None:
        """What a power cut leaves of the files."""
        for path, size in list(self.unsafe.items()):
            if path.startswith(self.fault.below) and os.path.isfile(path):
                os.truncate(path, min(size, os.stat(path).st_size))

    def change(self, name: str, path: str) -> bool:
        """Count it; whether it is a write of which a half is to be done."""
        if not path.startswith(self.fault.below):
            return False
        with self.lock:
            number = len(self.changes)
            self.changes.append((name, _place() if self.fault.log else "", path))
        kind, at = self.fault.kind, self.fault.at
        if at < 0 or number < at:
            return False
        if kind == "full" and name in FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *(() if name == "write" else (path,)))
        if kind == "read-only":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), *(() if name in ("write", "fsync") else (path,)))
        if number == at:
            if kind == "half" and name == "write":
                return True
            if kind == "power":
                self.cut()
            if kind in KILLS:
                _die()
            if kind == "memory":
                raise MemoryError
        if (kind in INTERRUPTS and number == at) or (kind == "twice" and number == at + 1):
            os.kill(os.getpid(), signal.SIGINT)
        return False


class _Raw(io.FileIO):
    """A new file whose writes are counted, whoever makes them."""

    def __init__(self, disk: _Disk, path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self._disk = disk

    def write(self, data: Any) -> int:  # type: ignore[override]
        return self._disk.written(self.fileno(), data, lambda _, part: super(_Raw, self).write(part))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)


def _path(place: Any, folder: int | None) -> str:
    """The absolute path of a path, relative to the folder of a descriptor, or of a descriptor."""
    if isinstance(place, int):
        try:
            return os.readlink(f"/proc/self/fd/{place}")
        except OSError:
            return ""
    start = os.getcwd() if folder is None or folder < 0 else os.readlink(f"/proc/self/fd/{folder}")
    return os.path.join(start, os.fsdecode(place))


def _place() -> str:
    """The two innermost functions of the package that are under way, the innermost first."""
    package = os.path.dirname(sys.modules["fastadv"].__file__ or "") + os.sep
    frame, found = sys._getframe(2), []
    while frame is not None and len(found) < 2:
        file = frame.f_code.co_filename
        if file.startswith(package) and not file.endswith(("core/files.py", "core/closing.py")):
            found.append(f"{file.removeprefix(package)}:{frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found)
