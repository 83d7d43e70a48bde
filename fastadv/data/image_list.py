"""Images that a text file lists, with who they show."""

from __future__ import annotations

import os
from pathlib import Path

from numpy.typing import ArrayLike

from fastadv.core.content import refuse_unless_text
from fastadv.data import names
from fastadv.data.alignment import Size
from fastadv.data.faces import FaceSource, SourceError
from fastadv.data.landmarks import Landmarks, open_landmarks

SUFFIXES = (".txt", ".lst", ".csv")


class ImageList(FaceSource):
    """The images of a list: a path in each line, with a number or name of the person, or within a folder of that name.

    Read are `path`, `path label`, `number label path` (MXNet's `.lst`) and `flag path label` (InsightFace's), between
    tabs, commas or blanks; lines that are empty or start with `#`, and a header, are skipped. The path is what has the
    extension of an image (one with blanks needs tabs or commas), below the folder of the list unless it is absolute.
    The name of a face is "label/path" with the folders of the path joined by "_", or the path itself where there is no
    label.

    Attributes:
        file: The list.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        *,
        size: Size | None = 112,
        landmarks: str | os.PathLike[str] | Landmarks | None = None,
        template: ArrayLike | None = None,
    ) -> None:
        """Reads the list; no image is read yet.

        Args:
            file: The list.
            size: Side of the crops in pixels, or their height and width, or None for whole files.
            landmarks: Five points per image: a file or a mapping; None for the central square.
            template: Where they go, as of `FaceSource`.

        Raises:
            SourceError: The list cannot be read, has a line without an image, lists an image twice, or lists images
                that are not there, or none.
        """
        self.file = Path(file)
        refuse_unless_text(self.file, SourceError, "a list of images")
        files: dict[str, Path] = {}
        begun = False
        for number, line in enumerate(names.read_lines(self.file, "list", SourceError), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            where = f"{self.file}:{number}"
            found = _read(line)
            if found is None and not begun:
                begun = True  # a header
                continue
            begun = True
            if found is None:
                raise SourceError(f"{where}: expected the path of an image, got {line.strip()[:60]!r}")
            path, label = found
            name = names.canonical(_name(path, label))
            fault = names.fault(name) or ("the image lies in no folder and has no label" if "/" not in name else None)
            if fault is not None:
                raise SourceError(f"{where}: expected a usable name, got {names.shown(name)}: {fault}")
            if name in files:
                raise SourceError(f"{where}: expected each image once, got {names.shown(name)} twice")
            files[name] = self.file.parent / path
        missing = [str(path) for path in files.values() if not os.path.isfile(path)]
        if missing:
            raise SourceError(f"{self.file}: images are missing: {names.several(missing)}")
        if not files:
            raise SourceError(f"{self.file}: expected lines with the path of an image, got none")
        super().__init__(files, size=size, landmarks=open_landmarks(landmarks), template=template)


def _read(line: str) -> tuple[str, str] | None:
    """The path and the label of a line; an empty label where it has none."""
    for fields in (line.split("\t"), line.split(","), line.split()):
        parts = [field.strip() for field in fields]
        place = next((k for k, part in enumerate(parts) if names.extension(part)), None)
        if place is None or (len(parts) == 1 and " " in parts[0]):  # the fields are not apart yet
            continue
        label = parts[place + 1] if place + 1 < len(parts) else parts[place - 1] if place >= 2 else ""
        return parts[place].replace("\\", "/").removeprefix("./"), label
    return None


def _name(path: str, label: str) -> str:
    stem = names.stem(path).lstrip("/")
    if not label:
        return stem
    folders, _, base = stem.rpartition("/")
    own = [part for part in folders.split("/") if part and part != label]
    return f"{label}/{'_'.join([*own, base])}"
