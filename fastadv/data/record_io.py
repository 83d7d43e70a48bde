"""MXNet's RecordIO, in which CASIA-WebFace, MS1M and Glint360K are published: read where it lies, without MXNet."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from fastadv.core.errors import RemoteError
from fastadv.core.places import is_file, open_binary
from fastadv.core.remote import to_path
from fastadv.data.alignment import Size
from fastadv.data.faces import SourceError
from fastadv.data.images import ImageError
from fastadv.data.landmarks import Landmarks, open_landmarks
from fastadv.data.packed import PackedFaces

_MAGIC = 0xCED7230A
_HEAD = struct.Struct("<II")  # the magic number; 3 bits that tell whole records from parts, 29 of the length
_IMAGE = struct.Struct("<IfQQ")  # number of labels behind it or 0, label, two ids
_MOST_LABELS = 1024
_MOST_BYTES = 1 << 29


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    size: int
    label: float


class RecordIO(PackedFaces):
    """The faces of a `.rec` file: images with a number for each person, found by offset in one pass.

    InsightFace's files begin with a record without an image, which holds the numbers of images and people, and end with
    a record for each person; both are left out. Names are "person/record", with the label in at least six digits and
    the record's number: of the `.idx` file beside the `.rec` where there is one, else counted from 0. The images are
    taken as aligned.

    Attributes:
        file: The file.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        *,
        size: Size | None = 112,
        landmarks: str | os.PathLike[str] | Landmarks | None = None,
        template: ArrayLike | None = None,
    ) -> None:
        """Reads the heads of all records; no image is decoded yet.

        Args:
            file: The `.rec` file, or the `.idx` file beside it.
            size: Side of the images that are given, in pixels, or their height and width; None for what is in the file.
            landmarks: Five points per name: a file or a mapping; None for images that are aligned.
            template: Where they go, as of `FaceSource`.

        Raises:
            SourceError: A file is missing, no RecordIO, damaged or cut short, or holds no images.
        """
        self.file = to_path(file).with_suffix(".rec")
        if not is_file(self.file):
            raise SourceError(f"{self.file}: {'this is not a file' if self.file.exists() else 'there is no such file'}")
        try:
            self._places = dict(_images(self.file))
        except OSError as error:
            raise SourceError(f"{self.file}: cannot be read: {error.strerror or error}") from error
        if not self._places:
            raise SourceError(f"{self.file}: expected records with an image, got none")
        super().__init__(
            ((name, self.file) for name in self._places),
            self._bytes,
            size=size,
            landmarks=open_landmarks(landmarks),
            template=template,
        )

    def _bytes(self, name: str) -> bytes:
        place = self._places[name]
        try:
            with open_binary(self.file, block=0) as file:
                file.seek(place.offset)
                return file.read(place.size)
        except RemoteError:
            raise
        except OSError as error:
            raise ImageError(f"{self.path(name)}: cannot be read: {error.strerror or error}") from error


def _images(path: Path) -> Iterator[tuple[str, _Place]]:
    keys = _keys(path.with_suffix(".idx"))
    with open_binary(path) as file:
        for number, (offset, place) in enumerate(_records(path, file)):
            if keys is not None and offset not in keys:
                raise SourceError(f"{path}: the record at {offset} is not in {path.with_suffix('.idx').name}")
            if place is None:
                continue
            key = number if keys is None else keys[offset]
            yield f"{int(place.label):06d}/{key:08d}", place


def _records(path: Path, file: BinaryIO) -> Iterator[tuple[int, _Place | None]]:
    """The offset of each record, and where its image lies; None for a record without one."""
    end = file.seek(0, os.SEEK_END)
    at = 0
    while at < end:
        length = _length(path, file, at, end)
        file.seek(at + _HEAD.size)
        head = file.read(min(length, _IMAGE.size))
        place = None
        if len(head) == _IMAGE.size:
            count, label, *_ = _IMAGE.unpack(head)
            begin = _IMAGE.size + 4 * count
            if count and count <= _MOST_LABELS and begin <= length:
                label = float(np.frombuffer(file.read(4 * count), "<f4")[0])
            if length > begin:
                if not (0 <= label < 1 << 24 and label == int(label)):
                    raise SourceError(f"{path}: the record at {at}: expected a number of a person, got {label:g}")
                place = _Place(at + _HEAD.size + begin, length - begin, label)
        yield at, place
        at += _HEAD.size + length + -length % 4


def _length(path: Path, file: BinaryIO, at: int, end: int) -> int:
    """The length of the record at a place."""
    file.seek(at)
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise SourceError(f"{path}: cut short: {len(head)} bytes at {at}")
    magic, packed = _HEAD.unpack(head)
    if magic != _MAGIC:
        what = "not a RecordIO file" if at == 0 else f"damaged: no record at {at}"
        raise SourceError(f"{path}: {what}")
    kind, length = packed >> 29, packed & (_MOST_BYTES - 1)
    if kind:
        raise SourceError(f"{path}: the record at {at} is split in parts, which are not read; write the file again")
    if at + _HEAD.size + length > end:
        raise SourceError(f"{path}: cut short: the record at {at} has {length} bytes")
    return length


def _keys(path: Path) -> dict[int, int] | None:
    """The numbers of the records by their offsets; None where there is no `.idx` file."""
    if not is_file(path):
        return None
    keys: dict[int, int] = {}
    try:
        for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
            fields = line.split()
            if len(fields) != 2 or not all(field.isdecimal() and len(field) < 19 for field in fields):
                raise SourceError(f"{path}:{number}: expected the number and the offset of a record, got {line[:60]!r}")
            keys[int(fields[1])] = int(fields[0])
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
    return keys
