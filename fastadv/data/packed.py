"""Faces that lie together in one file: what the packed formats share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

from numpy.typing import ArrayLike

from fastadv.core.remote import is_remote
from fastadv.data.alignment import Size
from fastadv.data.faces import FaceSource
from fastadv.data.hashes import Stamp, stamp_of
from fastadv.data.images import read_size
from fastadv.data.landmarks import Landmarks

Fetch = Callable[[str], bytes]


class PackedFaces(FaceSource):
    """Images inside of larger files, each fetched by its name as the bytes of an image file.

    `path` gives the place that messages show, `file/name`; there is no such file on the disk.
    """

    _aligned = True

    def __init__(
        self,
        places: Iterable[tuple[str, Path]],
        fetch: Fetch,
        *,
        size: Size | None,
        landmarks: Landmarks | None,
        template: ArrayLike | None = None,
    ) -> None:
        """Takes the names and how their bytes are fetched; nothing is read yet.

        Args:
            places: Every name with the file that it lies in.
            fetch: The encoded image of a name; called from several threads.
            size: Side of the crops in pixels, or their height and width, or None for whole images.
            landmarks: Five points per name, or None.
            template: Where they go, as of `FaceSource`.

        Raises:
            ValueError, SourceError: As for `FaceSource`.
        """
        self._packs = dict(places)
        self._stamps = {file: stamp_of(file) for file in set(self._packs.values()) if is_remote(file)}
        files = {name: path / name for name, path in self._packs.items()}
        super().__init__(files, size=size, landmarks=landmarks, template=template)
        self._fetch = fetch

    def _size_of(self, name: str) -> tuple[int, int] | None:
        return read_size(io.BytesIO(self._fetch(name)), self.path(name))

    def read(self, name: str) -> bytes:
        """The image file of a name; raises as of `FaceSource`."""
        self.path(name)  # refuses unknown names
        return self._fetch(name)

    def _stamp(self, name: str) -> Stamp | None:
        file = self._packs[name]
        return self._stamps[file] if file in self._stamps else stamp_of(file)
