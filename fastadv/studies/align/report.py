"""What ``fastadv align`` says about each photograph: the report, the list of landmarks, the summary."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fastadv.core.errors import UNREADABLE
from fastadv.core.fields import is_int
from fastadv.core.files import write_atomically
from fastadv.data.kept_landmarks import ABOUT, landmark_line
from fastadv.data.manifest import check_image_name
from fastadv.data.names import several

REPORT = "report.jsonl"
LANDMARKS = "landmarks.txt"


@dataclass(frozen=True, kw_only=True)
class AlignedFace:
    """A face that was written.

    Attributes:
        name: Of its file, ``images/<name>.png``.
        score: Of the detector.
        box: Left, top, right, bottom in the photograph, pixel-edge coordinates.
        landmarks: x1 y1 to x5 y5, as in the list of landmarks.
        image_hash: SHA-256 of the file.
    """

    name: str
    score: float
    box: tuple[float, ...]
    landmarks: tuple[float, ...]
    image_hash: str


@dataclass(frozen=True, kw_only=True)
class AlignedPicture:
    """A line of the report.

    Attributes:
        picture: The photograph's path in its folder.
        source_hash: SHA-256 of the photograph; "" where it was not read.
        width: Of the photograph, upright; 0 where it was not decoded.
        height: The same.
        found: How many faces the detector found.
        faces: Those that were written.
        skipped: Why there is none; "" where there is one.
    """

    picture: str
    source_hash: str = ""
    width: int = 0
    height: int = 0
    found: int = 0
    faces: tuple[AlignedFace, ...] = ()
    skipped: str = ""

    @staticmethod
    def of_json(line: bytes) -> AlignedPicture:
        """From a line of the report; raises one of ``UNREADABLE`` where it is none."""
        values = json.loads(line)
        faces = [
            AlignedFace(**{**face, "box": tuple(face["box"]), "landmarks": tuple(face["landmarks"])})
            for face in values.pop("faces")
        ]
        return AlignedPicture(**values, faces=tuple(faces))

    def to_json(self) -> bytes:
        """The line, with its end."""
        return json.dumps(asdict(self)).encode() + b"\n"


@dataclass(frozen=True, kw_only=True)
class AlignSummary:
    """What an alignment came to.

    Attributes:
        pictures: Photographs that were read, or should have been.
        aligned: Those with a face that was written.
        faces: Faces that were written.
        found: Faces that the detector found.
        without_face: Photographs without a face that could be written.
        unreadable: Photographs that could not be read.
        left_out: Files that are no photographs of a format that is read.
        notices: The first names of each kind.
    """

    pictures: int
    aligned: int
    faces: int
    found: int
    without_face: int
    unreadable: int
    left_out: int
    notices: tuple[str, ...]


def read_report(path: Path) -> list[AlignedPicture]:
    """The rows of an earlier call; a line that is cut short or damaged is left out."""
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else ():
        with contextlib.suppress(*UNREADABLE):
            row = AlignedPicture.of_json(line)
            for face in row.faces:
                check_image_name(face.name)
                landmark_line(face.name, face.landmarks, face.score)
            texts, counts = (row.picture, row.source_hash, row.skipped), (row.width, row.height, row.found)
            if all(isinstance(each, str) for each in texts) and all(map(is_int, counts)):
                rows.append(row)
    return rows


def write_report(out: Path, rows: Iterable[AlignedPicture]) -> None:
    """The report of a folder."""
    write_atomically(out / REPORT, b"".join(row.to_json() for row in rows))


def list_of_landmarks(rows: Iterable[AlignedPicture]) -> bytes:
    """The points of all faces in the form that `data.read_landmarks` reads, by name."""
    faces = sorted((face for row in rows for face in row.faces), key=lambda face: face.name)
    return "".join((f"{ABOUT}\n", *(landmark_line(f.name, f.landmarks, f.score) for f in faces))).encode()


def summarise(rows: Sequence[AlignedPicture], left_out: Sequence[AlignedPicture]) -> AlignSummary:
    """The counts of a report, and its first names."""
    unreadable = [row for row in rows if not row.width]
    without = [row for row in rows if row.width and not row.faces]
    kinds = (
        ("without a face that could be written", without),
        ("that could not be read", unreadable),
        ("left out", left_out),
    )
    return AlignSummary(
        pictures=len(rows),
        aligned=sum(bool(row.faces) for row in rows),
        faces=sum(len(row.faces) for row in rows),
        found=sum(row.found for row in rows),
        without_face=len(without),
        unreadable=len(unreadable),
        left_out=len(left_out),
        notices=tuple(
            f"files {what}: {several(sorted(row.picture for row in of))}; {REPORT} says why" for what, of in kinds if of
        ),
    )
