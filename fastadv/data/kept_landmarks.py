"""The landmarks that a command has found in photographs, kept beside its run so that they are not looked for again."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from fastadv.core.errors import UNREADABLE
from fastadv.core.files import naming, on_disk, write_all, write_atomically
from fastadv.core.places import open_binary
from fastadv.data.alignment import Points
from fastadv.data.names import fault
from fastadv.data.run_files import FOUND, RunFolderError

ABOUT = "# name, x y of left eye, right eye, nose, left and right mouth corner (the viewer's left first), score"
"""The first line of a list of landmarks that was written here."""
_MARK = "# {"


@dataclass(frozen=True, kw_only=True)
class FoundFace:
    """What was found in a photograph.

    Attributes:
        name: Of the photograph in its source.
        sha256: Of its file, hexadecimal; "" where it cannot be read.
        search: How the face was looked for, as of `FaceSearch.digest`.
        score: Of the detector.
        landmarks: x1 y1 to x5 y5; empty where no face can be used.
        skipped: Why there is none; "" where there is one.
    """

    name: str
    sha256: str
    search: str
    score: float = 0.0
    landmarks: tuple[float, ...] = ()
    skipped: str = ""

    @property
    def points(self) -> Points:
        """The landmarks, (5, 2)."""
        return np.array(self.landmarks, dtype=np.float64).reshape(-1, 2)

    def lines(self) -> str:
        """As the list has it: what it is of, in a line that readers of landmarks skip, and the landmarks."""
        about = {name: value for name, value in asdict(self).items() if name not in ("landmarks", "score")}
        text = f"# {json.dumps(about)}\n"
        return text if self.skipped else text + landmark_line(self.name, self.landmarks, self.score)


def landmark_line(name: str, landmarks: Iterable[float], score: float) -> str:
    """A line of a list of landmarks, as `data.read_landmarks` reads it."""
    return "\t".join((name, *(f"{value:.3f}" for value in landmarks), f"{score:.6f}")) + "\n"


def is_found_list(path: Path) -> bool:
    """Whether a file is a list of landmarks that was written here: by ``fastadv align``, or beside a run."""
    try:
        with open_binary(path, block=len(ABOUT)) as file:
            return file.read(len(ABOUT)) == ABOUT.encode()
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class KeptLandmarks:
    """A list of landmarks in the folder of a run, which is taken up where it ends.

    Attributes:
        path: The file; None: nothing is kept.
        rows: What it holds, by name.
        begun: Whether the run has begun: its landmarks are those of the list.
    """

    path: Path | None = None
    rows: Mapping[str, FoundFace] = field(default_factory=dict)
    begun: bool = False

    @staticmethod
    def open(path: Path | None, *, fresh: bool = False) -> KeptLandmarks:
        """What an earlier call has kept; a folder that holds something else is left alone.

        Args:
            path: The file, in the folder of the run.
            fresh: Whether the run begins anew.
        """
        if path is None:
            return KeptLandmarks()
        try:
            others = [name for name in os.listdir(path.parent) if not (name in FOUND or name.startswith("."))]
        except OSError:
            others = []
        if not path.exists():
            return KeptLandmarks(path=None if others else path)
        if not is_found_list(path):
            return KeptLandmarks()
        return KeptLandmarks(path=path, rows={} if fresh else dict(_read(path)), begun=bool(others) and not fresh)

    def right(self, hashes: Mapping[str, str], search: str) -> dict[str, FoundFace]:
        """The rows of photographs that are as they were, for the same search.

        Args:
            hashes: SHA-256 of the photographs that the list has, by name.
            search: How faces are looked for.

        Raises:
            RunFolderError: The run has begun with others.
        """
        found = {n: row for n, row in self.rows.items() if (hashes.get(n), search) == (row.sha256, row.search)}
        if not self.begun:
            return found
        for name, row in self.rows.items():
            if name in hashes and name not in found:
                other = "options of --align" if row.search != search else "photographs"
                raise RunFolderError(
                    f"{self.path}: expected the {other} that the run began with, got others, first for {name}; use "
                    "--fresh or another --out"
                )
        return {**self.rows}

    def add(self, row: FoundFace, before: Mapping[str, FoundFace], *, first: bool) -> None:
        """Keep a row; the ``first`` one of a call is written with all that were right ``before``.

        Raises:
            OSError: With the file's name.
        """
        if self.path is None:
            return
        if first:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # on the disk before the run begins: a list without its first line would be taken for somebody else's
            write_atomically(self.path, _text([*before.values(), row]), fsync=True)
            return
        try:
            with open(self.path, "ab", buffering=0) as file:
                write_all(file.fileno(), row.lines().encode())
        except OSError as error:
            raise naming(error, self.path) from error

    def finish(self, rows: Mapping[str, FoundFace]) -> None:
        """Write the list in the order of the names, whatever happened in between; raises as `add`.

        It is on the disk afterwards: the run that builds on it takes photographs that it lacks for new ones.
        """
        text = _text([rows[name] for name in sorted(rows)])
        if self.path is None:
            return
        if self.path.is_file() and self.path.read_bytes() == text:
            on_disk(self.path)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text, fsync=True)


def _text(rows: Iterable[FoundFace]) -> bytes:
    return "".join((f"{ABOUT}\n", *(row.lines() for row in rows))).encode()


def _read(path: Path) -> Iterator[tuple[str, FoundFace]]:
    """The whole rows of a list; one that is cut short or damaged is left out."""
    lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]
    for about, line in zip(lines, [*lines[1:], ""], strict=False):
        if not about.startswith(_MARK):
            continue
        with contextlib.suppress(*UNREADABLE):
            said = json.loads(about.removeprefix("# "))
            if not all(isinstance(value, str) for value in said.values()) or fault(said["name"]) is not None:
                continue
            if said["skipped"]:
                yield said["name"], FoundFace(**said)
                continue
            name, *numbers = line.split("\t")
            *landmarks, score = map(float, numbers)
            if name == said["name"] and len(landmarks) == 10 and all(map(math.isfinite, (*landmarks, score))):
                yield name, FoundFace(**said, landmarks=tuple(landmarks), score=score)
