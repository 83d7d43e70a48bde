"""Verification of pairs by their embeddings: scores, the report of a model, what an attack makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core import statistics
from fastadv.core.errors import ArgumentError
from fastadv.core.resolution import measurable, notes_of
from fastadv.recognition import metrics

Metric = Literal["cosine", "euclidean"]
Floats = NDArray[np.float64]


def cosine_scores(first: ArrayLike, second: ArrayLike) -> Floats:
    """Cosine of the angle between rows: `<a, b> / (|a| |b|)`, in [-1, 1].

    Args:
        first: (P, D) embeddings, normalised or not.
        second: (P, D) embeddings.

    Returns:
        (P,) float64.

    Raises:
        ValueError: Other shapes, values that are not finite, or a zero embedding.
    """
    a, b = _embeddings(first, second)
    cosine = np.einsum("pd,pd->p", _unit(a), _unit(b))
    return np.asarray(np.clip(cosine, -1.0, 1.0))


def euclidean_scores(first: ArrayLike, second: ArrayLike) -> Floats:
    """Minus the distance of the L2-normalised rows: `-| a/|a| - b/|b| |`, in [-2, 0].

    The sign makes a higher score mean more alike: a threshold t on the distance is -t on the score.
    With c the cosine, the score is `-sqrt(2 - 2 c)`; the two metrics order pairs alike. Takes, returns and raises what
    `cosine_scores` does.
    """
    a, b = _embeddings(first, second)
    return np.asarray(-np.linalg.norm(_unit(a) - _unit(b), axis=1))


@dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """How well scores tell same from different people; see `metrics` for the conventions.

    Attributes:
        pairs: Number of pairs.
        metric: What the scores are.
        auc: Area under the ROC.
        eer: Equal error rate.
        eer_threshold: Its threshold.
        accuracy: Mean accuracy over the folds; None without folds.
        accuracy_std: Standard deviation over the folds; None without folds.
        tar_at_far_1e2: True accept rate at a false accept rate of 1e-2; None below 100 negative pairs.
        tar_at_far_1e3: True accept rate at a false accept rate of 1e-3; None below 1,000 negative pairs.
        threshold_at_far_1e3: The threshold there, or None.
        fold_thresholds: (fold, threshold) for every fold, each threshold chosen on the others, or given; () without.
        negatives: Number of pairs of different people.
        notes: A sentence for each figure that so many pairs cannot show.
    """

    pairs: int
    metric: str
    auc: float
    eer: float
    eer_threshold: float
    accuracy: float | None
    accuracy_std: float | None
    tar_at_far_1e2: float | None
    tar_at_far_1e3: float | None
    threshold_at_far_1e3: float | None
    fold_thresholds: tuple[tuple[int, float], ...]
    negatives: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AttackedReport:
    """The same pairs after an attack, decided at the thresholds that were chosen on clean images.

    *Impersonation*: share of the negative pairs that are accepted; *evasion*: share of the positive pairs
    that are refused; each at a clean threshold. None where there are no such pairs or no folds.

    Attributes:
        pairs: Number of pairs.
        metric: What the scores are.
        accuracy: Mean over the folds of the accuracy at the fold's clean threshold; None without folds.
        accuracy_std: Standard deviation over the folds; None without folds.
        auc: Area under the ROC of the attacked scores; None with one class only.
        eer: Their equal error rate: what a threshold chosen after the attack could still reach.
        eer_threshold: Its threshold.
        impersonation_at_eer: At the clean threshold of the equal error rate.
        impersonation_at_far_1e3: At the clean threshold of FAR 1e-3; None where the clean pairs cannot show it.
        impersonation_at_folds: At the clean threshold of the pair's fold.
        evasion_at_eer: At the clean threshold of the equal error rate.
        evasion_at_far_1e3: At the clean threshold of FAR 1e-3.
        evasion_at_folds: At the clean threshold of the pair's fold.
    """

    pairs: int
    metric: str
    accuracy: float | None
    accuracy_std: float | None
    auc: float | None
    eer: float | None
    eer_threshold: float | None
    impersonation_at_eer: float | None
    impersonation_at_far_1e3: float | None
    impersonation_at_folds: float | None
    evasion_at_eer: float | None
    evasion_at_far_1e3: float | None
    evasion_at_folds: float | None


def check_pairs(same: Sequence[bool], folds: Sequence[int | None]) -> None:
    """Insist that pairs can be verified in their folds, before anything is embedded.

    Args:
        same: whether a pair shows one person.
        folds: the fold of each; None for all where there are none.

    Raises:
        ValueError: one class of pairs only, or fewer pairs of a class than folds.
    """
    positive, count = sum(same), len(same)
    found = f"{positive} of one person and {count - positive} of two"
    if not 0 < positive < count:
        raise ArgumentError(f"pairs: expected pairs of one person and pairs of two people, got {found}")
    needed = len(set(folds))
    if min(positive, count - positive) < needed:
        raise ArgumentError(
            f"pairs: expected at least {needed} of each class for the {needed} folds, got {found}; give more pairs, or "
            "a CSV file with fewer folds"
        )


def evaluate(
    scores: ArrayLike,
    same: ArrayLike,
    folds: ArrayLike | None = None,
    *,
    metric: str = "cosine",
    threshold: float | None = None,
) -> VerificationReport:
    """The report of clean scores.

    Args:
        scores: (P,) finite numbers, higher for the same person (`cosine_scores`, `euclidean_scores`).
        same: (P,) booleans.
        folds: (P,) integers, or None for a report without accuracy.
        metric: What the scores are, for the report.
        threshold: A score that decides in every fold; None: each fold's threshold is chosen on the others.

    Raises:
        ValueError: See `statistics.checked` and `metrics.kfold_accuracy`.
    """
    values, labels = statistics.checked(scores, same)
    rate, at_eer = statistics.eer(values, labels)
    accuracy = None if folds is None else metrics.kfold_accuracy(values, labels, folds, threshold)
    negatives = int((~labels).sum())
    hundredth, thousandth = (measurable(far, negatives) for far in (1e-2, 1e-3))
    return VerificationReport(
        pairs=len(values),
        metric=metric,
        auc=statistics.auc(values, labels),
        eer=rate,
        eer_threshold=at_eer,
        accuracy=accuracy.mean if accuracy else None,
        accuracy_std=accuracy.std if accuracy else None,
        tar_at_far_1e2=statistics.tar_at_far(values, labels, 1e-2) if hundredth else None,
        tar_at_far_1e3=statistics.tar_at_far(values, labels, 1e-3) if thousandth else None,
        threshold_at_far_1e3=statistics.threshold_at_far(values, labels, 1e-3) if thousandth else None,
        fold_thresholds=tuple(zip(accuracy.folds, accuracy.thresholds, strict=True)) if accuracy else (),
        negatives=negatives,
        notes=notes_of({"TAR at FAR 1e-2": 1e-2, "TAR at FAR 1e-3": 1e-3}, negatives, "negative pairs"),
    )


def under_attack(
    clean: VerificationReport, scores_after: ArrayLike, same: ArrayLike, folds: ArrayLike | None = None
) -> AttackedReport:
    """The report of attacked scores at the clean thresholds: those that a deployed system had.

    Args:
        clean: The report of the same model and metric on clean images.
        scores_after: (P,) finite numbers. May be a part of the clean pairs, of one class too.
        same: (P,) booleans: what the pairs are, not what the attack wants.
        folds: (P,) integers among the clean report's folds, or None.

    Raises:
        ValueError: See `statistics.checked`, or a fold that the clean report does not have.
    """
    values, labels = statistics.checked(scores_after, same, both=False)
    both = bool(labels.any() and not labels.all())
    rate, threshold = statistics.eer(values, labels) if both else (None, None)
    limits = accuracies = None
    if folds is not None:
        places = metrics.checked_folds(folds, len(values))
        limits = _limits(clean, places)
        accuracies = [
            metrics.accuracy_at(values[places == fold], labels[places == fold], limits[places == fold])
            for fold in np.unique(places)
        ]
    return AttackedReport(
        pairs=len(values),
        metric=clean.metric,
        accuracy=None if accuracies is None else float(np.mean(accuracies)),
        accuracy_std=None if accuracies is None else float(np.std(accuracies)),
        auc=statistics.auc(values, labels) if both else None,
        eer=rate,
        eer_threshold=threshold,
        impersonation_at_eer=_share(values, ~labels, clean.eer_threshold, accepted=True),
        impersonation_at_far_1e3=_share(values, ~labels, clean.threshold_at_far_1e3, accepted=True),
        impersonation_at_folds=_share(values, ~labels, limits, accepted=True),
        evasion_at_eer=_share(values, labels, clean.eer_threshold, accepted=False),
        evasion_at_far_1e3=_share(values, labels, clean.threshold_at_far_1e3, accepted=False),
        evasion_at_folds=_share(values, labels, limits, accepted=False),
    )


def _limits(clean: VerificationReport, places: NDArray[np.int64]) -> Floats:
    known = dict(clean.fold_thresholds)
    unknown = sorted(set(places.tolist()) - set(known))
    if unknown:
        raise ArgumentError(f"folds: expected folds of the clean report {sorted(known)}, got {unknown[0]}")
    return np.array([known[place] for place in places.tolist()])


def _share(values: Floats, which: statistics.Flags, limit: float | Floats | None, *, accepted: bool) -> float | None:
    if limit is None or not which.any():
        return None
    return float(((values >= limit) == accepted)[which].mean())


def _embeddings(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or 0 in a.shape:
        raise ArgumentError(f"first, second: expected two (P, D) arrays, got {a.shape} and {b.shape}")
    for name, rows in (("first", a), ("second", b)):
        bad = ~np.isfinite(rows).all(axis=1) | ~rows.any(axis=1)
        if bad.any():
            raise ArgumentError(f"{name}: expected finite embeddings that are not zero, got one at {int(bad.argmax())}")
    return a, b


def _unit(rows: Floats) -> Floats:
    # Divided by the largest value first: squares of tiny or huge values would leave the range.
    rows = rows / np.abs(rows).max(axis=1, keepdims=True)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
