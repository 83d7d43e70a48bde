"""What a detection study is made of: its attacks, whose images go where, and the classes of the network's head."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.core.brief import brief
from fastadv.core.errors import UNREADABLE, ArgumentError
from fastadv.core.fields import check_one_of
from fastadv.data import Face, FaceSource, Stream, face_id
from fastadv.data.dealt_pairs import by_identity
from fastadv.data.hashes import KnownHashes
from fastadv.data.known_names import require
from fastadv.data.names import read_lines, stem, written

PARTS = ("fit", "validate", "test")
"""What a person's images are for: to fit the detectors, to stop the fit and draw the thresholds, to measure."""

SPLITS = ("people", "images")
"""What is shared out between the parts."""

LEAST_REST = 3
"""Images of a person that are left to train the head and to represent the class: one, and two that validate."""


class Selection(FaceSource):
    """Some of the faces of a source, in the source's order."""

    def __init__(self, source: FaceSource, names: Iterable[str]) -> None:
        """Choose.

        Args:
            source: The faces.
            names: Which of them.

        Raises:
            KeyError: The source lacks one.
        """
        wanted = {source.find(name) or name for name in names}.difference(source.without_face)
        require(source, sorted(wanted))
        super().__init__({n: Path(n) for n in source.names if n in wanted}, size=source.size, landmarks=None)
        self._source = source

    def path(self, name: str) -> Path:
        """The file of a name, as the source says."""
        require(self, (name,))
        return self._source.path(name)

    def identity(self, names: Iterable[str] | None = None, *, known: KnownHashes | None = None) -> dict[str, Any]:
        """As the source's; of all of the selection where no names are given."""
        chosen = tuple(self.names if names is None else names)
        require(self, chosen)
        return self._source.identity(chosen, known=known)

    def content_hash(self, name: str, *, known: KnownHashes | None = None) -> str:
        """As the source's."""
        require(self, (name,))
        return self._source.content_hash(name, known=known)

    def unchanged(self, face: Face) -> Face:
        """As the source's."""
        return self._source.unchanged(face)

    def load(self, name: str) -> Face:
        """One face of the source."""
        require(self, (name,))
        return self._source.load(name)

    def check(self, names: Iterable[str]) -> None:
        """As the source's."""
        self._source.check(names)

    def _survey(self, names: Sequence[str]) -> list[Any]:
        """Faces are skipped where the source skips them."""
        return []

    def _stream(self, names: Iterable[str], **how: Any) -> Stream[Face]:
        """As the source's."""
        return self._source.stream(names, **how)


def read_names(path: Path) -> tuple[str, ...]:
    """Names from a text file, one ``identity/file`` a line, as people write them: see ``FaceSource.find``.

    Raises:
        ValueError: The file cannot be read or names nothing.
    """
    names = [stem(written(line)) for line in read_lines(path, "names", ArgumentError) if line.strip()]
    if not names:
        raise ArgumentError(f"{path}: expected a name a line, got none")
    return tuple(dict.fromkeys(names))


def people_of(names: Iterable[str]) -> list[str]:
    """The people of images, by the images' names."""
    return [name.rpartition("/")[0] for name in names]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Which images go where. What is made from an image is of the image's part.

    Attributes:
        people: Sorted.
        rest: Names that train the head, represent the classes and fill the kNN index; person by person.
        natural: Names of natural examples, by part.
        attacked: Names of images to attack, by part.
        targets: For each of those, the person that a targeted attack goes for.
        outside: Names of the images of people who are no class, by part: natural examples.
    """

    people: tuple[str, ...]
    rest: tuple[str, ...]
    natural: Mapping[str, tuple[str, ...]]
    attacked: Mapping[str, tuple[str, ...]]
    targets: Mapping[str, str]
    outside: Mapping[str, tuple[str, ...]]

    def part_of(self, name: str) -> str | None:
        """The part of an image that is set aside, or None."""
        return self._parts.get(name)

    def guide(self, name: str) -> str:
        """The image that an attack on features moves ``name`` towards: the target's first that is not set aside."""
        return self._guides[self.targets[name]]

    @cached_property
    def _parts(self) -> dict[str, str]:
        return {name: part for part in PARTS for name in (*self.natural[part], *self.attacked[part])}

    @cached_property
    def _guides(self) -> dict[str, str]:
        return {person: names[0] for person, names in by_identity(self.rest).items()}


def draw_splits(
    names: Sequence[str],
    *,
    natural: int = 10,
    attacked: int = 10,
    validate: float = 0.15,
    test: float = 0.35,
    by: str = "people",
    outside: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Set ``natural`` and ``attacked`` images of every person aside, and share them out among the parts.

    What is set aside of a person does not depend on the others. **choice**: the paper does not say how the images that
    it sets aside are shared out between training and test of the detectors. By people, nobody of the test is in the
    fit: the error on people whom a detector has not met, as in use. By images, it has met others of the same people,
    and the error comes out too low. A target is drawn evenly among all others, the same for every attack.

    Args:
        names: ``identity/file``.
        natural: Images of each person that stay as they are.
        attacked: Images of each person to attack.
        validate: Share that stops the fit and draws the thresholds.
        test: Share that measures.
        by: What is shared out: ``"people"``, or ``"images"``, natural ones and those to attack each by themselves.
        outside: Share of the people who are held out of the classes; all of their images are natural examples. They are
            shared out by people, and fewer than three are none.
        seed: Of the draw.

    Raises:
        ValueError: A number out of range, too few people, or people with too few images.

    Source: Massoli et al. 2021, section 5.1.
    """
    for argument, count in (("natural", natural), ("attacked", attacked)):
        if count < 1:
            raise ArgumentError(f"{argument}: expected at least 1, got {count}")
    if not (0 < validate < 1 and 0 < test < 1 and validate + test < 1):
        raise ArgumentError(f"validate and test: expected shares above 0 with a sum below 1, got {validate} and {test}")
    check_one_of("split_by", by, SPLITS)
    if not 0 <= outside < 1:
        raise ArgumentError(f"outside: expected a share in [0, 1), got {outside}")
    grouped = by_identity(names)
    people = sorted(grouped)
    if len(people) < 3:
        raise ArgumentError(f"data: expected at least 3 people (fit, validation, test), got {len(people)}")
    needed = natural + attacked + LEAST_REST
    few = [person for person in people if len(grouped[person]) < needed]
    if few:
        raise ArgumentError(
            f"natural and attacked: expected {natural} + {attacked} images and {LEAST_REST} for the class head of "
            f"every person, got fewer for {len(few)} of {len(people)} people, first {few[0]!r} with "
            f"{len(grouped[few[0]])}"
        )
    strangers = _outside(people, outside, validate, test, seed)
    people = [person for person in people if person not in strangers]
    if len(people) < 3:
        raise ArgumentError(f"outside: expected a share that leaves at least 3 people as classes, got {outside}")
    rest: list[str] = []
    calm: list[str] = []
    moved: list[str] = []
    targets: dict[str, str] = {}
    for person in people:
        own = sorted(grouped[person])
        order = _draw(seed, person).permutation(len(own))
        aside = [own[k] for k in order[: natural + attacked]]
        calm += sorted(aside[:natural])
        moved += sorted(aside[natural:])
        rest += sorted(set(own) - set(aside))
        for name in aside[natural:]:
            others = [other for other in people if other != person]
            targets[name] = others[int(_draw(seed, name).integers(len(others)))]
    if by == "people":
        part_of = share_out(people, validate, test, seed)
        parts = {name: part_of[name.rpartition("/")[0]] for name in (*calm, *moved)}
    else:
        parts = {**share_out(calm, validate, test, seed), **share_out(moved, validate, test, seed)}
    return Splits(
        people=tuple(people),
        rest=tuple(rest),
        natural={part: tuple(name for name in calm if parts[name] == part) for part in PARTS},
        attacked={part: tuple(name for name in moved if parts[name] == part) for part in PARTS},
        targets=targets,
        outside={part: tuple(n for p, own in strangers.items() if own == part for n in grouped[p]) for part in PARTS},
    )


def _outside(people: Sequence[str], share: float, validate: float, test: float, seed: int) -> dict[str, str]:
    """The part of each person who is no class."""
    count = round(share * len(people))
    if count < len(PARTS):
        return {}
    order = np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(people))
    return share_out(sorted(people[k] for k in order[:count]), validate, test, seed)


def _draw(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, face_id(name)]))


def share_out(names: Sequence[str], validate: float, test: float, seed: int) -> dict[str, str]:
    """The part of each of three names or more, by shares, and at least one of each part."""
    count = len(names)
    tests = max(1, round(test * count))
    validates = max(1, round(validate * count))
    if tests + validates >= count:
        tests = validates = 1
    order: NDArray[np.int64] = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    parts = ["test"] * tests + ["validate"] * validates + ["fit"] * (count - tests - validates)
    return {names[k]: part for k, part in zip(order, parts, strict=True)}


def read_classes(path: Path) -> tuple[str, ...]:
    """The identity of every logit from a JSON list, as ``fastadv train --head`` writes it.

    Raises:
        ValueError: The file cannot be read or is no list of distinct texts.
    """
    try:
        found = json.loads(path.read_bytes())
    except UNREADABLE as error:
        raise ArgumentError(
            f"{path}: expected a JSON list of distinct names, got a file that cannot be read: {error}"
        ) from error
    if not isinstance(found, list) or not all(isinstance(n, str) for n in found) or len(set(found)) != len(found):
        raise ArgumentError(f"{path}: expected a JSON list of distinct names, one for each logit, got {brief(found)}")
    return tuple(found)


def fit_classes(logits: int, people: Sequence[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Who each logit of a head is.

    Args:
        logits: How many the head has.
        people: Of the data, sorted.
        classes: As given; None: the people in their order, where they are as many as the logits.

    Raises:
        ValueError: Another number of names than logits, or one of the people has no logit.
    """
    if classes is None:
        if logits != len(people):
            raise ArgumentError(
                f"classes: expected a list for a network's head of {logits} classes and data of {len(people)} people, "
                "got none; give one, or train a new head"
            )
        return tuple(people)
    if len(classes) != logits:
        raise ArgumentError(f"classes: expected names of the {logits} logits of the network's head, got {len(classes)}")
    unknown = sorted(set(people) - set(classes))
    if unknown:
        raise ArgumentError(
            f"classes: expected everybody in the data, got a list without {len(unknown)} people, first {unknown[0]!r}"
        )
    return tuple(classes)
