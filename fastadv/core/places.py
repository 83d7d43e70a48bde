"""Files by path or URL: all code that reads or lists data uses these functions, or a `RemotePath`.

A local path is used as it is. A URL (``s3://bucket/faces``, ``https://host/shard.tar``) is read by the file system that
fsspec has for it, whose options and credentials come from its own environment variables. A password or query in a URL
is sent to the server, and never shown.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from fastadv.core.errors import Error
from fastadv.core.files import write_atomically
from fastadv.core.remote import Ranges, RemotePath, is_remote, to_path

CONNECTIONS = 16  # requests at a time
_BLOCK = 4 * 2**20  # bytes that are fetched at once from a file that is read on


class Entry(Protocol):
    """An entry of a folder: an `os.DirEntry`, or its equivalent at a URL."""

    @property
    def name(self) -> str: ...

    def is_dir(self) -> bool: ...

    def is_file(self) -> bool: ...

    def is_symlink(self) -> bool: ...


Scan = Callable[[Path], AbstractContextManager[Iterable[Entry]]]


@dataclass(frozen=True, slots=True)
class _RemoteEntry:
    name: str
    folder: bool = False

    def is_dir(self) -> bool:
        return self.folder

    def is_file(self) -> bool:
        return not self.folder

    def is_symlink(self) -> bool:
        return False


def open_binary(path: str | os.PathLike[str], *, block: int = _BLOCK) -> BinaryIO:
    """Open a file for reading, with random access.

    Args:
        path: Its path or URL.
        block: Bytes of one request to a URL; 0: one request for each read, which must not go beyond the end.

    Raises:
        OSError: It cannot be read; for a URL, raised by the first read.
    """
    path = to_path(path)
    if not isinstance(path, RemotePath):
        return open(path, "rb")
    raw = Ranges(path, exact=not block)
    return cast(BinaryIO, io.BufferedReader(raw, block) if block else raw)


def length(file: BinaryIO) -> int:
    """The size of an open file in bytes; its position is then the beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def scanner(root: Path) -> Scan:
    """A function that lists a folder below a root: `os.scandir`, or the result of one listing of a whole URL."""
    if not isinstance(root, RemotePath):
        return os.scandir
    folders, depth = root.tree(), len(root.parts)

    def scan(folder: Path) -> AbstractContextManager[Iterable[Entry]]:
        held = folders.get("/".join(folder.parts[depth:]), {})
        return nullcontext([_RemoteEntry(name, is_folder) for name, is_folder in held.items()])

    return scan


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file; False for a name that no file can have."""
    found = to_path(path)
    return found.is_file() if is_remote(found) else os.path.isfile(found)


def not_files(paths: Iterable[Path]) -> list[Path]:
    """The paths at which there is no file, in their order."""
    paths = list(paths)
    if not any(map(is_remote, paths)):
        return [path for path in paths if not os.path.isfile(path)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        there = pool.map(lambda path: path.is_file(), paths)
        return [path for path, found in zip(paths, there, strict=True) if not found]


@contextlib.contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """The file itself, or a copy of the file at a URL in a temporary folder, which the end of the block removes.

    The message of an `Error` that the block raises names the URL.
    """
    path = to_path(path)
    if not isinstance(path, RemotePath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="fastadv-") as folder:
        file = Path(folder, path.name)
        path.copy_to(file)
        try:
            yield file
        except Error as error:
            error.args = tuple(
                each.replace(str(file), str(path)) if isinstance(each, str) else each for each in error.args
            )
            raise


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file or folder at a path or URL."""
    return to_path(path).exists()


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that is either whole or absent: at a path by renaming, in an object store as one object.

    Missing folders are made. A file system without objects (SFTP) may leave a part of a file when it fails.

    Raises:
        OSError: It cannot be written; with the file's name or URL.
    """
    path = to_path(path)
    if isinstance(path, RemotePath):
        path.write_bytes(data)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a file if it exists; the errors are those of `write_bytes`."""
    to_path(path).unlink(missing_ok=True)
