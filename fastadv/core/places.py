"""Files by their path or URL: everything that reads or lists data goes through here, or through a `RemotePath`.

A path stays what it is. A URL (``s3://bucket/faces``, ``https://host/shard.tar``, any file system of fsspec) is one
whose questions that file system answers. Its options, credentials among them, come from its own environment variables;
a password or a query in a URL is sent, and never shown.
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
    """What a folder holds: an `os.DirEntry`, or the same of a URL."""

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
    """A file, open for reading at any place.

    Args:
        path: Its path or URL.
        block: Of a URL, the bytes that are fetched at once; 0: each read fetches what it asks for, which must be there.

    Raises:
        OSError: It cannot be read; of a URL, when it is read.
    """
    path = to_path(path)
    if not isinstance(path, RemotePath):
        return open(path, "rb")
    raw = Ranges(path, exact=not block)
    return cast(BinaryIO, io.BufferedReader(raw, block) if block else raw)


def length(file: BinaryIO) -> int:
    """The bytes of an open file, which is then at its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def scanner(root: Path) -> Scan:
    """What lists a folder below a root: `os.scandir`, or what one listing of everything below a URL has found."""
    if not isinstance(root, RemotePath):
        return os.scandir
    folders, depth = root.tree(), len(root.parts)

    def scan(folder: Path) -> AbstractContextManager[Iterable[Entry]]:
        held = folders.get("/".join(folder.parts[depth:]), {})
        return nullcontext([_RemoteEntry(name, is_folder) for name, is_folder in held.items()])

    return scan


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file; a name that no file can have is none."""
    found = to_path(path)
    return found.is_file() if is_remote(found) else os.path.isfile(found)


def not_files(paths: Iterable[Path]) -> list[Path]:
    """Those of some paths where there is no file, in their order."""
    paths = list(paths)
    if not any(map(is_remote, paths)):
        return [path for path in paths if not os.path.isfile(path)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        there = pool.map(lambda path: path.is_file(), paths)
        return [path for path, found in zip(paths, there, strict=True) if not found]


@contextlib.contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """The file itself, or that of a URL in a temporary folder, which is gone at the end of the `with` block.

    An `Error` of the block names the URL.
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
    """Write a file whole: at a path by renaming, in an object store as one object, which nobody sees before its end.

    Folders above are made. A file system without such objects (SFTP) may leave a part of a file when it breaks off.

    Raises:
        OSError: With the file's name or URL.
    """
    path = to_path(path)
    if isinstance(path, RemotePath):
        path.write_bytes(data)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a file, if it is there; raises as `write_bytes`."""
    to_path(path).unlink(missing_ok=True)
