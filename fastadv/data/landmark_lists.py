"""Reading lists of five landmarks a face, in the forms that people publish."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Mapping, Sequence
from itertools import takewhile

import numpy as np

from fastadv.core.content import refuse_unless_text
from fastadv.core.notices import notify
from fastadv.core.remote import to_path
from fastadv.data import names
from fastadv.data.alignment import AlignmentError, Points
from fastadv.data.plausible import layout_fit

_COUNTS = (10, 11, 14, 15)  # of the numbers of a line: ten coordinates, with a score, with a box of four, with both
_BOXED = {14: (4, 0), 15: (4, 5, 0, 1)}  # where the coordinates may begin; where two fit as well, the first is meant
_LARGEST = 1e9
_SAMPLE = 200  # lines that this is told from


def read_landmarks(path: str | os.PathLike[str]) -> dict[str, Points]:
    """Reads five points per image: lines of a name and ten coordinates, between blanks, tabs or commas.

    With the coordinates a line may have a box of four numbers, a score, or both; where the coordinates lie is told from
    their fit to a face, and said. The name may have the extension of an image, which is dropped; lines that are empty
    or start with `#`, a number of images in the first line, and a header are skipped. A name with spaces is read where
    tabs, commas, its extension or ten numbers behind it tell its end. The points are returned in the order of the file:
    a source that is given them recognises x1..x5 y1..y5, y x pairs, and left and right exchanged.

    Args:
        path: A text file, UTF-8 or UTF-16 with its byte order mark.

    Returns:
        Name without extension, in the Unicode form NFC, to (5, 2) float64.

    Raises:
        AlignmentError: An unreadable file, or a malformed line, with its number.

    Warns:
        Notice: Numbers beside the coordinates, other than a score behind them, were left out.
    """
    path = to_path(path)
    refuse_unless_text(path, AlignmentError, "a list of landmarks (name and ten coordinates a line)")
    found: dict[str, np.ndarray] = {}
    for number, line in enumerate(names.read_lines(path, "landmarks", AlignmentError), 1):
        if not line.strip() or line.lstrip().startswith("#") or (not found and _is_header(line)):
            continue
        where = f"{path}:{number}"
        text, fields = _split(line, where)
        name = names.stem(names.written(text))
        if name in found:
            raise AlignmentError(f"{where}: expected one line for each image, got a second one for {names.shown(name)}")
        found[name] = _parse(fields, where)
    return _points(found, str(path))


def _is_header(line: str) -> bool:
    """Whether a line before the first face names the columns, or is the number of images."""
    words = line.replace(",", " ").split()
    return (len(words) == 1 and words[0].isdigit()) or (len(words) >= 10 and not any(map(_is_number, words)))


def _split(line: str, where: str) -> tuple[str, Sequence[str]]:
    """The name of a line and the fields behind it."""
    by_tabs = [field.strip() for field in line.strip().split("\t") if field.strip()]
    if len(by_tabs) - 1 in _COUNTS:
        return by_tabs[0], by_tabs[1:]
    by_commas: list[str] = []
    with contextlib.suppress(csv.Error):  # a field that is too long
        by_commas = [field.strip() for fields in csv.reader([line.strip()]) for field in fields]
    if len(by_commas) - 1 in _COUNTS and any(map(_is_number, by_commas[1:])):
        return by_commas[0], by_commas[1:]
    words = line.split()
    numbers = len(list(takewhile(_is_number, reversed(words[1:]))))
    if numbers >= 10 and len(words) - numbers >= 2:  # a name of several words
        # the rightmost word with an extension that leaves enough numbers ends the name
        ends = [k for k in range(1, len(words) - 9) if names.extension(words[k - 1])]
        if ends and len(words) - ends[-1] in _COUNTS:
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


def _parse(fields: Sequence[str], where: str) -> np.ndarray:
    if len(fields) not in _COUNTS:
        raise AlignmentError(
            f"{where}: expected a name, ten coordinates and maybe a box of four numbers and a score, with blanks, tabs "
            f"or commas between them, got {len(fields)} numbers"
        )
    try:
        values = np.array([float(field) for field in fields])
    except ValueError:
        wrong = next(field for field in fields if not _is_number(field))
        raise AlignmentError(f"{where}: expected ten numbers with decimal points, got {wrong[:40]!r}") from None
    if not (np.abs(values) <= _LARGEST).all():  # also of a NaN
        raise AlignmentError(f"{where}: expected finite numbers, got NaN, infinity or one above {_LARGEST:g}")
    return values


def _points(found: Mapping[str, np.ndarray], path: str) -> dict[str, Points]:
    """The ten coordinates of each line."""
    begins = {}
    for count, starts in _BOXED.items():
        own = [values for values in found.values() if len(values) == count][:_SAMPLE]
        if own:
            fits = [layout_fit(np.array(own)[:, start : start + 10]) for start in starts]
            begins[count] = starts[int(np.argmin(fits))]
            notify(
                f"{path}: lines have {count} numbers; numbers {begins[count] + 1} to {begins[count] + 10} are read as "
                "the coordinates, since these fit faces best",
                stacklevel=4,
            )
    return {name: values[begins.get(len(values), 0) :][:10].reshape(5, 2) for name, values in found.items()}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
