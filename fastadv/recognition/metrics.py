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
from fastadv.core.resolution import measurable, unmeasurable

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Roc:
    """A receiver operating characteristic, one point per distinct score.

    Attributes:
        far: False accept rates, from 0 to 1, not decreasing.
        tar: True accept rates, from 0 to 1, not decreasing.
        thresholds: The thresholds of the points, decreasing; the first is infinite (nothing accepted).
    """

    far: Floats
    tar: Floats
    thresholds: Floats


@dataclass(frozen=True, kw_only=True)
class KFoldAccuracy:
    """Accuracy by cross-validation over folds.

    Attributes:
        mean: Mean of the folds' accuracies.
        std: Their standard deviation (of the folds themselves: divided by their number).
        folds: The folds, sorted.
        accuracies: Accuracy of each fold at its own threshold.
        thresholds: Threshold of each fold, chosen on the others.
    """

    mean: float
    std: float
    folds: tuple[int, ...]
    accuracies: tuple[float, ...]
    thresholds: tuple[float, ...]


def roc(scores: ArrayLike, same: ArrayLike) -> Roc:
    """The ROC curve: every distinct score as a threshold, and infinity.

    Args:
        scores: (P,) finite numbers, higher for the same person.
        same: (P,) booleans or 0 and 1.

    Raises:
        ValueError: No pairs, different lengths, a NaN or infinite score, or only one class.
    """
    values, labels = checked(scores, same)
    from sklearn.metrics import roc_curve  # here: it takes as long to import as the rest of the package

    far, tar, thresholds = roc_curve(labels, values, drop_intermediate=False)
    return Roc(far=far.astype(np.float64), tar=tar.astype(np.float64), thresholds=thresholds.astype(np.float64))


def auc(scores: ArrayLike, same: ArrayLike) -> float:
    """Area under the ROC: the chance that a positive pair scores above a negative one, ties counted half.

    Raises:
        ValueError: As for `roc`.
    """
    values, labels = checked(scores, same)
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, values))


def eer(scores: ArrayLike, same: ArrayLike) -> tuple[float, float]:
    """Equal error rate and its threshold.

    The ROC, its points joined by straight lines, is cut with FAR = FRR. Where a point lies on that line, the
    threshold is the middle of the gap between scores that gives this point; else it is the score at which
    FAR and FRR cross.

    Returns:
        The rate (FAR = FRR) and the threshold.

    Raises:
        ValueError: As for `roc`.
    """
    curve = roc(scores, same)
    # From -1 to 1; it grows at every point, by multiples of 1 / (positives * negatives) >= 4 / pairs^2.
    difference = curve.far - (1 - curve.tar)
    zero = 0.5 / np.size(scores) ** 2
    at = int(np.argmax(difference > -zero))
    if difference[at] < zero:
        return float(curve.far[at]), _between(float(curve.thresholds[at + 1]), float(curve.thresholds[at]))
    share = -difference[at - 1] / (difference[at] - difference[at - 1])
    rate = curve.far[at - 1] + share * (curve.far[at] - curve.far[at - 1])
    return float(rate), float(curve.thresholds[at])


def threshold_at_far(scores: ArrayLike, same: ArrayLike, far: float) -> float:
    """A threshold with the greatest FAR that is not above `far`.

    With k = floor(far * negatives), at most k negatives may be accepted, so the threshold lies above the
    (k+1)-th largest negative score n. Every threshold from n (excluded) to the next larger score of either
    class (included) decides these pairs alike; the middle of that gap is returned, since it survives
    rounding to float32. If n is the largest score of all, it is the next number above n in float32. With
    ties at n fewer than k negatives are accepted. If far allows all negatives (k = their number), it is
    the lowest score.

    Args:
        scores: (P,) finite numbers.
        same: (P,) booleans.
        far: The false accept rate allowed, 0 to 1; `far * negatives` is at least 1.

    Raises:
        ValueError: As for `roc`; `far` outside [0, 1], or too low to be measured from so many negatives.
    """
    values, labels = checked(scores, same)
    if not 0 <= far <= 1:
        raise ArgumentError(f"far: expected a rate from 0 to 1, got {far}")
    if not measurable(far, int((~labels).sum())):
        raise ArgumentError(unmeasurable(f"FAR {far:g}", far, int((~labels).sum()), "negative pairs"))
    negatives = np.sort(values[~labels])[::-1]
    # 1e-9: 0.3 * 10 is 2.9999999999999996, and three of ten negatives are meant.
    allowed = int(np.floor(far * len(negatives) + 1e-9))
    if allowed >= len(negatives):
        return float(values.min())
    refused = float(negatives[allowed])
    above = values[values > refused]
    if len(above):
        return _between(refused, float(above.min()))
    return float(max(np.nextafter(np.float32(refused), np.float32(np.inf)), np.nextafter(refused, np.inf)))


def tar_at_far(scores: ArrayLike, same: ArrayLike, far: float) -> float:
    """Share of the positive pairs accepted at `threshold_at_far`: the greatest TAR with FAR not above `far`.

    Raises:
        ValueError: As for `threshold_at_far`.
    """
    values, labels = checked(scores, same)
    return float((values[labels] >= threshold_at_far(values, labels, far)).mean())


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
    return _between(float(distinct[chosen - 1]), float(distinct[chosen]))


def kfold_accuracy(scores: ArrayLike, same: ArrayLike, folds: ArrayLike) -> KFoldAccuracy:
    """Accuracy over folds, each at the threshold that is `best_threshold` of the other folds (LFW, view 2).

    Args:
        scores: (P,) finite numbers.
        same: (P,) booleans.
        folds: (P,) integers.

    Raises:
        ValueError: As for `roc`; fewer than two folds; or one class only outside of some fold.
    """
    values, labels = checked(scores, same)
    places = checked_folds(folds, len(values))
    names = np.unique(places)
    if len(names) < 2:
        raise ArgumentError(f"folds: expected at least two folds, got {names.tolist()}")
    thresholds, accuracies = [], []
    for name in names:
        inside = places == name
        try:
            thresholds.append(best_threshold(values[~inside], labels[~inside]))
        except ValueError as error:
            raise ArgumentError(f"folds: without fold {name}: {error}") from error
        accuracies.append(accuracy_at(values[inside], labels[inside], thresholds[-1]))
    return KFoldAccuracy(
        mean=float(np.mean(accuracies)),
        std=float(np.std(accuracies)),
        folds=tuple(int(name) for name in names),
        accuracies=tuple(accuracies),
        thresholds=tuple(thresholds),
    )


def checked(scores: ArrayLike, same: ArrayLike, *, both: bool = True) -> tuple[Floats, Flags]:
    """Scores as float64 and labels as booleans.

    Args:
        scores: (P,) finite numbers.
        same: (P,) booleans or 0 and 1.
        both: Insist on at least one pair of either class.

    Raises:
        ValueError: Saying which of the conditions does not hold.
    """
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(same)
    if values.ndim != 1 or labels.shape != values.shape:
        raise ArgumentError(f"scores, same: expected two (P,) arrays, got {values.shape} and {labels.shape}")
    if not len(values):
        raise ArgumentError("scores: expected at least one pair, got none")
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ArgumentError(f"scores: expected finite numbers, got {values[first]} at {first}")
    if labels.dtype != np.bool_ and not np.isin(labels, (0, 1)).all():
        raise ArgumentError("same: expected booleans or 0 and 1")
    flags = labels.astype(np.bool_)
    if both and (flags.all() or not flags.any()):
        raise ArgumentError(
            f"same: expected pairs of both classes, got only {'positive' if flags[0] else 'negative'} ones"
        )
    return values, flags


def checked_folds(folds: ArrayLike, count: int) -> NDArray[np.int64]:
    """Folds as integers, one per pair.

    Raises:
        ValueError: Another length, or not integers.
    """
    places = np.asarray(folds)
    if places.shape != (count,) or not np.issubdtype(places.dtype, np.integer):
        raise ArgumentError(f"folds: expected ({count},) integers, got {places.shape} {places.dtype}")
    return places.astype(np.int64)


def _between(low: float, high: float) -> float:
    """The middle of two thresholds, above `low`; `high` where there is no number between them."""
    if np.isinf(high):
        return float(np.nextafter(low, np.inf))
    middle = low + (high - low) / 2
    return middle if low < middle else high
