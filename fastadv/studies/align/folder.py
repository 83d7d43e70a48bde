"""``fastadv align``: aligned faces and their landmarks from a folder of photographs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fastadv.core import cores
from fastadv.core.fields import check_count, check_one_of, check_range
from fastadv.core.files import file_hash, naming, write_all, write_atomically
from fastadv.core.progress import Progress, silent
from fastadv.core.templates import Template
from fastadv.data import AlignmentError, Detections, FaceDetector, ImageError, Stream, align, encode_png
from fastadv.data.face_search import CHOICES as ONE_FACE
from fastadv.data.face_search import Image, chosen_faces, detect_together, face_points, why_none
from fastadv.data.folder import list_photographs
from fastadv.data.image_files import read_bytes
from fastadv.data.images import decode_image
from fastadv.data.run_files import ALIGNED, IMAGES, FolderKind, held, image_file
from fastadv.data.templates import open_template
from fastadv.studies.align.report import (
    LANDMARKS,
    REPORT,
    AlignedFace,
    AlignedPicture,
    AlignSummary,
    list_of_landmarks,
    read_report,
    summarise,
    write_report,
)

CHOICES = (*ONE_FACE, "all")
FOLDER = FolderKind(mark=ALIGNED, what="set of aligned faces", written=(IMAGES, REPORT, LANDMARKS, ALIGNED))
_FURTHER = "__"  # between the name of a picture and the number of a face that is not its first


@dataclass(frozen=True, kw_only=True)
class AlignPlan:
    """An alignment of photographs as ``fastadv align`` is asked for it.

    Attributes:
        photos: The folder of the photographs.
        out: Where the faces go.
        choice: Which faces of a picture: ``"largest"`` (box area), ``"central"`` (nearest to the picture's centre) or
            ``"all"``, the largest first.
        template: As ``open_template`` takes it.
        margin: As ``Template.widened`` takes it.
        least_score: Faces with a lower score are left out.
        workers: Threads that read and write; None: by the number of cores.
        fresh: Whether to remove what the folder holds.

    Raises:
        ValueError: A value is out of range.
    """

    photos: Path
    out: Path
    choice: str = "largest"
    template: str | os.PathLike[str] = "arcface"
    margin: float = 0.0
    least_score: float = 0.7
    workers: int | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        check_one_of("choice", self.choice, CHOICES)
        check_range("least_score", self.least_score, 0, 1)
        if self.workers is not None:
            check_count("workers", self.workers)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Photograph:
    """A photograph, and what the report says of it."""

    name: str
    row: AlignedPicture


def align_folder(plan: AlignPlan, detector: FaceDetector, *, progress: Progress = silent) -> AlignSummary:
    """Find the faces of every photograph, and write them aligned, with their landmarks and a report.

    The folder gets `images/<name>.png`, a line per face in `landmarks.txt` (in the photograph's coordinates, in the
    form that every ``--landmarks`` takes) and a line per photograph in `report.jsonl`. A further call with the same
    plan makes what is missing: after an interruption, or where photographs were added, changed or removed. Memory is
    bounded by a few photographs, not by their number.

    Args:
        plan: What to do.
        detector: Finds the faces.
        progress: Told of every photograph.

    Raises:
        SourceError: There are no photographs.
        RunFolderError: The folder holds something else, or faces of another plan.
        ValueError: There is no such template, or the margin is out of range.
        OSError: A file cannot be written.
    """
    template = open_template(plan.template).widened(plan.margin)
    photographs, others = list_photographs(plan.photos)
    if plan.choice == "all":
        for name in [name for name in photographs if _first_of(name) != name and _first_of(name) in photographs]:
            others[_place(plan, photographs.pop(name))] = "a further face of another photograph would have its name"
    config = {
        "command": "align",
        "detector": dict(detector.identity),
        "template": asdict(template),
        "choice": plan.choice,
        "least score": plan.least_score,
    }
    shown = {"template.points": f"those of {plan.template} with a margin of {plan.margin:g}"}
    left_out = [AlignedPicture(picture=place, skipped=reason) for place, reason in others.items()]
    with held(plan.out, FOLDER, config, shown=shown, fresh=plan.fresh):
        before = read_report(plan.out / REPORT)
        rows = _still_right(plan, photographs, before)
        for stale in _names(before) - _names(rows):  # before the report forgets them
            image_file(plan.out, stale).unlink(missing_ok=True)
        if before:
            write_report(plan.out, rows)
        progress("aligning", len(rows), len(photographs))
        for row in _made(plan, template, detector, photographs, done={row.picture for row in rows}):
            rows.append(row)
            progress("aligning", len(rows), len(photographs))
        write_atomically(plan.out / LANDMARKS, list_of_landmarks(rows))
        write_report(plan.out, sorted([*rows, *left_out], key=lambda row: row.picture))
    return summarise(rows, left_out)


def _first_of(name: str) -> str:
    """The name of the first face of a picture by that of a further one; another name stays."""
    first, mark, number = name.rpartition(_FURTHER)
    return first if mark and number.isdecimal() else name


def _place(plan: AlignPlan, path: Path) -> str:
    return path.relative_to(plan.photos).as_posix()


def _still_right(
    plan: AlignPlan, photographs: Mapping[str, Path], rows: Iterable[AlignedPicture]
) -> list[AlignedPicture]:
    """The rows of photographs that are as they were, with files that are as they were written."""
    paths = {_place(plan, path): path for path in photographs.values()}
    right = {
        row.picture: row
        for row in rows
        if row.picture in paths
        and row.source_hash == _hash(paths[row.picture])
        and all(face.image_hash == _hash(image_file(plan.out, face.name)) for face in row.faces)
    }
    return list(right.values())


def _hash(path: Path) -> str:
    """Of a file; empty where it cannot be read."""
    try:
        return file_hash(path)
    except OSError:
        return ""


def _names(rows: Iterable[AlignedPicture]) -> set[str]:
    return {face.name for row in rows for face in row.faces}


def _made(
    plan: AlignPlan, template: Template, detector: FaceDetector, photographs: Mapping[str, Path], *, done: set[str]
) -> Iterator[AlignedPicture]:
    """Read ahead, detect in batches, write; a row is in the report when it is yielded."""
    pending = [name for name, path in photographs.items() if _place(plan, path) not in done]
    workers = cores.workers() if plan.workers is None else plan.workers

    def read(name: str) -> tuple[_Photograph, Image | None]:
        path, digest = photographs[name], ""
        try:
            data = read_bytes(path)
            digest = hashlib.sha256(data).hexdigest()
            image = decode_image(data, path)
        except ImageError as error:
            reason = str(error).removeprefix(f"{path}: ")
            row = AlignedPicture(picture=_place(plan, path), source_hash=digest, skipped=reason)
            return _Photograph(name=name, row=row), None
        height, width = image.shape[:2]
        row = AlignedPicture(picture=_place(plan, path), source_hash=digest, width=width, height=height)
        return _Photograph(name=name, row=row), image

    def write(found: tuple[_Photograph, Image | None, Detections | None]) -> AlignedPicture:
        photograph, image, faces = found
        return photograph.row if image is None or faces is None else _written(plan, template, photograph, image, faces)

    with Stream(read, pending, workers=workers, ahead=workers + 2) as read_ahead, ThreadPoolExecutor(workers) as pool:
        for batch in detect_together(read_ahead, detector):
            for row in pool.map(write, batch):
                _append(plan.out / REPORT, row.to_json())
                yield row


def _append(path: Path, line: bytes) -> None:
    try:
        with open(path, "ab", buffering=0) as file:
            write_all(file.fileno(), line)
    except OSError as error:
        raise naming(error, path) from error


def _written(
    plan: AlignPlan, template: Template, photograph: _Photograph, image: Image, found: Detections
) -> AlignedPicture:
    """Writes the faces of a photograph that are wanted."""
    row, reason = photograph.row, why_none(found, plan.least_score)
    faces: list[AlignedFace] = []
    order = chosen_faces(found, plan.choice, plan.least_score, width=row.width, height=row.height)
    for k in order if plan.choice == "all" else order[:1]:
        try:
            points = face_points(found.landmarks[k], width=row.width, height=row.height)
            crop, _ = align(image, points, template)
        except AlignmentError as error:
            reason = str(error)
            continue
        name = f"{photograph.name}{_FURTHER}{len(faces) + 1}" if faces else photograph.name
        data, path = encode_png(crop), image_file(plan.out, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
        face = AlignedFace(
            name=name,
            score=round(float(found.scores[k]), 6),
            box=tuple(found.boxes[k].round(3).tolist()),
            landmarks=tuple(points.ravel().tolist()),
            image_hash=hashlib.sha256(data).hexdigest(),
        )
        faces.append(face)
    return replace(row, found=len(found), faces=tuple(faces), skipped="" if faces else reason)
