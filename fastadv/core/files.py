"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from fastadv.core.errors import FileError

TEMPORARY_SUFFIX = ".fastadv-tmp"


def is_temporary(name: str) -> bool:
    """Whether a file name is one that `write_atomically` uses before the final one."""
    return name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)


def naming(error: OSError, path: Path) -> FileError:
    """The same operating-system error with the file in its message (a full disk says nothing of the file)."""
    if error.errno is None:
        return FileError(f"{path}: {error}")
    return FileError(error.errno, error.strerror or os.strerror(error.errno), str(path))


def write_atomically(path: str | os.PathLike[str], data: bytes, *, fsync: bool = False) -> None:
    """Writes a file so that a reader, a crash or a full disk never sees a part of it; as `replacing`.

    Args:
        path: The final name; its folder must exist.
        data: The whole content.
        fsync: Wait until the bytes are on the disk (survives a power cut, costs milliseconds).

    Raises:
        OSError: With the file's name, for example when the disk is full.
    """
    with replacing(path, fsync=fsync) as file:
        write_all(file.fileno(), data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, fsync: bool = False) -> Iterator[FileIO]:
    """A temporary file of the same folder, which is renamed over `path` at the end of the `with` block.

    After any error, Ctrl-C included, the temporary file is gone and `path` is as it was.

    Args:
        path: The final name; its folder must exist.
        fsync: Wait until the bytes are on the disk.

    Raises:
        OSError: With the file's name, for example when the disk is full; also one of the block.
    """
    path = Path(path)
    # The temporary name does not contain the final one, which may be as long as the file system allows.
    temporary = path.parent / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    try:
        with open(temporary, "xb", buffering=0) as file:
            yield file
            if fsync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise naming(error, path) from error
        raise


def on_disk(path: str | os.PathLike[str]) -> None:
    """Wait until what a file holds is on the disk; on a read-only one it is.

    Raises:
        OSError: With the file's name.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno != errno.EROFS:
            raise naming(error, Path(path)) from error


def write_json(
    path: str | os.PathLike[str], value: object, *, indent: int | None = 1, strict: bool = False, fsync: bool = False
) -> None:
    """Writes a value as JSON with sorted keys, whole or not at all.

    Args:
        path: The file.
        value: Plain values.
        indent: Spaces of a level; None: everything in one line.
        strict: Refuse numbers that are not finite.
        fsync: Wait until the bytes are on the disk.

    Raises:
        ValueError, TypeError: The value is no JSON.
        OSError: With the file's name.
    """
    text = json.dumps(value, indent=indent, sort_keys=True, allow_nan=not strict)
    write_atomically(path, text.encode() + b"\n", fsync=fsync)


def write_all(descriptor: int, data: bytes) -> None:
    """`os.write` until everything is written: a call may take only a part of it."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(descriptor, view) :]


def remove_temporaries(folder: Path) -> None:
    """Remove what killed calls have left below a folder: temporary files and folders; nothing else is touched."""
    for place, folders, files in os.walk(folder):
        for name in filter(is_temporary, files):
            with contextlib.suppress(OSError):
                (Path(place) / name).unlink()
        for name in filter(is_temporary, folders):
            shutil.rmtree(Path(place) / name, ignore_errors=True)
        folders[:] = [name for name in folders if not is_temporary(name)]


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
