"""Measures of a verification: scores of pairs against whether they show the same person.

A higher score means more likely the same; for distances use their negative. A pair is *accepted* (called the
same) at threshold t when `score >= t`. FAR(t) is the share of the negative pairs accepted, TAR(t) that of the
positive pairs, FRR = 1 - TAR. Everything is computed in float64 and depends on the scores' order only, but
for thresholds, which are scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core.errors import ArgumentError
from fastadv.core.statistics import between, checked

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class KFoldAccuracy:
    """Accuracy by cross-validation over folds.

    Attributes:
        mean: Mean of the folds' accuracies.
        std: Their standard deviation (of the folds themselves: divided by their number).
        folds: The folds, sorted.
        accuracies: Accuracy of each fold at its own threshold.
        thresholds: Threshold of each fold: chosen on the others, or given.
    """

    mean: float
    std: float
    folds: tuple[int, ...]
    accuracies: tuple[float, ...]
    thresholds: tuple[float, ...]


def accuracy_at(scores: ArrayLike, same: ArrayLike, threshold: ArrayLike) -> float:
    """Share of the pairs decided rightly: accepted and the same, or refused and not the same.

    Args:
        scores: (P,) finite numbers.
        same: (P,) booleans; one class alone is fine here.
        threshold: One number, or (P,) one for every pair (its fold's).

    Raises:
        ValueError: As for `roc` (but for the classes), or a threshold of another shape or not a number.
    """
    values, labels = checked(scores, same, both=False)
    limits = np.asarray(threshold, dtype=np.float64)
    if limits.shape not in ((), values.shape) or np.isnan(limits).any():
        raise ArgumentError(f"threshold: expected one number or {values.shape} without NaN, got shape {limits.shape}")
    return float(((values >= limits) == labels).mean())


def best_threshold(scores: ArrayLike, same: ArrayLike) -> float:
    """The threshold with the best accuracy on these pairs.

    Candidates are the middles between neighbouring distinct scores, the lowest score (all accepted) and a
    number above the highest (none accepted). Of several best ones the middle one is taken (the lower of two).

    Raises:
        ValueError: As for `roc`.
    """
    values, labels = checked(scores, same)
    distinct, group = np.unique(values, return_inverse=True)
    positives = np.bincount(group, weights=labels, minlength=len(distinct))
    negatives = np.bincount(group, weights=~labels, minlength=len(distinct))
    # Candidate i refuses the i lowest distinct scores: right are those negatives and the other positives.
    right = np.concatenate([[0.0], np.cumsum(negatives)]) + positives.sum()
    right -= np.concatenate([[0.0], np.cumsum(positives)])
    best = np.flatnonzero(right == right.max())
    chosen = int(best[(len(best) - 1) // 2])
    if chosen == 0:
        return float(distinct[0])
    if chosen == len(distinct):
        return float(np.nextafter(distinct[-1], np.inf))
    return between(float(distinct[chosen - 1]), float(distinct[chosen]))


def kfold_accuracy(
    scores: ArrayLike, same: ArrayLike, folds: ArrayLike, threshold: float | None = None
) -> KFoldAccuracy:
    """Accuracy over folds, each at the threshold that is `best_threshold` of the other folds (LFW, view 2).

    Args:
        scores: (P,) finite numbers.
        same: (P,) booleans.
        folds: (P,) integers.
        threshold: Of all folds, of which there may then be one; None: each fold's own.

    Raises:
        ValueError: As for `roc`; fewer than two folds, or one class only outside of some fold, without a threshold.
    """
    values, labels = checked(scores, same)
    places = checked_folds(folds, len(values))
    names = np.unique(places)
    if threshold is None and len(names) < 2:
        raise ArgumentError(f"folds: expected at least two folds, got {names.tolist()}")
    thresholds, accuracies = [], []
    for name in names:
        inside = places == name
        try:
            own = best_threshold(values[~inside], labels[~inside]) if threshold is None else threshold
        except ValueError as error:
            raise ArgumentError(f"folds: without fold {name}: {error}") from error
        thresholds.append(own)
        accuracies.append(accuracy_at(values[inside], labels[inside], own))
    return KFoldAccuracy(
        mean=float(np.mean(accuracies)),
        std=float(np.std(accuracies)),
        folds=tuple(int(name) for name in names),
        accuracies=tuple(accuracies),
        thresholds=tuple(thresholds),
    )


def checked_folds(folds: ArrayLike, count: int) -> NDArray[np.int64]:
    """Folds as integers, one per pair.

    Raises:
        ValueError: Another length, or not integers.
    """
    places = np.asarray(folds)
    if places.shape != (count,) or not np.issubdtype(places.dtype, np.integer):
        raise ArgumentError(f"folds: expected ({count},) integers, got {places.shape} {places.dtype}")
    return places.astype(np.int64)
