"""The bytes of image files, at a path or a URL."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastadv.core.errors import Error, RemoteError
from fastadv.core.places import length, open_binary
from fastadv.core.remote import RemotePath, to_path
from fastadv.data.formats import HEAD

MAX_BYTES = 256 * 2**20


class ImageError(Error, ValueError):
    """A file that is not a usable image; the message names the file and the reason."""


def read_head(path: str | os.PathLike[str]) -> bytes:
    """The first bytes of a file, for `sniff`; none where it cannot be read.

    Raises:
        RemoteError: Of a URL.
    """
    try:
        with open_binary(path, block=HEAD) as file:
            return file.read(HEAD)
    except RemoteError:
        raise
    except (OSError, ValueError):
        return b""


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of an image file; refuses what is no plain file or is larger than `MAX_BYTES`.

    Raises:
        ImageError, RemoteError: With the path and the reason.
    """
    path = to_path(path)
    with open_file(path) as file:
        # A bounded read takes its bound from the allocator first: the file's own size keeps that small.
        size = length(file)
        if size > MAX_BYTES:
            raise ImageError(f"{path}: expected at most {MAX_BYTES // 2**20} MiB, got more")
        data = file.read(size)
    if not data:
        raise ImageError(f"{path}: expected an image file, got an empty one")
    return data


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """An image file, open for reading; what the operating system refuses, here or inside, names the file.

    Raises:
        ImageError: It cannot be read, or is no plain file.
        RemoteError: The file system of a URL refuses or breaks off, which says nothing of the image.
    """
    try:
        if isinstance(path, RemotePath):
            yield io.BytesIO(path.fetch(0, MAX_BYTES + 1))
            return
        if path.is_dir():
            raise ImageError(f"{path}: expected an image file, got a folder")
        if path.exists() and not path.is_file():
            raise ImageError(f"{path}: expected an image file, got something that is not a plain file")
        with open(path, "rb") as file:
            yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        if isinstance(error, (ImageError, RemoteError)):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"{path}: cannot be read: {reason}") from error
