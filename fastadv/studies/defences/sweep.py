"""What impersonation costs beside anonymisation, as a function of the verifier's threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastadv.attacks import Evade
from fastadv.attacks.spec import AttackSpec
from fastadv.core.errors import ArgumentError
from fastadv.core.statistics import MeanRatio, mean_ratio
from fastadv.data import FaceSource, Pair
from fastadv.defences import ZeroKnowledge
from fastadv.models import FaceModel
from fastadv.recognition import mean_of
from fastadv.runs.attack import met_before
from fastadv.runs.work import Work
from fastadv.studies.defences.generated import gained, generated
from fastadv.studies.defences.kept import slug


@dataclass(frozen=True, kw_only=True)
class GoalLengths:
    """The smallest changes that reach one goal.

    Attributes:
        images: Attacked pairs.
        met_before_images: Of these, how many were decided so without an attack.
        rest_successes: How many of the others succeed: those of the mean.
        mean_l2: Mean L2 norm of the change, pixels in [0, 1]; None of none.
    """

    images: int
    met_before_images: int
    rest_successes: int
    mean_l2: float | None


@dataclass(frozen=True, kw_only=True)
class SweepCell:
    """One minimal-norm attack on the bare verifier at one threshold.

    Attributes:
        attack: Its label.
        threshold: The cosine at and above which a pair is accepted.
        impersonation: Pairs of two people, to be accepted.
        evasion: Pairs of one person, to be refused (anonymisation).
        ratio: Mean L2 norm of impersonation over that of anonymisation, with its interval; None with fewer than two
            successes of either.
    """

    attack: str
    threshold: float
    impersonation: GoalLengths
    evasion: GoalLengths
    ratio: MeanRatio | None


def check_sweep(thresholds: Sequence[float], attacks: Sequence[AttackSpec]) -> list[AttackSpec]:
    """The attacks of a sweep: those that look for the smallest change.

    Raises:
        ValueError: A threshold is no cosine, or given twice; or no attack looks for the smallest change.
    """
    for threshold in thresholds:
        Evade(threshold=threshold)  # checks it
    if len(set(thresholds)) < len(thresholds):
        raise ArgumentError(f"sweep: expected each threshold once, got {', '.join(f'{t:g}' for t in thresholds)}")
    minimal = [spec for spec in attacks if spec.radius is None]
    if thresholds and not minimal:
        labels = ", ".join(spec.label for spec in attacks) or "none"
        raise ArgumentError(
            f"sweep: expected an attack that looks for the smallest change, such as deepfool, got {labels}"
        )
    return minimal


def sweep(
    source: FaceSource,
    pairs: Sequence[Pair],
    model: FaceModel,
    work: Work,
    *,
    attacks: Sequence[AttackSpec],
    thresholds: Sequence[float],
) -> tuple[SweepCell, ...]:
    """Attack the first image of every pair by minimal-norm attacks, once for each threshold.

    Where the threshold lies near to the scores of two people, impersonation is the shorter way, and near to those of
    one person anonymisation is: the ratio of the two grows with the threshold.

    Args:
        source: The faces.
        pairs: Of one person and of two.
        model: The bare verifier.
        work: How images are made; its folder holds them.
        attacks: Of which those without a radius are used.
        thresholds: Cosines in [-1, 1].

    Returns:
        A cell for each attack and threshold, in their order.

    Raises:
        ValueError, ImageError, AlignmentError, OSError: As ``check_sweep`` and ``generated``.

    Source:
        Mehr and Schroeder, "Six Pixels to Kevin Bacon", table 1, at the one threshold of their verifier.
    """
    same = np.array([pair.same for pair in pairs])
    cells = []
    for spec in check_sweep(thresholds, attacks):
        attacker = ZeroKnowledge().attacker(spec.recipe(), model, None)
        for threshold in thresholds:
            place = Path("sweep", slug(spec.label), str(threshold))
            rows, _ = generated(source, pairs, attacker, work, place, threshold=threshold)
            l2, reached = np.array([row.l2 for row in rows]), gained(rows)
            before = np.array([met_before(row) for row in rows])
            of = [
                GoalLengths(
                    images=int(chosen.sum()),
                    met_before_images=int((chosen & before).sum()),
                    rest_successes=int((chosen & reached).sum()),
                    mean_l2=mean_of(l2, chosen & reached),
                )
                for chosen in (~same, same)
            ]
            ratio = mean_ratio(l2[~same & reached], l2[same & reached])
            cells.append(
                SweepCell(attack=spec.label, threshold=threshold, impersonation=of[0], evasion=of[1], ratio=ratio)
            )
    return tuple(cells)
