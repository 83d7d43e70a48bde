"""The face of each photograph of a source, found by a detector where no landmarks are given."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core import cores
from fastadv.core.detections import Detections
from fastadv.core.fields import check_one_of, check_range
from fastadv.core.notices import notify
from fastadv.core.progress import Progress, silent
from fastadv.data.alignment import AlignmentError, Points, Size, matrix_of
from fastadv.data.face_detector import FaceDetector
from fastadv.data.faces import FaceSource, SourceError
from fastadv.data.images import ImageError, decode_image
from fastadv.data.kept_landmarks import FoundFace, KeptLandmarks
from fastadv.data.landmarks import of_names
from fastadv.data.names import several
from fastadv.data.plausible import check_inside
from fastadv.data.run_files import RunFolderError
from fastadv.data.stream import Stream

CHOICES = ("largest", "central")
NO_FACE = "no face was found"
_TOGETHER, _MOST = 2**21, 64  # pixels from which photographs are detected together, and how many of them at most

Image = NDArray[np.uint8]
Item = TypeVar("Item")
Source = TypeVar("Source", bound=FaceSource)


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceSearch:
    """How the face of each photograph is found.

    Attributes:
        detector: Finds the faces.
        choice: Which one of several: ``"largest"`` (box area) or ``"central"`` (nearest to the picture's centre).
        least_score: Faces with a lower score are left out, in [0, 1].

    Raises:
        ValueError: A value is out of range.
    """

    detector: FaceDetector
    choice: str = "largest"
    least_score: float = 0.7

    def __post_init__(self) -> None:
        check_one_of("faces", self.choice, CHOICES)
        check_range("least_score", self.least_score, 0, 1)

    @property
    def described(self) -> dict[str, object]:
        """What decides about the landmarks beside the photographs, as plain values."""
        return {**self.detector.identity, "choice": self.choice, "least score": self.least_score}

    @property
    def digest(self) -> str:
        """A hash of what is described."""
        return hashlib.sha256(json.dumps(self.described, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundFaces:
    """The faces of a source's photographs.

    Attributes:
        landmarks: Five points by name.
        skipped: Photographs without a face that can be used, with the reasons.
        described: How they were found; None where a list says.
    """

    landmarks: Mapping[str, Points]
    skipped: Mapping[str, str] = field(default_factory=dict)
    described: Mapping[str, object] | None = None


def find_faces(
    source: FaceSource,
    search: FaceSearch,
    *,
    kept: Path | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> FoundFaces:
    """Find a face in every photograph of a source. Memory is bounded by a few photographs, not by their number.

    Args:
        source: The photographs, as whole files.
        search: How.
        kept: A list of landmarks in the folder of a run, where what is found is kept: photographs that it has, with the
            same hash and found by the same search, are not looked at again.
        fresh: Whether the run begins anew.
        progress: Told of every photograph.

    Raises:
        RunFolderError: The run has begun with other photographs or another search.
        OSError: The list cannot be written.
    """
    store, digest = KeptLandmarks.open(kept, fresh=fresh), search.digest
    rows = store.right({name: _hash(source, name) for name in store.rows if name in source}, digest)
    pending = [name for name in source.names if name not in rows]
    if store.begun and pending:
        raise RunFolderError(
            f"{store.path}: expected the photographs that the run began with, got further ones, first {pending[0]}; "
            "use --fresh or another --out"
        )
    progress("detecting faces", len(source) - len(pending), len(source))
    for done, row in enumerate(_search(source, pending, search, digest), 1):
        store.add(row, rows, first=done == 1)
        rows[row.name] = row
        progress("detecting faces", len(source) - len(pending) + done, len(source))
    store.finish(rows)
    own = [rows[name] for name in source.names]
    return FoundFaces(
        landmarks={row.name: row.points for row in own if not row.skipped},
        skipped={row.name: row.skipped for row in own if row.skipped},
        described=search.described,
    )


def with_faces(
    source: Source, found: FoundFaces, *, size: Size, template: ArrayLike | None = None, where: object = "data"
) -> Source:
    """The source with the faces that were found, as aligned crops; photographs without one are left out, and named.

    Args:
        source: The photographs.
        found: Their faces, by name; a photograph that is not in it has none.
        size: Of the crops.
        template: As of `FaceSource`.
        where: What messages call the source.

    Raises:
        SourceError: No photograph has a face.
        AlignmentError: As of `FaceSource`.
    """
    files = {name: source.path(name) for name in source.names}
    points = of_names(found.landmarks, files) if found.landmarks else {}
    skipped = {name: found.skipped.get(name, NO_FACE) for name in files if name not in points}
    said = several([f"{name} ({reason})" for name, reason in skipped.items()])
    if len(skipped) == len(files):
        raise SourceError(f"{where}: expected photographs with a face that can be aligned, got none: {said}")
    made = copy.copy(source)
    kept = {name: path for name, path in files.items() if name in points}
    FaceSource.__init__(made, kept, size=size, landmarks=points, template=template)
    made.without_face, made.searched = skipped, found.described
    if skipped:
        notify(f"{where}: {len(skipped)} of {len(files)} photographs are left out: {said}", stacklevel=4)
    return made


def detect_together(
    photographs: Iterable[tuple[Item, Image | None]], detector: FaceDetector
) -> Iterator[list[tuple[Item, Image | None, Detections | None]]]:
    """What a detector finds in photographs, a batch at a time; None where there is no image."""
    batch: list[tuple[Item, Image | None]] = []
    pixels = 0
    for item, image in photographs:
        batch.append((item, image))
        pixels += 0 if image is None else image.shape[0] * image.shape[1]
        if len(batch) == _MOST or pixels >= _TOGETHER:
            yield _detected(batch, detector)
            batch, pixels = [], 0
    if batch:
        yield _detected(batch, detector)


def _detected(
    batch: Sequence[tuple[Item, Image | None]], detector: FaceDetector
) -> list[tuple[Item, Image | None, Detections | None]]:
    images = [image for _, image in batch if image is not None]
    found = iter(detector(images) if images else ())
    return [(item, image, None if image is None else next(found)) for item, image in batch]


def chosen_faces(found: Detections, choice: str, least_score: float, *, width: int, height: int) -> list[int]:
    """The faces of a picture that have the score, the best first: by box area or, ``"central"``, by their distance from
    the picture's centre."""
    size = found.boxes[:, 2:] - found.boxes[:, :2]
    rank = -size.prod(axis=1)
    if choice == "central":
        rank = np.hypot(*(found.boxes[:, :2] + size / 2 - (width / 2, height / 2)).T)
    return [k for k in np.argsort(rank, kind="stable").tolist() if found.scores[k] >= least_score]


def why_none(found: Detections, least_score: float) -> str:
    """Why no face of a picture has the score."""
    if not len(found):
        return NO_FACE
    return f"no face has a score of at least {least_score:g}; the best has {found.scores.max():.3f}"


def face_points(landmarks: Points, *, width: int, height: int) -> Points:
    """A face's landmarks as lists have them, in thousandths of a pixel.

    Raises:
        AlignmentError: They lie outside of the picture, or determine no alignment.
    """
    points: Points = landmarks.round(3)
    check_inside(points, width, height)
    matrix_of(points)
    return points


def _search(source: FaceSource, names: Sequence[str], search: FaceSearch, digest: str) -> Iterator[FoundFace]:
    """Read ahead, detect in batches."""

    def read(name: str) -> tuple[FoundFace, Image | None]:
        sha256 = ""
        try:
            data = source.read(name)
            sha256 = hashlib.sha256(data).hexdigest()
            return FoundFace(name=name, sha256=sha256, search=digest), decode_image(data, source.path(name))
        except ImageError as error:
            reason = str(error).removeprefix(f"{source.path(name)}: ")
            return FoundFace(name=name, sha256=sha256, search=digest, skipped=reason), None

    workers = cores.workers()
    with Stream(read, names, workers=workers, ahead=workers + 2) as photographs:
        for batch in detect_together(photographs, search.detector):
            for row, image, found in batch:
                yield row if image is None or found is None else _face(row, image, found, search)


def _face(row: FoundFace, image: Image, found: Detections, search: FaceSearch) -> FoundFace:
    height, width = image.shape[:2]
    reason = why_none(found, search.least_score)
    for k in chosen_faces(found, search.choice, search.least_score, width=width, height=height)[:1]:
        try:
            points = face_points(found.landmarks[k], width=width, height=height)
        except AlignmentError as error:
            reason = str(error)
            continue
        score = round(float(found.scores[k]), 6)
        return replace(row, score=score, landmarks=tuple(points.ravel().tolist()))
    return replace(row, skipped=reason)


def _hash(source: FaceSource, name: str) -> str:
    """Of a photograph; empty where it cannot be read."""
    try:
        return source.content_hash(name)
    except ImageError:
        return ""
