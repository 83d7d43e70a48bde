"""Labeled Faces in the Wild: its layout, its pairs, its alignment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastadv.core.content import refuse_unless_text
from fastadv.core.files import write_atomically
from fastadv.core.numbers import whole
from fastadv.core.remote import is_remote, to_path
from fastadv.data.alignment import Matrix, Size, shape_of, warp
from fastadv.data.faces import SourceError
from fastadv.data.folder import IdentityFolder, is_dir, tell_beside
from fastadv.data.names import read_lines, several
from fastadv.data.pairs import Pair, PairError, named_as

# Where the template lies in the deep-funneled images on average over all their faces: a square of 131.4
# pixels around (125.6, 117.1), in images of 250 x 250.
_WINDOW_CENTER = (125.6 / 250, 117.1 / 250)
_WINDOW_SIDE = 131.4 / 250
_MOST_WORDS = 100  # of a line: how it is read is tried at each of them


class LFW(IdentityFolder):
    """LFW (Huang et al. 2007; deep-funneled: Huang et al. 2012) in its own layout.

    `root/images/<person>/<person>_NNNN.jpg` or `root/<person>/<person>_NNNN.jpg`, each with the extension of its own
    image format; `root/pairs.txt` and `root/pairsDevTest.txt` where they are needed; `root/landmarks.txt` is used where
    it is there. Without landmarks the crop is the square around the place where deep-funneled faces are on average;
    recognition is then clearly less accurate. Images that have the crops' size are taken as they are.
    """

    _middle = "the usual place of a deep-funneled face in each"
    _own_landmarks = "landmarks.txt"

    def _people(self) -> Path:
        images = images_folder(self.root)
        if images is None:
            return self.root
        tell_beside(self.root, images.name)
        return images

    @property
    def crop(self) -> str:
        """As of any source; without landmarks, the window where the faces of the deep-funneled images lie."""
        return "window" if super().crop == "square" else super().crop

    def _without_landmarks(self, image: NDArray, size: Size) -> tuple[NDArray, Matrix]:
        (rows, columns), (height, width) = shape_of(size), image.shape[:2]
        longer, side = max(rows, columns), _WINDOW_SIDE * min(height, width)
        scale = longer / side
        left = _WINDOW_CENTER[0] * width - side * (columns / longer) / 2
        top = _WINDOW_CENTER[1] * height - side * (rows / longer) / 2
        matrix = np.array([[scale, 0.0, -scale * left], [0.0, scale, -scale * top]])
        return warp(image, matrix, (rows, columns)), matrix

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs of `pairs.txt` (view 2: 6,000 in ten folds), in its order.

        Raises:
            SourceError: The file is missing or malformed (with the line), or names images that are not
                there (with the first few and their number).
        """
        return self._read_pairs("pairs.txt")

    @cached_property
    def dev_pairs(self) -> tuple[Pair, ...]:
        """The pairs of `pairsDevTest.txt` (view 1: 1,000), without folds; raises as `pairs` does."""
        return self._read_pairs("pairsDevTest.txt")

    def _read_pairs(self, file: str) -> tuple[Pair, ...]:
        path = self.root / file
        if not path.exists() and (self.root / "pairs.csv").is_file():
            raise SourceError(f"{path}: there is no such list, but pairs.csv; give it with --pairs, as talfw says")
        pairs, missing = named_as(self, read_lfw_pairs(path))
        if missing:
            raise SourceError(f"{path}: images are missing below {self.root}: {several(missing)}")
        return pairs


def images_folder(root: Path) -> Path | None:
    """`root/images` where that holds folders of people; None where there is no such, or it is a person's own folder."""
    images = root / "images"
    if is_remote(root):
        return images if images.is_dir() and any(each.is_dir() for each in images.iterdir()) else None
    try:
        with os.scandir(images) as entries:
            return images if any(is_dir(entry) for entry in entries) else None
    except OSError:
        return None


def read_lfw_pairs(path: str | os.PathLike[str]) -> tuple[Pair, ...]:
    """Reads a pair list of LFW.

    The first line is `folds<TAB>n` or `n`; then, per fold, n lines `person i j` (same) and n lines
    `person i other j` (not the same). A list without folds has pairs with `fold=None`. People with a space in their
    names need tabs, or blanks that leave one way to read the line.

    Raises:
        SourceError: A missing or malformed file, with the line's number.
    """
    path = to_path(path)
    refuse_unless_text(path, SourceError, "a list of pairs in LFW's form")
    lines = read_lines(path, "pairs", SourceError)
    head = lines[0].split() if lines else []
    numbers = [whole(field) for field in head]
    if len(head) not in (1, 2) or not all(numbers):
        raise SourceError(f"{path}:1: expected the number of folds and of pairs, got {' '.join(head)[:60]!r}")
    folds, count = (1 if number is None else number for number in (None, *numbers)[-2:])
    body = lines[1:]
    while body and not body[-1].strip():
        body.pop()
    if len(body) != 2 * count * folds:
        raise SourceError(f"{path}: expected {2 * count * folds} pairs after the first line, got {len(body)}")
    pairs: list[Pair] = []
    for index, line in enumerate(body):
        fold, place = divmod(index, 2 * count)
        where = f"{path}:{index + 2}"
        pairs.append(_parse(line, place < count, None if len(head) == 1 else fold, where))
    return tuple(pairs)


def write_lfw_pairs(path: str | os.PathLike[str], pairs: Sequence[Pair]) -> None:
    """Writes pairs in the form that `read_lfw_pairs` reads; the file is whole or absent.

    The form holds folds one after the other, in each the same people's pairs first: pairs that come in another order
    are put in this one, and folds are counted from 0 again. LFW's own list gets its own bytes.

    Raises:
        PairError: What the form cannot say: no pairs, folds for some of them only, folds or classes of different sizes,
            or a name that is not `person/person_NNNN`.
        OSError: With the file's name.
    """
    folds = sorted({-1 if pair.fold is None else pair.fold for pair in pairs})
    blocks = [
        [pair for pair in pairs if (-1 if pair.fold is None else pair.fold) == fold and pair.same is same]
        for fold in folds
        for same in (True, False)
    ]
    sizes = {len(block) for block in blocks}
    if len(sizes) != 1 or (folds[0] == -1 and len(folds) > 1):
        raise PairError(f"pairs: expected folds with as many pairs of each class, got sizes {sorted(sizes)}")
    lines = [str(max(sizes)) if folds == [-1] else f"{len(folds)}\t{max(sizes)}"]
    lines += ["\t".join(_fields(pair)) for block in blocks for pair in block]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def _fields(pair: Pair) -> tuple[str, ...]:
    parts = []
    for name in (pair.first, pair.second):
        person, _, file = name.partition("/")
        number = file[len(person) + 1 :]
        well_formed = (
            number.isdecimal() and name == f"{person}/{person}_{int(number):04d}" and person == person.strip(" ")
        ) and not any(mark in person for mark in "\t\r\n")
        if not well_formed:
            raise PairError(f"pairs: expected names like person/person_0001, got {name!r}")
        parts.append((person, str(int(number))))
    (first, i), (second, j) = parts
    if pair.same != (first == second):
        raise PairError(f"pairs: expected {'one person' if pair.same else 'two people'}, got {first} and {second}")
    return (first, i, j) if pair.same else (first, i, second, j)


def _parse(line: str, same: bool, fold: int | None, where: str) -> Pair:
    readings = _readings(line, same)
    if not readings:
        expected = "person number number" if same else "person number person number"
        raise SourceError(f"{where}: expected '{expected}', got {line.strip()[:60]!r}")
    if len(readings) > 1:
        raise SourceError(
            f"{where}: expected names without spaces and numbers, got others; put tabs between the fields"
        )
    ((first, i, second, j),) = readings
    if same != (first == second):
        raise SourceError(f"{where}: expected {'one person' if same else 'two people'}, got {first} and {second}")
    return Pair(first=f"{first}/{first}_{int(i):04d}", second=f"{second}/{second}_{int(j):04d}", same=same, fold=fold)


def _readings(line: str, same: bool) -> list[tuple[str, str, str, str]]:
    """Every way to read `person i [person] j`; one where tabs tell the fields, or no name has a space."""
    fields = [field.strip() for field in line.strip().split("\t")]
    if same and len(fields) == 3:
        fields.insert(2, fields[0])
    if len(fields) == 4 and fields[0] and fields[2] and whole(fields[1]) is not None and whole(fields[3]) is not None:
        return [(fields[0], fields[1], fields[2], fields[3])]
    words = line.split(maxsplit=_MOST_WORDS)
    if not 0 < len(words) <= _MOST_WORDS or whole(words[-1]) is None:
        return []
    found = []
    for k in range(1, len(words) - 1):
        first, second = " ".join(words[:k]), " ".join(words[k + 1 : -1])
        if whole(words[k]) is not None and (second or same):
            found.append((first, words[k], second or first, words[-1]))
    if len(found) > 1:
        found = [reading for reading in found if same == (reading[0] == reading[2])]
    plain = [reading for reading in found if " " not in reading[0] + reading[2]]
    return plain if len(plain) == 1 else found
