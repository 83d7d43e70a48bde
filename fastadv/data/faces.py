"""A face, and what every source of faces shares."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.core.errors import ArgumentError, Error, UnknownNameError
from fastadv.data.alignment import (
    AlignmentError,
    Matrix,
    Points,
    align,
    center_crop,
    read_landmarks,
    template,
)
from fastadv.data.hashes import KnownHashes, Stamp, stamp_of
from fastadv.data.images import decode_image, read_bytes, to_tensor
from fastadv.data.stream import Stream

Landmarks = Mapping[str, Points]


class SourceError(Error, ValueError):
    """A folder of faces that cannot be used; the message names it and says what was expected."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """An image of a face, ready for a model.

    Attributes:
        name: `identity/file`, without extension: "Aaron_Peirsol/Aaron_Peirsol_0001".
        id: `face_id(name)`: the key of the image's random numbers.
        identity: Who it is.
        image: (3, H, W) float32 RGB in [0, 1], on the 8-bit grid (every value is n / 255).
        source_hash: SHA-256 of the file, hexadecimal.
        matrix: (2, 3) float64 from the file's to the crop's pixel-edge coordinates; None when the image
            is the whole file.
    """

    name: str
    id: int
    identity: str
    image: torch.Tensor
    source_hash: str
    matrix: Matrix | None


def face_id(name: str) -> int:
    """A number from 0 to 2^63 - 1 for a name: the first 63 bits of its BLAKE2b-64 digest.

    Depends on the name alone, so that an image draws the same random numbers in any data set, order or run.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class FaceSource:
    """Named image files, each loaded as an aligned face.

    Attributes:
        names: The names, sorted.
        size: Side of the crops in pixels; None for whole files.
        landmarks: Five points per name; None when the files are taken as they are.
    """

    def __init__(self, files: Mapping[str, Path], *, size: int | None, landmarks: Landmarks | None) -> None:
        """Takes the files of a source; nothing is read yet.

        Args:
            files: `identity/file` names to paths.
            size: Side of the crops in pixels, or None.
            landmarks: Five points per name for `align`, or None for `center_crop`.

        Raises:
            ValueError: A wrong size, or landmarks without a size.
            SourceError: A name that cannot be encoded, or two names with one id.
        """
        if size is not None:
            template(size)  # checks it
        elif landmarks is not None:
            raise ArgumentError("landmarks: an alignment needs a size, got size=None")
        self._files = dict(files)
        self._hashes: dict[str, tuple[Stamp | None, str]] = {}
        self.names: tuple[str, ...] = tuple(sorted(self._files))
        self.size = size
        self.landmarks = landmarks
        try:
            distinct = len({face_id(name) for name in self.names})
        except UnicodeEncodeError as error:
            raise SourceError(f"{error.object!r}: the file name is not UTF-8") from error
        if distinct != len(self.names):
            raise SourceError("two of the names have the same 63-bit id; rename one of the files")

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def path(self, name: str) -> Path:
        """The file of a name.

        Raises:
            KeyError: There is no such name.
        """
        if name not in self._files:
            raise UnknownNameError(f"{name}: not among the {len(self)} images")
        return self._files[name]

    def load(self, name: str) -> Face:
        """Reads, checks and aligns one image.

        Raises:
            KeyError: There is no such name.
            ImageError: The file is no usable image.
            AlignmentError: The image has no landmarks, or degenerate ones.
        """
        path = self.path(name)
        data = read_bytes(path)
        crop, matrix = self._crop(name, decode_image(data, path))
        return Face(
            name=name,
            id=face_id(name),
            identity=name.rpartition("/")[0],
            image=to_tensor(crop),
            source_hash=hashlib.sha256(data).hexdigest(),
            matrix=matrix,
        )

    def identity(self, names: Iterable[str] | None = None, *, known: KnownHashes | None = None) -> dict[str, Any]:
        """What decides about the pixels of some faces, as plain values: equal for equal pixels, wherever they lie.

        Args:
            names: The images that are used; all when None.
            known: Hashes of an earlier run: a file whose size, times and inode are as they were is not read again;
                what is computed now is added.

        Returns:
            "images": SHA-256 over names and contents; "count"; "landmarks": SHA-256 over the points of these images, or
            None; "size" of the crops; "crop": how they are cut without landmarks, else None.

        Raises:
            KeyError: There is no such name.
            ImageError: A file cannot be read.
        """
        chosen = sorted(set(self.names if names is None else names))
        digest = hashlib.sha256()
        for name in chosen:
            digest.update(f"{name}\0{self._signature(name, known)}\n".encode())
        return {
            "images": digest.hexdigest(),
            "count": len(chosen),
            "landmarks": None if self.landmarks is None else _points_hash(self.landmarks, chosen),
            "size": self.size,
            "crop": None if self.landmarks is not None else self.crop,
        }

    @property
    def crop(self) -> str:
        """How a face is cut out of an image, in one word."""
        if self.size is None:
            return "whole"
        return "square" if self.landmarks is None else "aligned"

    def content_hash(self, name: str, *, known: KnownHashes | None = None) -> str:
        """SHA-256 of an image's file, hexadecimal; computed again only where the file's size, times or inode change.

        Raises:
            KeyError: There is no such name.
            ImageError: The file cannot be read.
        """
        key, stamp = str(self.path(name)), self._stamp(name)
        kept = self._hashes.get(name)
        found = kept[1] if kept is not None and kept[0] == stamp else None
        if found is None and known is not None:
            found = known.find(key, stamp)
        if found is None:
            found = self._content_hash(name)
        self._hashes[name] = (stamp, found)
        if known is not None:
            known.keep(key, stamp, found)
        return found

    def unchanged(self, face: Face) -> Face:
        """The face, if its file is the one whose hash was taken.

        Raises:
            SourceError: The file has changed since.
        """
        kept = self._hashes.get(face.name)
        if kept is not None and kept[1] != face.source_hash:
            raise SourceError(f"{self.path(face.name)}: the file has changed since the run began; start the run again")
        return face

    def _signature(self, name: str, known: KnownHashes | None) -> str:
        return self.content_hash(name, known=known)

    def _content_hash(self, name: str) -> str:
        return hashlib.sha256(read_bytes(self.path(name))).hexdigest()

    def _stamp(self, name: str) -> Stamp | None:
        return stamp_of(self._files[name])

    def _crop(self, name: str, image: NDArray) -> tuple[NDArray, Matrix | None]:
        if self.size is None:
            return image, None
        if self.landmarks is None:
            return self._without_landmarks(image, self.size)
        if name not in self.landmarks:
            raise AlignmentError(f"{self._files[name]}: no landmarks for {name}")
        try:
            return align(image, self.landmarks[name], self.size)
        except AlignmentError as error:
            raise AlignmentError(f"{self._files[name]}: {error}") from error

    def _without_landmarks(self, image: NDArray, size: int) -> tuple[NDArray, Matrix]:
        return center_crop(image, size)

    def stream(
        self,
        names: Iterable[str] | None = None,
        *,
        workers: int = 2,
        ahead: int = 64,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Stream[Face]:
        """Loads faces ahead in worker threads; they come in the order of `names`, at most `ahead` in memory.

        Args:
            names: Which ones; all when None.
            workers: Number of threads.
            ahead: Bound on the faces in memory.
            on_error: "raise" an unusable image at its place, or "skip" it and note it in `Stream.skipped`.

        Raises:
            KeyError: A name that the source does not have, before anything is loaded (a list of names) or
                at its place (an iterator).
        """
        if names is None:
            names = self.names
        if isinstance(names, str):
            raise ArgumentError(f"names: expected several names, got the string {names!r}")
        if isinstance(names, Sequence):
            require(self, names)
        return Stream(self.load, names, workers=workers, ahead=ahead, on_error=on_error)


def _points_hash(landmarks: Landmarks, names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        points = landmarks.get(name)
        text = "none" if points is None else " ".join(repr(float(value)) for value in np.asarray(points).ravel())
        digest.update(f"{name}\0{text}\n".encode())
    return digest.hexdigest()


def require(source: FaceSource, names: Iterable[str], *, where: str = "names") -> None:
    """Checks that a source has every one of the names.

    Raises:
        KeyError: With the number of the missing ones and the first few.
    """
    missing = [name for name in dict.fromkeys(names) if name not in source]
    if missing:
        raise UnknownNameError(f"{where}: {several(missing)} not among the {len(source)} images")


def several(names: Sequence[str]) -> str:
    """The first few of some names and how many there are, for messages."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more ({len(names)} in all)"


def open_landmarks(landmarks: str | os.PathLike[str] | Landmarks | None) -> Landmarks | None:
    """Landmarks as a mapping: as they are, or read from a file."""
    if landmarks is None or isinstance(landmarks, Mapping):
        return landmarks
    return read_landmarks(landmarks)
