"""Pairs of images to verify, and their CSV form."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fastadv.core.content import refuse_unless_text
from fastadv.core.errors import Error
from fastadv.core.files import write_atomically
from fastadv.core.notices import notify
from fastadv.core.remote import to_path
from fastadv.data import names
from fastadv.data.names import read_text

if TYPE_CHECKING:
    from fastadv.data.faces import FaceSource

_DEEPEST = 16  # folders of an image
_COLUMNS = ("first", "second", "same", "fold")
_SAME = {"1": True, "true": True, "0": False, "false": False}


class PairError(Error, ValueError):
    """A list of pairs that cannot be used; the message names the file and the line."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images, by name, and whether they show the same person.

    Attributes:
        first: Name of the first image, `identity/file` without extension.
        second: Name of the second image.
        same: Whether both show one person.
        fold: Cross-validation fold, from 0, or None.
    """

    first: str
    second: str
    same: bool
    fold: int | None = None

    def __post_init__(self) -> None:
        if not self.first or not self.second:
            raise PairError(f"pair: expected two names, got {self.first!r} and {self.second!r}")
        if self.fold is not None and self.fold < 0:
            raise PairError(f"fold: expected 0 or more, got {self.fold}")


def read_pairs_csv(path: str | os.PathLike[str]) -> tuple[Pair, ...]:
    """Reads pairs from a CSV file with the header `first,second,same` or `first,second,same,fold`.

    `same` is 1, 0, true or false; `fold` is an integer from 0, given for all pairs or for none.

    Raises:
        PairError: An unreadable or empty file, or a malformed line, with its number.
    """
    path = to_path(path)
    refuse_unless_text(path, PairError, "a CSV file of pairs (first,second,same)")
    text = read_text(path, "pairs", PairError)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    pairs: list[Pair] = []
    columns = 0
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not row:
                continue
            if not columns:
                columns = _header(row, where)
                continue
            pairs.append(_pair(row, columns, where))
    except csv.Error as error:
        raise PairError(f"{path}:{reader.line_num}: {error}") from error
    if not pairs:
        raise PairError(f"{path}: expected the header first,second,same[,fold] and a line per pair, got no pairs")
    return tuple(pairs)


def named_as(source: FaceSource, pairs: Sequence[Pair]) -> tuple[tuple[Pair, ...], list[str]]:
    """Pairs with the names that a source has for their images, and the names that it does not have.

    A list may write a name with an extension or in another Unicode form, see `names.find`; and with more or fewer
    folders before it than the source, where one image alone is meant. Pairs of a photograph in which the source has
    found no face are left out, which a notice says.
    """
    texts = dict.fromkeys(t for pair in pairs for t in (pair.first, pair.second))
    known = {text: source.find(text) for text in texts}
    if None in known.values():
        ends = _by_end(source.names)
        known |= {text: _below(source, ends, text) for text, name in known.items() if name is None}
    missing = [text for text, name in known.items() if name is None]
    ends = _by_end(source.without_face)
    lost = {text for text in missing if _below(source.without_face, ends, text) is not None}
    if lost:
        left = tuple(pair for pair in pairs if not lost & {pair.first, pair.second})
        notify(f"pairs: {len(pairs) - len(left)} of {len(pairs)} left out: no face in {names.several(sorted(lost))}")
        pairs, missing = left, [text for text in missing if text not in lost]
    named = tuple(
        replace(pair, first=known[pair.first] or pair.first, second=known[pair.second] or pair.second) for pair in pairs
    )
    return named, missing


def _by_end(listed: Iterable[str]) -> dict[str, str | None]:
    """Names by what follows each of their folders; None where several end so."""
    found: dict[str, str | None] = {}
    for name in listed:
        _, slash, end = name.partition("/")
        while slash:
            found[end] = None if end in found else name
            _, slash, end = end.partition("/")
    return found


def _below(known: Container[str], ends: Mapping[str, str | None], text: str) -> str | None:
    """The only one of some names that is, ends with, or is the end of, the name of a list."""
    parts = names.stem(names.written(text).replace("\\", "/")).split("/")
    for k in range(max(0, len(parts) - _DEEPEST), len(parts)):
        found = names.find("/".join(parts[k:]), known)
        if found is not None:
            return found
    return ends.get("/".join(parts))


def _header(row: list[str], where: str) -> int:
    names = tuple(field.strip() for field in row)
    if names not in (_COLUMNS[:3], _COLUMNS):
        raise PairError(f"{where}: expected the header first,second,same[,fold], got {','.join(row)}")
    return len(names)


def _pair(row: list[str], columns: int, where: str) -> Pair:
    if len(row) != columns:
        raise PairError(f"{where}: expected {columns} columns, got {len(row)}")
    first, second, same, *rest = (field.strip() for field in row)
    if same.lower() not in _SAME:
        raise PairError(f"{where}: same: expected 1, 0, true or false, got {same!r}")
    if rest and not (rest[0].isascii() and rest[0].isdecimal() and len(rest[0]) < 10):
        raise PairError(f"{where}: fold: expected a whole number from 0, got {rest[0][:40]!r}")
    try:
        fold = int(rest[0]) if rest else None
        return Pair(first=first, second=second, same=_SAME[same.lower()], fold=fold)
    except ValueError as error:
        raise PairError(f"{where}: {error}") from None


def check_pairs(pairs: Iterable[Pair], *, where: str = "pairs") -> None:
    """Refuses a pair of an image with itself, and one that occurs twice, in whatever order and class.

    Args:
        pairs: The list.
        where: What the message names: the file, or the argument.

    Raises:
        PairError: With the names of the first such pair.
    """
    seen: dict[frozenset[str], tuple[int, bool]] = {}
    for number, pair in enumerate(pairs, 1):
        if pair.first == pair.second:
            raise PairError(f"{where}: expected pairs of two images, got {pair.first} with itself as pair {number}")
        earlier, same = seen.setdefault(frozenset((pair.first, pair.second)), (number, pair.same))
        if earlier != number:
            twice = "twice" if same is pair.same else "as one person and as two"
            raise PairError(
                f"{where}: expected every pair once, got {pair.first}, {pair.second} {twice}: pairs {earlier} and "
                f"{number}"
            )


def write_pairs_csv(path: str | os.PathLike[str], pairs: Iterable[Pair]) -> None:
    """Writes pairs in the form that `read_pairs_csv` reads; the file is whole or absent.

    Raises:
        PairError: No pairs, or folds for some of them only.
        OSError: With the file's name.
    """
    pairs = tuple(pairs)
    folded = [pair.fold is not None for pair in pairs]
    if not pairs or (any(folded) and not all(folded)):
        raise PairError(
            f"pairs: expected at least one, with folds for all or for none, got {sum(folded)} with a fold "
            f"of {len(pairs)}"
        )
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS if folded[0] else _COLUMNS[:3])
    for pair in pairs:
        row: list[str | int | None] = [pair.first, pair.second, int(pair.same)]
        writer.writerow([*row, pair.fold] if folded[0] else row)
    write_atomically(path, text.getvalue().encode())
