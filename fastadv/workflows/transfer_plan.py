"""What a transfer study compares: networks, methods and pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastadv.attacks import CATALOG, Recipe, as_recipe, by_name
from fastadv.core.errors import ArgumentError
from fastadv.core.resolution import measurable, unmeasurable
from fastadv.data import FaceSource, Pair
from fastadv.models import FaceModel
from fastadv.recognition import cosine_scores, threshold_at_far
from fastadv.surrogates import Ensemble
from fastadv.workflows.inputs import Progress
from fastadv.workflows.verify import embed

BASES: Mapping[str, str] = {
    "fim": "itgsm",
    "ffm": "ftgsm",
    "m-fim": "fim",
    "di-fim": "fim",
    "s-fim": "fim",
    "ti-fim": "fim",
    "di-m-fim": "m-fim",
    "ti-di-m-fim": "di-m-fim",
    "dfanet-fim": "fim",
    "dfanet-m-fim": "m-fim",
    "dfanet-di-m-fim": "di-m-fim",
}
"""What each method is compared with: the one that it adds something to."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """An attack of the study.

    Attributes:
        name: Of the catalogue.
        steps: Its steps; None: as the study says, or one.
        rate: Its drop rate; None: the paper's for the network.
    """

    name: str
    steps: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.name in CATALOG and CATALOG[self.name].ensemble:
            raise ArgumentError(f"method {self.name!r} is a method on several surrogates: name these A+B instead")

    @property
    def label(self) -> str:
        """``"fim"``, ``"fim:13"``, ``"dfanet-fim@0.05"``."""
        steps = "" if self.steps is None else f":{self.steps}"
        return f"{self.name}{steps}{'' if self.rate is None else f'@{self.rate:g}'}"

    def recipe(self, *, eps: float, steps: int, others: Sequence[FaceModel]) -> Recipe:
        """The attack, on the surrogate's further networks too.

        Raises:
            ValueError: The name is not known, or the method takes no drop rate.
        """
        count = (self.steps or steps) if self.name not in CATALOG or CATALOG[self.name].steps else None
        made = as_recipe(by_name(self.name, eps=eps, steps=count, rate=self.rate))
        if not others:
            return made
        return replace(made, surrogate=replace(made.surrogate, ensemble=Ensemble(others=tuple(others))))


def parse_method(text: str) -> Method:
    """A method from ``"NAME"``, ``"NAME:STEPS"``, ``"NAME@RATE"`` or ``"NAME:STEPS@RATE"``.

    Raises:
        ValueError: The text is not of that form, or the attack is not known.
    """
    head, at, rate = text.partition("@")
    name, colon, steps = head.partition(":")
    try:
        if name not in CATALOG:
            raise ValueError
        return Method(name=name, steps=_positive(steps) if colon else None, rate=float(rate) if at else None)
    except ValueError as error:
        if "surrogates" in str(error):
            raise
        raise ArgumentError(
            f"method must be NAME, NAME:STEPS, NAME@RATE or NAME:STEPS@RATE with a name of {', '.join(CATALOG)}, "
            f"got {text!r}"
        ) from None


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """A network with its threshold, as a verifier in service.

    Attributes:
        model: The network.
        threshold: The cosine at and above which a pair is accepted, at the study's false accept rate.
        accuracy: Share of the verification pairs that it decides rightly at that threshold.
    """

    model: FaceModel
    threshold: float
    accuracy: float

    @property
    def distance(self) -> float:
        """The threshold as a distance of unit embeddings, ``sqrt(2 - 2 cos)``."""
        return math.sqrt(max(0.0, 2 - 2 * self.threshold))


def check_far(far: float, pairs: Sequence[Pair]) -> None:
    """Refuse a false accept rate that is none, or that the verification pairs cannot show.

    Raises:
        ValueError: It is one.
    """
    if not 0 < far <= 1:
        raise ArgumentError(f"far: expected a rate above 0, up to 1, got {far:g}")
    negatives = sum(not pair.same for pair in pairs)
    if not measurable(far, negatives):
        raise ArgumentError(f"far: {unmeasurable(f'FAR {far:g}', far, negatives, 'negative pairs')}")


def calibrate(
    source: FaceSource, pairs: Sequence[Pair], model: FaceModel, *, far: float, progress: Progress
) -> Verifier:
    """The network's threshold at a false accept rate on verification pairs.

    Raises:
        ValueError: As `check_far`.
        ImageError, AlignmentError: A face cannot be read.
    """
    check_far(far, pairs)
    same = np.array([p.same for p in pairs])
    names = list(dict.fromkeys(n for p in pairs for n in (p.first, p.second)))
    rows = embed(source, names, model, progress=progress)
    first, second = (np.stack([rows[getattr(p, k)].numpy() for p in pairs]) for k in ("first", "second"))
    scores = cosine_scores(first, second)
    threshold = threshold_at_far(scores, same, far)
    return Verifier(model=model, threshold=threshold, accuracy=float(((scores >= threshold) == same).mean()))


def draw_images(source: FaceSource, count: int, *, seed: int) -> tuple[list[str], list[str]]:
    """``count`` source and ``count`` target images of different people each, drawn by the seed.

    Raises:
        ValueError: There are not so many people.
    """
    first: dict[str, str] = {}
    for name in source.names:
        first.setdefault(name.rpartition("/")[0], name)
    people = sorted(first)
    if len(people) < 2 * count:
        raise ArgumentError(
            f"{2 * count} different people are needed for {count} sources and targets, got {len(people)}"
        )
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(people))[: 2 * count]
    names = [first[people[k]] for k in chosen]
    return names[:count], names[count:]


def negative_pairs(
    sources: Sequence[str],
    targets: Sequence[str],
    accepted: NDArray[np.bool_],
    count: int,
) -> list[tuple[str, str]]:
    """The first ``count`` pairs that no network accepts, so that images repeat as late as possible.

    The pairs (source i, target i + k) come in the order of k, then i: the first ones share no image.

    Args:
        sources: S names.
        targets: S names.
        accepted: ``(S, S)``: whether any network takes source i for target j.
        count: How many.

    Raises:
        ValueError: There are fewer.
    """
    size = len(sources)
    order = [(i, (i + k) % size) for k in range(size) for i in range(size)]
    found = [(sources[i], targets[j]) for i, j in order if not accepted[i, j]]
    if len(found) < count:
        raise ArgumentError(
            f"pairs: {count} were asked for, and {size} x {size} images give {len(found)} negative ones"
        )
    return found[:count]
