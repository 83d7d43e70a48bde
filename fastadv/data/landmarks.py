"""Lists of five landmarks a face: files, and a list for the faces of a source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fastadv.core.content import refuse_unless_text
from fastadv.data import names
from fastadv.data.alignment import AlignmentError, Points

Landmarks = Mapping[str, Points]


def open_landmarks(landmarks: str | os.PathLike[str] | Landmarks | None) -> Landmarks | None:
    """Landmarks as a mapping: as they are, or read from a file."""
    if landmarks is None or isinstance(landmarks, Mapping):
        return landmarks
    return read_landmarks(landmarks)


def read_landmarks(path: str | os.PathLike[str]) -> dict[str, Points]:
    """Reads five points per image: lines of `name x y x y x y x y x y [score]`, by tabs or by blanks.

    The name may have the extension of an image, which is dropped; lines that are empty or start with `#` are skipped. A
    name with spaces is read where tabs, its extension or ten numbers behind it tell its end.

    Args:
        path: A text file, UTF-8 or UTF-16 with its byte order mark.

    Returns:
        Name without extension, in the Unicode form NFC, to (5, 2) float64.

    Raises:
        AlignmentError: An unreadable file, or a malformed line, with its number.
    """
    refuse_unless_text(path, AlignmentError, "a list of landmarks (name and ten coordinates a line)")
    found: dict[str, Points] = {}
    for number, line in enumerate(names.read_lines(path, "landmarks", AlignmentError), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{os.fspath(path)}:{number}"
        text, fields = _split(line, where)
        name = names.stem(names.written(text))
        if name in found:
            raise AlignmentError(f"{where}: expected one line for each image, got a second one for {names.shown(name)}")
        found[name] = _parse(fields, where)
    return found


def _split(line: str, where: str) -> tuple[str, Sequence[str]]:
    """The name of a line and the fields behind it."""
    by_tabs = [field.strip() for field in line.strip().split("\t") if field.strip()]
    if len(by_tabs) in (11, 12):
        return by_tabs[0], by_tabs[1:]
    words = line.split()
    numbers = _numbers_at_the_end(words)
    if numbers >= 10 and len(words) - numbers >= 2:  # a name of several words
        # the rightmost word with an extension that leaves enough numbers ends the name
        ends = [k for k in range(1, len(words) - 9) if names.extension(words[k - 1])]
        if ends and len(words) - ends[-1] in (10, 11):
            return _words(line, ends[-1]), words[ends[-1] :]
        if numbers == 10:
            return _words(line, len(words) - 10), words[-10:]
        raise AlignmentError(
            f"{where}: cannot tell the name, which has a space, from the {numbers} numbers behind it; put tabs between "
            "the name and the numbers"
        )
    return words[0], words[1:]


def _words(line: str, count: int) -> str:
    """The first words of a line with the blanks between them."""
    return line.strip().rsplit(maxsplit=len(line.split()) - count)[0]


def _numbers_at_the_end(words: Sequence[str]) -> int:
    count = 0
    for word in reversed(words[1:]):
        try:
            float(word)
        except ValueError:
            break
        count += 1
    return count


def _parse(fields: Sequence[str], where: str) -> Points:
    if len(fields) not in (10, 11):
        raise AlignmentError(
            f"{where}: expected a name, ten coordinates and maybe a score, with blanks or tabs between them, got "
            f"{len(fields)} numbers"
        )
    try:
        values = np.array([float(field) for field in fields])
    except ValueError:
        wrong = next(field for field in fields if not _is_number(field))
        raise AlignmentError(
            f"{where}: expected ten numbers with decimal points, got {wrong[:40]!r}; a header line must go"
        ) from None
    if not np.isfinite(values).all():
        raise AlignmentError(f"{where}: expected finite numbers, got NaN or infinity")
    return values[:10].reshape(5, 2)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def of_names(landmarks: Landmarks, files: Mapping[str, Path]) -> dict[str, Points]:
    """Landmarks by the names of a source, in whatever form the list has them.

    Raises:
        AlignmentError: The list has a face twice, or none of the source's faces.
    """
    found: dict[str, Points] = {}
    for text, points in landmarks.items():
        name = names.find(text, files) or names.written(text)
        if name in found:
            raise AlignmentError(f"landmarks: expected each image once, got {names.shown(name)} twice")
        found[name] = points
    for name in files:  # `a.jpg.png`, which a list calls a.jpg
        short = names.stem(name)
        if name not in found and short != name and short not in files and short in found:
            found[name] = found[short]
    if found and files and not any(name in files for name in found):
        listed, own = names.shown(next(iter(landmarks))), names.shown(min(files))
        raise AlignmentError(
            f"landmarks: expected lines for images such as {own}, got {len(found)} of other names such as {listed}"
        )
    return found


def points_hash(landmarks: Landmarks, faces: Sequence[str]) -> str:
    """SHA-256 of the points of these faces, in this order, hexadecimal."""
    digest = hashlib.sha256()
    for name in faces:
        points = landmarks.get(name)
        text = "none" if points is None else " ".join(repr(float(value)) for value in np.asarray(points).ravel())
        digest.update(f"{name}\0{text}\n".encode())
    return digest.hexdigest()
