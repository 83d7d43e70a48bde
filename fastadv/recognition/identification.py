"""Identification: who of the enrolled people a face shows, closed and open set, from the scores of a gallery.

A probe is compared with a template of everybody who is enrolled; a higher score means more alike, for distances use
their negative. It is *mated* when its person is enrolled. In the open set an answer is only given where the best
score reaches a threshold: FPIR(t) is the share of the unmated probes whose best score does, TPIR(t) the share of the
mated ones whose own template is the best and does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core import statistics
from fastadv.core.errors import ArgumentError
from fastadv.core.resolution import measurable, notes_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
FPIRS = (1e-2, 1e-1)
UNKNOWN = -1
"""The label of a probe whose person is not enrolled."""


@dataclass(frozen=True, kw_only=True)
class OpenSet:
    """One threshold of an open-set identification.

    Attributes:
        fpir: The false positive identification rate that the threshold is for.
        threshold: Drawn on clean unmated probes; None where they are too few for the rate.
        tpir: True positive identification rate of the mated probes at it, or None.
    """

    fpir: float
    threshold: float | None
    tpir: float | None


@dataclass(frozen=True, kw_only=True)
class IdentificationReport:
    """How well a gallery names the people on clean probes.

    Attributes:
        people: Enrolled people.
        mated: Probes of enrolled people.
        unmated: Probes of others.
        rank1: Share of the mated probes whose own template is the most similar.
        rank5: Share of those whose own template is among the five most similar.
        neighbours: Share of those that the nearest enrolled images name rightly; None where that was not asked.
        open_set: A threshold for each FPIR; () without unmated probes.
        notes: A sentence for each rate that so many unmated probes cannot show.
    """

    people: int
    mated: int
    unmated: int
    rank1: float
    rank5: float
    neighbours: float | None
    open_set: tuple[OpenSet, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TargetRate:
    """How often attacked probes are given the name that they went for.

    Attributes:
        rank1: Share whose target's template is the most similar.
        neighbours: Share that the nearest enrolled images name as the target; None where that was not asked.
        accepted: ``(fpir, share)``: whose target's template is the most similar and reaches the clean threshold; None
            where there is no such threshold.
    """

    rank1: float
    neighbours: float | None
    accepted: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True, kw_only=True)
class AttackedIdentification:
    """Attacked probes of enrolled people, decided at thresholds from clean ones: those that a deployed system had.

    Attributes:
        probes: How many were attacked.
        rank1: Share that is still named rightly.
        rank5: Share whose own template is still among the five most similar.
        neighbours: Share that the nearest enrolled images still name rightly; None where that was not asked.
        open_set: TPIR at each clean threshold.
        target: How often the target's name was given; None for attacks without one.
    """

    probes: int
    rank1: float
    rank5: float
    neighbours: float | None
    open_set: tuple[OpenSet, ...]
    target: TargetRate | None


def ranks(scores: ArrayLike, labels: ArrayLike) -> Integers:
    """The rank of each probe's own template, from 1: one more than the others that score as high or higher.

    Args:
        scores: (P, T) finite numbers, higher for the same person; column t is person t's.
        labels: (P,) integers from 0 to T - 1.

    Returns:
        (P,) int64.

    Raises:
        ValueError: Other shapes, a score that is not finite, or a label that is no column.
    """
    values, own = _checked(scores, labels)
    if (own < 0).any():
        raise ArgumentError(f"labels: expected columns of the {values.shape[1]} templates, got {int(own.min())}")
    return np.asarray((values >= values[np.arange(len(own)), own][:, None]).sum(1), np.int64)


def evaluate_identification(
    scores: ArrayLike, labels: ArrayLike, *, named: ArrayLike | None = None, fpirs: Sequence[float] = FPIRS
) -> IdentificationReport:
    """The report of clean probes.

    Args:
        scores: (P, T) finite numbers, higher for the same person; column t is person t's.
        labels: (P,) integers: the column of each probe's person, or ``UNKNOWN``.
        named: (P,) integers: who the nearest enrolled images say, or None.
        fpirs: False positive identification rates to give thresholds for.

    Raises:
        ValueError: As for ``ranks``; no mated probe, or a rate outside [0, 1].

    Source: ISO/IEC 19795-1; Grother, Ngan and Hanaoka, "Face recognition vendor test, part 2: identification".
    """
    values, own = _checked(scores, labels)
    mated = own != UNKNOWN
    if not mated.any():
        raise ArgumentError("labels: expected at least one probe of an enrolled person, got none")
    place, best, strangers = ranks(values[mated], own[mated]), values.max(1), int((~mated).sum())
    found = []
    for fpir in fpirs if strangers else ():
        if not 0 <= fpir <= 1:
            raise ArgumentError(f"fpirs: expected rates from 0 to 1, got {fpir}")
        threshold = statistics.threshold_at_far(best, mated, fpir) if measurable(fpir, strangers) else None
        found.append(OpenSet(fpir=fpir, threshold=threshold, tpir=_share((place == 1), best[mated], threshold)))
    return IdentificationReport(
        people=values.shape[1],
        mated=int(mated.sum()),
        unmated=strangers,
        rank1=float((place == 1).mean()),
        rank5=float((place <= 5).mean()),
        neighbours=None if named is None else float((_named(named, own)[mated] == own[mated]).mean()),
        open_set=tuple(found),
        notes=notes_of({f"TPIR at FPIR {o.fpir:g}": o.fpir for o in found}, strangers, "faces of people not enrolled"),
    )


def identification_under_attack(
    clean: IdentificationReport,
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    targets: ArrayLike | None = None,
    named: ArrayLike | None = None,
) -> AttackedIdentification:
    """The report of attacked probes at the clean thresholds.

    Args:
        clean: The report of the same gallery.
        scores: (M, T) finite numbers of attacked probes; column t is person t's.
        labels: (M,) integers: who they show.
        targets: (M,) integers: as whom they were to be identified, or None.
        named: (M,) integers: who the nearest enrolled images say, or None.

    Raises:
        ValueError: As for ``ranks``, or another number of people than the clean report's.
    """
    values, own = _checked(scores, labels)
    if values.shape[1] != clean.people:
        raise ArgumentError(f"scores: expected a column for each of {clean.people} people, got {values.shape[1]}")
    place, best = ranks(values, own), values.max(1)
    target = None
    if targets is not None:
        _, wanted = _checked(values, targets)
        hit = ranks(values, wanted) == 1
        target = TargetRate(
            rank1=float(hit.mean()),
            neighbours=None if named is None else float((_named(named, own) == wanted).mean()),
            accepted=tuple((o.fpir, _share(hit, best, o.threshold)) for o in clean.open_set),
        )
    return AttackedIdentification(
        probes=len(own),
        rank1=float((place == 1).mean()),
        rank5=float((place <= 5).mean()),
        neighbours=None if named is None else float((_named(named, own) == own).mean()),
        open_set=tuple(
            OpenSet(fpir=o.fpir, threshold=o.threshold, tpir=_share(place == 1, best, o.threshold))
            for o in clean.open_set
        ),
        target=target,
    )


def open_set_curve(scores: ArrayLike, labels: ArrayLike, unmated_best: ArrayLike) -> tuple[Floats, Floats]:
    """TPIR over FPIR: a point for each distinct best score of the unmated probes, and the two ends.

    Args:
        scores: (M, T) of mated probes.
        labels: (M,) integers.
        unmated_best: (U,) best scores of unmated probes, at least one.

    Returns:
        FPIR and TPIR, each (K,), not decreasing: ``FPIR = |{u >= t}| / U``, with TPIR the largest that its
        thresholds allow.

    Raises:
        ValueError: As for ``ranks``; no unmated probe, or a score that is not finite.
    """
    values, own = _checked(scores, labels)
    others = np.asarray(unmated_best, np.float64)
    if others.ndim != 1 or not len(others) or not np.isfinite(others).all():
        raise ArgumentError(f"unmated_best: expected (U,) finite numbers, at least one, got shape {others.shape}")
    right = np.sort(values.max(1)[ranks(values, own) == 1])
    distinct = np.unique(others)[::-1]
    fpir = np.concatenate([[0.0], [(others >= t).mean() for t in distinct]])
    # the threshold just above the next lower score accepts the same unmated probes, and the most mated ones
    limits = np.concatenate([distinct, [-np.inf]])
    tpir = (len(right) - np.searchsorted(right, limits, side="right")) / len(own)
    return fpir, tpir


def _share(hit: NDArray[np.bool_], best: Floats, threshold: float | None) -> float | None:
    return None if threshold is None else float((hit & (best >= threshold)).mean())


def _named(named: ArrayLike, labels: Integers) -> Integers:
    found = np.asarray(named)
    if found.shape != labels.shape or not np.issubdtype(found.dtype, np.integer):
        raise ArgumentError(f"named: expected {labels.shape} integers, got {found.shape} {found.dtype}")
    return found.astype(np.int64)


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Integers]:
    values, own = np.asarray(scores, np.float64), np.asarray(labels)
    if values.ndim != 2 or 0 in values.shape:
        raise ArgumentError(f"scores: expected (P, T) numbers, at least one probe and one template, got {values.shape}")
    if not np.isfinite(values).all():
        probe, column = (int(k) for k in np.argwhere(~np.isfinite(values))[0])
        raise ArgumentError(f"scores: expected finite numbers, got {values[probe, column]} for probe {probe}")
    if own.shape != values.shape[:1] or not np.issubdtype(own.dtype, np.integer):
        raise ArgumentError(f"labels: expected ({len(values)},) integers, got {own.shape} {own.dtype}")
    if (own < UNKNOWN).any() or (own >= values.shape[1]).any():
        raise ArgumentError(
            f"labels: expected 0 to {values.shape[1] - 1}, or {UNKNOWN}, got {own.min()} to {own.max()}"
        )
    return values, own.astype(np.int64)
