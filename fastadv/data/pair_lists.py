"""Lists of pairs in the forms that data sets publish: LFW, CALFW and CPLFW, CFP, and two images and a label a line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastadv.core.content import refuse_unless_text
from fastadv.core.numbers import whole
from fastadv.core.remote import to_path
from fastadv.data import names
from fastadv.data.lfw import read_lfw_pairs
from fastadv.data.pairs import Pair, PairError, named_as, read_pairs_csv

if TYPE_CHECKING:
    from fastadv.data.faces import FaceSource

_SAME = {
    **dict.fromkeys(("1", "true", "same", "yes"), True),
    **dict.fromkeys(("0", "-1", "false", "different", "no"), False),
}


def read_pair_list(path: str | os.PathLike[str]) -> tuple[Pair, ...]:
    """Reads pairs; which form the list has is told from what is in it.

    ============================================  =====================================================================
    a header `first,second,same[,fold]`           :func:`fastadv.data.read_pairs_csv`
    a first line of one or two numbers            LFW's `pairs.txt`: folds and pairs
    two lines a pair, `image label` in each       CALFW, CPLFW: 0 for different people, else the same person
    `image image label` in a line                 1, true, same, yes; 0, -1, false, different, no; a header is skipped
    a folder `Protocol/Split/FP` (or `FF`)        CFP: `01/same.txt` ... of the images of `Pair_list_F.txt`, `_P.txt`
    ============================================  =====================================================================

    Names are as the list has them, without what leads out of its folder (`../`). Folds are those of the first two forms
    and of CFP.

    Raises:
        PairError: An unreadable or empty list, or a malformed line, with its number.
        SourceError: As `read_lfw_pairs`.
    """
    path = to_path(path)
    if path.is_dir():
        return _cfp(path)
    refuse_unless_text(path, PairError, "a list of pairs")
    lines = enumerate(names.read_lines(path, "pairs", PairError), 1)
    filled = [(number, line.strip()) for number, line in lines if line.strip()]
    if not filled:
        raise PairError(f"{path}: expected a line per pair, got none")
    first = filled[0][1]
    if first.replace(" ", "").lower().startswith("first,"):
        return read_pairs_csv(path)
    if all(word.isdecimal() for word in first.split()) and len(first.split()) <= 2:
        return read_lfw_pairs(path)
    return _two_lines(path, filled) if len(_fields(first)) == 2 else _one_line(path, filled)


def read_pairs_of(source: FaceSource, path: str | os.PathLike[str]) -> tuple[Pair, ...]:
    """As `read_pair_list`, for images of a source, by the source's own names.

    Raises:
        PairError: As `read_pair_list`, or the source lacks images.
        SourceError: As `read_pair_list`.
    """
    path = to_path(path)
    pairs, missing = named_as(source, read_pair_list(path))
    if missing:
        few = ", ".join(names.shown(name) for name in missing[:5])
        example = f"; its images are named like {names.shown(source.names[0])}" if len(source) else ""
        raise PairError(f"{path}: {len(missing)} images of the pairs are missing, first {few}{example}")
    return pairs


def _fields(line: str) -> list[str]:
    """By tabs, else by commas, else by blanks."""
    for mark in ("\t", ","):
        if mark in line:
            return [field.strip() for field in line.split(mark)]
    return line.split()


def _label(text: str, where: str) -> bool:
    if text.lower() not in _SAME:
        raise PairError(f"{where}: expected 1 for the same person and 0 for different people, got {text[:40]!r}")
    return _SAME[text.lower()]


def _name(text: str) -> str:
    """A path below the data set: `../Data/Images/001/frontal/01.jpg` without what leads out of the list's folder."""
    return text.replace("\\", "/").removeprefix("./").lstrip("/").replace("../", "")


def _one_line(path: Path, lines: Sequence[tuple[int, str]]) -> tuple[Pair, ...]:
    found = []
    head = _fields(lines[0][1])
    for number, line in lines[1:] if len(head) == 3 and head[2].lower() not in _SAME else lines:  # a header
        where, fields = f"{path}:{number}", _fields(line)
        if len(fields) != 3:
            raise PairError(f"{where}: expected two images and 1 or 0, got {line[:60]!r}")
        same = _label(fields[2], where)
        found.append(Pair(first=_name(fields[0]), second=_name(fields[1]), same=same))
    return tuple(found)


def _two_lines(path: Path, lines: Sequence[tuple[int, str]]) -> tuple[Pair, ...]:
    if len(lines) % 2:
        raise PairError(f"{path}: expected two lines a pair, got {len(lines)} lines")
    found = []
    for (number, one), (_, other) in zip(lines[::2], lines[1::2], strict=True):
        (first, label), (second, again) = (_image_and_number(text, f"{path}:{number}") for text in (one, other))
        if label != again:
            raise PairError(f"{path}:{number}: expected one label for both images of a pair, got {label} and {again}")
        # CALFW has the fold, 1 to 10, where the person is the same, and 0 where not
        found.append(Pair(first=_name(first), second=_name(second), same=label > 0))
    return tuple(found)


def _image_and_number(line: str, where: str) -> tuple[str, int]:
    fields = _fields(line)
    number = whole(fields[1]) if len(fields) == 2 else None
    if number is None:
        raise PairError(f"{where}: expected an image and a number, got {line[:60]!r}")
    return fields[0], number


def _cfp(folder: Path) -> tuple[Pair, ...]:
    """Pairs of frontal images, or of a frontal and a profile one, fold by fold."""
    folds = sorted(entry for entry in folder.iterdir() if entry.is_dir() and (entry / "same.txt").is_file())
    if not folds:
        raise PairError(f"{folder}: expected folders such as 01 with same.txt and diff.txt, got none")
    protocol = folder.parent.parent
    frontal = _cfp_images(protocol / "Pair_list_F.txt")
    others = frontal if folder.name.upper() == "FF" else _cfp_images(protocol / "Pair_list_P.txt")
    found = []
    for fold, entry in enumerate(folds):
        for same, file in ((True, entry / "same.txt"), (False, entry / "diff.txt")):
            for number, line in enumerate(names.read_lines(file, "pairs", PairError), 1):
                if not line.strip():
                    continue
                fields = [field.strip() for field in line.split(",")]
                if len(fields) != 2 or fields[0] not in frontal or fields[1] not in others:
                    raise PairError(f"{file}:{number}: expected the numbers of two images, got {line.strip()[:60]!r}")
                found.append(Pair(first=frontal[fields[0]], second=others[fields[1]], same=same, fold=fold))
    return tuple(found)


def _cfp_images(file: Path) -> dict[str, str]:
    """The images of a list by their numbers."""
    found = {}
    for number, line in enumerate(names.read_lines(file, "list", PairError), 1):
        fields = line.split()
        if fields and len(fields) != 2:
            raise PairError(f"{file}:{number}: expected the number and the path of an image, got {line.strip()[:60]!r}")
        if fields:
            found[fields[0]] = _name(fields[1])
    return found
