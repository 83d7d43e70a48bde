"""What a transfer study compares: networks, methods and pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastadv.attacks import CATALOG
from fastadv.attacks.spec import AttackSpec, parse_attack
from fastadv.core.errors import ArgumentError
from fastadv.core.numbers import parse_steps
from fastadv.core.progress import Progress
from fastadv.core.resolution import measurable, too_rare
from fastadv.data import FaceSource, Pair
from fastadv.data.dealt_pairs import by_identity
from fastadv.models import FaceModel
from fastadv.recognition import threshold_at_far
from fastadv.runs.embedding import embed, names_of, pair_scores
from fastadv.runs.goals import check_goal
from fastadv.surrogates import gd_uap

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

OTHERS = "others"
"""The set of targets that every study has: the networks that the surrogate does not hold."""

UNIVERSAL = "gd-uap"
"""The universal perturbation, which has no recipe."""


@dataclass(frozen=True, kw_only=True)
class Universal:
    """GD-UAP among the methods of an untargeted comparison, with a number of steps of its own.

    Attributes:
        steps: At most; the default is the 40,000 of Mopuri et al. 2018 and Zhong and Deng 2020, section IV-F.

    Raises:
        ValueError: The number of steps is out of range.
    """

    steps: int = gd_uap.STEPS

    def __post_init__(self) -> None:
        gd_uap.check_steps(self.steps)

    @property
    def label(self) -> str:
        """``"gd-uap"``, or ``"gd-uap:200"``."""
        return UNIVERSAL if self.steps == gd_uap.STEPS else f"{UNIVERSAL}:{self.steps}"


Method = AttackSpec | Universal


def parse_untargeted(text: str) -> Method:
    """A method of an untargeted comparison: one of ``parse_method``, or ``gd-uap`` or ``gd-uap:STEPS``.

    Raises:
        ValueError: As ``parse_method``; the steps of ``gd-uap`` are out of range.
    """
    name, colon, steps = text.partition(":")
    if name != UNIVERSAL:
        return parse_method(text)
    count = parse_steps(steps) if colon else gd_uap.STEPS
    if count is None:
        raise ArgumentError(f"method: expected {UNIVERSAL} or {UNIVERSAL}:STEPS, got {text!r}")
    return Universal(steps=count)


def parse_method(text: str) -> AttackSpec:
    """A method of the study from ``NAME[:STEPS][,FIELD=VALUE...]``, such as ``dfanet-fim:200,rate=0.0125``.

    The radius is the study's.

    Raises:
        ValueError: As ``parse_attack``; or the text gives a radius.
    """
    head, at, rest = text.partition("@")
    if at:
        rate, *more = rest.split(",")
        wanted = ",".join((head, f"rate={rate}", *more))
        raise ArgumentError(
            f"method: expected none with a radius, which is --eps of the study, got {text!r}; a drop rate is {wanted}"
        )
    if text.partition(":")[0] == UNIVERSAL:
        raise ArgumentError(f"method: expected --untargeted with {UNIVERSAL}, got a study of targeted attacks")
    return parse_attack(text, argument="method")


def members(surrogate: str, models: Mapping[str, FaceModel]) -> list[FaceModel]:
    """The networks of a surrogate: one, or several with "+" between their names.

    Raises:
        ValueError: One is not among the models, or named twice.
    """
    names = surrogate.split("+")
    if any(n not in models for n in names) or len(set(names)) != len(names):
        raise ArgumentError(
            f"surrogate: expected some of {', '.join(models)}, or several of them with '+' between, got {surrogate!r}"
        )
    return [models[n] for n in names]


def parse_sets(texts: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Sets of targets from ``["NAME=A+B"]``.

    Raises:
        ValueError: A text is not of that form, or a name comes twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, _, members = text.partition("=")
        if not name or not members or name in found or name == OTHERS:
            raise ArgumentError(
                f"target-set: expected NAME=A+B with each NAME once, none of them {OTHERS!r}, got {text!r}"
            )
        found[name] = tuple(members.split("+"))
    return found


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """What a matrix of hit rates is measured of.

    Attributes:
        surrogates: Names of networks, or several with "+" between them (an ensemble of equal weights).
        methods: What to compare.
        eps: Radius of the L-infinity budget.
        steps: Of the iterative methods that do not say their own.
        at: Further numbers of steps after which the images are measured.
        pairs: How many negative pairs.
        images: How many sources, and as many targets, the pairs are drawn from.
        sets: Names of sets of targets, over which hits and distances are averaged, and their networks.
    """

    surrogates: Sequence[str]
    methods: Sequence[AttackSpec]
    eps: float
    steps: int
    at: Sequence[int] = ()
    pairs: int
    images: int
    sets: Mapping[str, Sequence[str]] = field(default_factory=dict)


def check_once(argument: str, given: Sequence[str]) -> None:
    """Refuse what is given twice, or not at all.

    Raises:
        ValueError: It is one.
    """
    twice = [name for name in given if given.count(name) > 1]
    if twice or not given:
        raise ArgumentError(f"{argument}: expected each one once, got {twice[0] + ' twice' if twice else 'none'}")


def check_plan(models: Mapping[str, FaceModel], settings: TransferSettings) -> None:
    """Refuse a study that could not be finished, before anything is embedded.

    Raises:
        ValueError: A surrogate or a network of a set is not among the networks, something is given twice, a method does
            not take what is given or cannot move towards another image's embedding or class, ``at`` is beyond every
            method's steps, or there are more pairs than the images give.
    """
    surrogates, methods = settings.surrogates, settings.methods
    check_once("surrogate", surrogates)
    check_once("method", [m.label for m in methods])
    longest = 0
    for surrogate in surrogates:
        model, *others = members(surrogate, models)
        for method in methods:
            made = method.recipe(eps=settings.eps, steps=settings.steps, others=others)
            check_goal(made, "classify-as" if CATALOG[method.name].level == "logits" else "impersonate", "method")
            if not getattr(made.attack, "ends_at_last", False):
                raise ArgumentError(
                    f"method: expected one whose last step is its result, such as fim or pgd, got {method.label}, "
                    "which keeps the best of its trials"
                )
            longest = max(longest, made.steps)
            if CATALOG[method.name].level == "logits" and model.head is None:
                raise ArgumentError(
                    f"method: expected one on embeddings for {surrogate}, whose weights bring no class head, got "
                    f"{method.label}, which works on logits"
                )
    for name, targets in settings.sets.items():
        if not targets or any(t not in models for t in targets) or len(set(targets)) != len(targets):
            raise ArgumentError(
                f"target-set: expected networks of {', '.join(models)}, each once, with '+' between, got "
                f"{name}={'+'.join(targets)}"
            )
    beyond = [k for k in settings.at if k > longest]
    if beyond:
        raise ArgumentError(f"at: expected at most the {longest} steps of the longest method, got {beyond[0]}")
    pairs, images = settings.pairs, settings.images
    if pairs > images * images:
        raise ArgumentError(
            f"pairs: expected at most images x images = {images * images}, got {pairs}; give more --images"
        )


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What a network accepts at a false accept rate.

    Attributes:
        far: The rate.
        cosine: The cosine at and above which a pair is accepted.
        accuracy: Share of the verification pairs that it decides rightly there.
    """

    far: float
    cosine: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """A network with its threshold, as a verifier in service.

    Attributes:
        model: The network.
        threshold: The cosine at and above which a pair is accepted, at the study's largest false accept rate.
        accuracy: Share of the verification pairs that it decides rightly at that threshold.
        thresholds: At every rate of the study, the largest first.
    """

    model: FaceModel
    threshold: float
    accuracy: float
    thresholds: tuple[Threshold, ...] = ()

    @property
    def distance(self) -> float:
        """The threshold as a distance of unit embeddings, ``sqrt(2 - 2 cos)``."""
        return distance(self.threshold)


def distance(cosine: float) -> float:
    """The distance of unit embeddings, ``sqrt(2 - 2 cos)``."""
    return math.sqrt(max(0.0, 2 - 2 * cosine))


def check_far(far: Sequence[float], pairs: Sequence[Pair]) -> None:
    """Refuse false accept rates that are none, or that the verification pairs cannot show.

    Raises:
        ValueError: One is so, one is given twice, or there is none.
    """
    check_once("far", [f"{rate:g}" for rate in far])
    negatives = sum(not pair.same for pair in pairs)
    for rate in far:
        if not 0 < rate <= 1:
            raise ArgumentError(f"far: expected a rate above 0, up to 1, got {rate:g}")
        if not measurable(rate, negatives):
            raise too_rare("far", rate, negatives, "negative pairs")


def calibrate(
    source: FaceSource, pairs: Sequence[Pair], model: FaceModel, *, far: Sequence[float], progress: Progress
) -> Verifier:
    """The network's thresholds at false accept rates on verification pairs.

    Raises:
        ValueError: As `check_far`.
        ImageError, AlignmentError: A face cannot be read.
    """
    check_far(far, pairs)
    same = np.array([p.same for p in pairs])
    scores = pair_scores(pairs, embed(source, names_of(pairs), model, progress=progress))
    found = []
    for rate in sorted(far, reverse=True):
        cosine = threshold_at_far(scores, same, rate)
        found.append(Threshold(far=rate, cosine=cosine, accuracy=float(((scores >= cosine) == same).mean())))
    return Verifier(model=model, threshold=found[0].cosine, accuracy=found[0].accuracy, thresholds=tuple(found))


def draw_images(source: FaceSource, count: int, *, seed: int) -> tuple[list[str], list[str]]:
    """``count`` source and ``count`` target images of different people each, drawn by the seed.

    Raises:
        ValueError: There are not so many people.
    """
    grouped = by_identity(source.names)
    people = sorted(grouped)
    if len(people) < 2 * count:
        raise ArgumentError(
            f"images: expected at most {len(people) // 2}, half of the {len(people)} people of the data, got {count}"
        )
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(people))[: 2 * count]
    names = [grouped[people[k]][0] for k in chosen]
    return names[:count], names[count:]


def negative_pairs(
    sources: Sequence[str], targets: Sequence[str], accepted: NDArray[np.bool_], count: int
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
            f"pairs: expected at most {len(found)}, which no network accepts of {size} x {size} images, got {count}"
        )
    return found[:count]
