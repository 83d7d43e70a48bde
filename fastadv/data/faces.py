"""What every source of faces shares."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core.errors import ArgumentError, Error, UnknownNameError
from fastadv.core.notices import notify
from fastadv.core.places import CONNECTIONS
from fastadv.core.remote import is_remote
from fastadv.data import names as naming
from fastadv.data.alignment import AlignmentError, Matrix, Points, Size, align, center_crop, matrix_of, shape_of
from fastadv.data.face import Face, face_id
from fastadv.data.hashes import KnownHashes, Stamp, stamp_of
from fastadv.data.image_files import open_file, read_bytes
from fastadv.data.images import ImageError, decode_image, read_size, to_tensor
from fastadv.data.known_names import hint, require
from fastadv.data.landmarks import Landmarks, of_names, points_hash
from fastadv.data.plausible import check_inside, settle_list
from fastadv.data.stream import Stream

Result = TypeVar("Result")


class SourceError(Error, ValueError):
    """A folder of faces that cannot be used; the message names it and says what was expected."""


class FaceSource:
    """Named image files, each loaded as an aligned face.

    Attributes:
        names: The names, sorted; in the Unicode form NFC.
        size: Side of the crops in pixels, or their height and width where these differ; None for whole files.
        landmarks: Five points per name; None when the files are taken as they are.
        template: Where the landmarks go, (5, 2) in pixels of a crop; None for `template(size)`.
    """

    #: Whether the images are aligned crops by definition, whatever their size.
    _aligned = False
    #: Pictures that are left out since no face was found in them, with the reasons.
    without_face: Mapping[str, str] = MappingProxyType({})
    #: How the landmarks were looked for, as plain values; None where they were given.
    searched: Mapping[str, object] | None = None
    #: What becomes of a picture without landmarks, for a notice.
    _middle = "the central square of each"

    def __init__(
        self,
        files: Mapping[str, Path],
        *,
        size: Size | None,
        landmarks: Landmarks | None,
        template: ArrayLike | None = None,
    ) -> None:
        """Takes the files of a source; nothing is read yet.

        Args:
            files: `identity/file` names to paths.
            size: Side of the crops in pixels, or their height and width, or None.
            landmarks: Five points per name for `align`, or None for `center_crop`. The names may be written as
                `find` takes them.
            template: Where the landmarks go, (5, 2) in pixels of a crop; None for `template(size)`.

        Raises:
            ValueError: A wrong size, or landmarks without a size.
            SourceError: A name that cannot be encoded, or two names with one id.
            AlignmentError: A list of landmarks that cannot be right: none of the images is in it, or most of its faces
                fit no face (see `plausible.settle_list`).
        """
        if size is not None:
            height, width = shape_of(size)
            size = height if height == width else (height, width)
        elif landmarks is not None:
            raise ArgumentError("size: expected a number of pixels with landmarks, got None")
        self._files = dict(files)
        self._remote = any(map(is_remote, self._files.values()))
        self._hashes: dict[str, tuple[Stamp | None, str]] = {}
        self.names: tuple[str, ...] = tuple(sorted(self._files))
        self.size: Size | None = size
        self.template: Points | None = None if template is None else np.asarray(template, np.float64)
        try:
            distinct = len({face_id(name) for name in self.names})
        except UnicodeEncodeError as error:
            raise SourceError(f"{error.object!r}: expected a file name in UTF-8, got other bytes") from error
        if distinct != len(self.names):
            raise SourceError("names: expected different 63-bit ids, got one twice; rename one of the files")
        self.landmarks: Landmarks | None = None
        odd: tuple[str, ...] = ()
        if landmarks is not None:
            self.landmarks, odd = settle_list(of_names(landmarks, self._files), self.names)
        self._odd = frozenset(odd)
        self._checked: dict[str, bool] = {}  # whether a picture that was looked at has the crops' size
        self._corner: set[str] = set()  # names whose points all lie in the upper left quarter
        self._told = False

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def find(self, name: str) -> str | None:
        """The name of this source that a list means: with or without extension, in any Unicode form; else None."""
        return naming.find(name, self._files)

    def path(self, name: str) -> Path:
        """The file of a name.

        Raises:
            KeyError: There is no such name.
        """
        if name not in self._files:
            raise UnknownNameError(f"name: expected one of the {len(self)} images, got {name}{hint(self, name)}")
        return self._files[name]

    def load(self, name: str) -> Face:
        """Reads, checks and aligns one image.

        Raises:
            KeyError: There is no such name.
            ImageError: The file is no usable image.
            AlignmentError: The image has no landmarks, or degenerate ones, or ones outside of it.
        """
        data = self.read(name)
        crop, matrix = self._crop(name, decode_image(data, self._files[name]))
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
            None; "size" of the crops; "crop": how they are cut without landmarks, else None; "template", where it is
            another than ArcFace's; "detector", where one found the landmarks.

        Raises:
            KeyError: There is no such name.
            ImageError: A file cannot be read.
        """
        chosen = sorted(set(self.names if names is None else names))
        digest = hashlib.sha256()
        for name, signature in zip(chosen, self._each(lambda n: self._signature(n, known), chosen), strict=True):
            digest.update(f"{name}\0{signature}\n".encode())
        aligned = self.landmarks is not None
        return {
            "images": digest.hexdigest(),
            "count": len(chosen),
            "landmarks": None if self.landmarks is None else points_hash(self.landmarks, chosen),
            "size": list(self.size) if isinstance(self.size, tuple) else self.size,
            "crop": None if aligned else self.crop,
            **({"template": self.template.tolist()} if aligned and self.template is not None else {}),
            **({} if self.searched is None else {"detector": dict(self.searched)}),
        }

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of the crops; None for whole files."""
        return None if self.size is None else shape_of(self.size)

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
            raise SourceError(
                f"{self.path(face.name)}: expected the file as it was when the run began, got a changed one; "
                "start the run again"
            )
        return face

    def _signature(self, name: str, known: KnownHashes | None) -> str:
        return self.content_hash(name, known=known)

    def read(self, name: str) -> bytes:
        """The image file of a name.

        Raises:
            KeyError: There is no such name.
            ImageError: The file cannot be read.
        """
        return read_bytes(self.path(name))

    def _content_hash(self, name: str) -> str:
        return hashlib.sha256(self.read(name)).hexdigest()

    def _stamp(self, name: str) -> Stamp | None:
        return stamp_of(self._files[name])

    def _crop(self, name: str, image: NDArray) -> tuple[NDArray, Matrix | None]:
        if self.size is None:
            return image, None
        height, width = image.shape[:2]
        if self.landmarks is None:
            if (height, width) == self.shape:  # a crop already
                return center_crop(image, self.size)
            return self._without_landmarks(image, self.size)
        if name not in self.landmarks:
            raise AlignmentError(f"{self._files[name]}: expected landmarks of {name}, got none")
        try:
            check_inside(self.landmarks[name], width, height)
            return align(image, self.landmarks[name], self.size, onto=self.template)
        except AlignmentError as error:
            raise AlignmentError(f"{self._files[name]}: {error}") from error

    def _without_landmarks(self, image: NDArray, size: Size) -> tuple[NDArray, Matrix]:
        return center_crop(image, size)

    def check(self, names: Iterable[str]) -> None:
        """Finds what would stop a run over these faces, before any work: from landmarks and the heads of the files.

        Each face is looked at once in the life of a source (13,000 files take about a second). Two things are said as
        notices: single faces with landmarks that fit no face, and pictures without landmarks that are no crops.

        Raises:
            KeyError: A name that the source does not have.
            AlignmentError: Images without landmarks, or with degenerate ones or ones outside of the picture.
            ImageError: Files that are no images, have 16 bits per channel or too many pixels.
        """
        names = list(dict.fromkeys(names))
        require(self, names)
        problems = self._survey(names)
        if len(problems) > 1:
            what = f"{len(problems)} of {len(names)} images cannot be used"
            raise type(problems[0])(f"{what}, first {problems[0]}")
        if problems:
            raise problems[0]

    def _survey(self, names: Sequence[str]) -> list[AlignmentError | ImageError]:
        """What is wrong with each of the faces that are not known to be right; the notices are given."""
        if self.landmarks is not None:
            without = [name for name in names if name not in self.landmarks]
            if without:
                wanted = f"a line for each of the {len(names)} images"
                return [AlignmentError(f"landmarks: expected {wanted}, got none for {naming.several(without)}")]
        problems: list[AlignmentError | ImageError] = []
        unseen = [name for name in names if name not in self._checked]
        for name, found in zip(unseen, self._each(self._looked, unseen), strict=True):
            if isinstance(found, bool):
                self._checked[name] = found
            else:
                problems.append(found)
        if not self._told:
            self._tell(names)
        return problems

    def _each(self, function: Callable[[str], Result], names: Sequence[str]) -> Iterable[Result]:
        """What a function gives for each name; of files at URLs with several requests at a time."""
        return Stream(function, names, workers=CONNECTIONS) if self._remote else map(function, names)

    def _looked(self, name: str) -> bool | AlignmentError | ImageError:
        try:
            return self._look(name)
        except (AlignmentError, ImageError) as error:
            return error

    def _look(self, name: str) -> bool:
        """Checks the landmarks of a face and the head of its file; whether the picture has the crops' size."""
        points = None if self.landmarks is None else self.landmarks[name]
        try:
            if points is not None:
                matrix_of(points, onto=self.template)
            size = self._fetched_size(name) if self._remote else self._size_of(name)
            if size is None:
                return True
            if points is not None:
                check_inside(points, *size)
                if (np.asarray(points) < (size[0] / 2, size[1] / 2)).all():
                    self._corner.add(name)
        except AlignmentError as error:
            raise AlignmentError(f"{self._files[name]}: {error}") from error
        return size[::-1] == self.shape

    def _size_of(self, name: str) -> tuple[int, int] | None:
        """Width and height of the picture, from the head of its file; None where there is no file to look into."""
        path = self.path(name)
        if not path.is_file():
            return None
        with open_file(path) as file:
            return read_size(file, path)

    def _fetched_size(self, name: str) -> tuple[int, int]:
        """As `_size_of`, of a file that is fetched, and whose hash is kept since it is at hand."""
        stamp, data = self._stamp(name), self.read(name)
        self._hashes[name] = stamp, hashlib.sha256(data).hexdigest()
        return read_size(io.BytesIO(data), self.path(name))

    def _tell(self, names: Sequence[str]) -> None:
        odd = [name for name in names if name in self._odd]
        if odd:
            notify(f"landmarks: the points of {naming.several(odd)} fit no face; are they right?", stacklevel=5)
            self._told = True
        if len(names) > 2 and self._corner.issuperset(names):
            where = "the upper left quarter of their images"
            notify(f"landmarks: all faces lie in {where}; is the list for smaller images?", stacklevel=5)
            self._told = True
        if self.size is None or self.landmarks is not None or self._aligned:
            return
        other = [name for name in names if not self._checked.get(name, True)]
        if other:
            notify(
                f"no landmarks: {self._middle} picture is used ({len(other)} of {len(names)}, such as "
                f"{naming.shown(other[0])}); verification suffers unless they are aligned crops",
                stacklevel=5,
            )
            self._told = True

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
            names: Which ones; all when None. A list of them is checked as by `check` before anything is loaded.
            workers: Number of threads.
            ahead: Bound on the faces in memory.
            on_error: "raise" an unusable image (of a list before anything is loaded, of an iterator at its place), or
                "skip" it and note it in `Stream.skipped`.

        Raises:
            KeyError: A name that the source does not have, before anything is loaded (a list of names) or
                at its place (an iterator).
            AlignmentError, ImageError: As `check`.
        """
        if names is None:
            names = self.names
        if isinstance(names, str):
            raise ArgumentError(f"names: expected several names, got the string {names!r}")
        if isinstance(names, Sequence):
            if on_error == "raise":
                self.check(names)
            else:
                require(self, names)
                self._survey(names)
        return self._stream(names, workers=workers, ahead=ahead, on_error=on_error)

    def _stream(self, names: Iterable[str], **how: Any) -> Stream[Face]:
        """The faces of names that were checked; ``how`` as `Stream` takes it."""
        if self._remote:
            how["workers"] = max(how["workers"], CONNECTIONS)
        return Stream(self.load, names, **how)
