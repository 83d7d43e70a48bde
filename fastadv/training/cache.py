"""Decoded faces kept in one file, so that later epochs neither decode nor draw them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastadv.core.differences import difference
from fastadv.core.errors import UnknownNameError
from fastadv.core.files import remove_temporaries, replacing, write_all, write_atomically
from fastadv.core.progress import Progress, silent
from fastadv.data import Face, FaceSource, face_id, to_tensor, to_uint8
from fastadv.data.hashes import KEPT, KnownHashes
from fastadv.training.config import TrainingError


class CachedFaces(FaceSource):
    """The faces of another source, decoded and aligned once, as bytes in a file that is mapped into memory."""

    def __init__(self, source: FaceSource, folder: Path, *, progress: Progress = silent) -> None:
        """Fills the cache, or takes the one that is there.

        Args:
            source: Faces of one size.
            folder: Holds `faces.npy`, (N, H, W, 3) uint8, and `faces.json`, what is in it.
            progress: Told of the images.

        Raises:
            TrainingError: The folder holds other faces, or the images have different sizes.
            ImageError, AlignmentError: An image cannot be used.
            OSError: The files cannot be written.
        """
        if source.size is None:
            raise TrainingError("source: expected images of one size for a cache, got whole files (size=None)")
        super().__init__({name: folder / name for name in source.names}, size=source.size, landmarks=None)
        self._places = {name: k for k, name in enumerate(self.names)}
        data, about = folder / "faces.npy", folder / "faces.json"
        known = KnownHashes.read(folder)
        self._source = source
        wanted = {"faces": source.identity(known=known)}
        if folder.is_dir():
            remove_temporaries(folder)
        if about.exists():
            found = difference(_content(about), wanted, where=str(about), remedy="remove it or give another --cache")
            if found:
                raise TrainingError(f"cache: holds other faces; {found}")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _fill(source, data, progress)
            write_atomically(folder / KEPT, known.to_bytes())
            write_atomically(about, json.dumps(wanted, sort_keys=True).encode() + b"\n", fsync=True)
        try:
            self._pixels = np.load(data, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy's reader raises anything from ValueError to tokenize's errors
            raise TrainingError(
                f"{data}: expected the pixels of a cache, got a damaged file ({error}); remove {folder}"
            ) from error
        if (
            not isinstance(self._pixels, np.ndarray)
            or self._pixels.shape != (len(self), *(source.shape or ()), 3)
            or self._pixels.dtype != np.uint8
        ):
            raise TrainingError(f"{data}: expected the pixels of the faces, got others; remove {folder}")

    def identity(self, names: Iterable[str] | None = None, *, known: KnownHashes | None = None) -> dict[str, Any]:
        """That of the source: the pixels are the same."""
        return self._source.identity(names, known=known)

    def load(self, name: str) -> Face:
        """One face from the file.

        Raises:
            KeyError: There is no such name.
        """
        if name not in self._places:
            raise UnknownNameError(f"name: expected one of the {len(self)} images, got {name}")
        pixels = np.array(self._pixels[self._places[name]])
        return Face(
            name=name,
            id=face_id(name),
            identity=name.rpartition("/")[0],
            image=to_tensor(pixels),
            source_hash="",
            matrix=None,
        )


def names_hash(names: tuple[str, ...]) -> str:
    """SHA-256 of the names, one a line, hexadecimal."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _content(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(
            f"{path}: expected the description of a cache, got a damaged file ({error}); remove {path.parent}"
        ) from error
    if not isinstance(found, dict):
        raise TrainingError(
            f"{path}: expected the description of a cache, got {type(found).__name__}; remove {path.parent}"
        )
    return found


def _fill(source: FaceSource, path: Path, progress: Progress) -> None:
    assert source.shape is not None
    head = {"descr": "|u1", "fortran_order": False, "shape": (len(source), *source.shape, 3)}
    # written, not mapped: in a map of a sparse file a full disk is a signal that ends the process
    with replacing(path, fsync=True) as file, source.stream() as faces:
        np.lib.format.write_array_header_1_0(file, head)
        for k, face in enumerate(faces):
            write_all(file.fileno(), to_uint8(face.image).tobytes())
            progress("caching", k + 1, len(source))
