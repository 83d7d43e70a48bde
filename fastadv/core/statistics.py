"""Statistics of scores of two classes, of shares, and of paired trials.

A higher score means more likely positive: two images of one person, an adversarial image. A trial is accepted (flagged)
at threshold t when ``score >= t``. FAR(t) is the share of the negatives accepted, TAR(t) that of the positives,
FRR = 1 - TAR. All in float64; everything but a threshold depends on the order of the scores only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.resolution import measurable, too_rare

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
_Z = 1.959963984540054  # of a two-sided 95 % interval


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


def eer(scores: ArrayLike, same: ArrayLike, *, single: bool = False) -> tuple[float, float]:
    """Equal error rate and its threshold.

    The ROC, its points joined by straight lines, is cut with FAR = FRR. Where a point lies on that line, the
    threshold is the middle of the gap between scores that gives this point; else it is the score at which
    FAR and FRR cross.

    Args:
        scores: (P,) finite numbers.
        same: (P,) booleans.
        single: Whether the scores are float32 and the threshold is to be one too.

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
        return float(curve.far[at]), between(
            float(curve.thresholds[at + 1]), float(curve.thresholds[at]), single=single
        )
    share = -difference[at - 1] / (difference[at] - difference[at - 1])
    rate = curve.far[at - 1] + share * (curve.far[at] - curve.far[at - 1])
    return float(rate), float(curve.thresholds[at])


def threshold_at_far(scores: ArrayLike, same: ArrayLike, far: float, *, single: bool = False) -> float:
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
        single: Whether the scores are float32 and the threshold is to be one too.

    Raises:
        ValueError: As for `roc`; `far` outside [0, 1], or too low to be measured from so many negatives.
    """
    values, labels = checked(scores, same)
    if not 0 <= far <= 1:
        raise ArgumentError(f"far: expected a rate from 0 to 1, got {far}")
    if not measurable(far, int((~labels).sum())):
        raise too_rare("far", far, int((~labels).sum()), "negative pairs")
    negatives = np.sort(values[~labels])[::-1]
    # 1e-9: 0.3 * 10 is 2.9999999999999996, and three of ten negatives are meant.
    allowed = int(np.floor(far * len(negatives) + 1e-9))
    if allowed >= len(negatives):
        return float(values.min())
    refused = float(negatives[allowed])
    above = values[values > refused]
    if len(above):
        return between(refused, float(above.min()), single=single)
    return float(max(np.nextafter(np.float32(refused), np.float32(np.inf)), np.nextafter(refused, np.inf)))


def tar_at_far(scores: ArrayLike, same: ArrayLike, far: float) -> float:
    """Share of the positive pairs accepted at `threshold_at_far`: the greatest TAR with FAR not above `far`.

    Raises:
        ValueError: As for `threshold_at_far`.
    """
    values, labels = checked(scores, same)
    return float((values[labels] >= threshold_at_far(values, labels, far)).mean())


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
        raise ArgumentError(f"same: expected booleans or 0 and 1, got {brief(labels[~np.isin(labels, (0, 1))][0])}")
    flags = labels.astype(np.bool_)
    if both and (flags.all() or not flags.any()):
        raise ArgumentError(
            f"same: expected pairs of both classes, got only {'positive' if flags[0] else 'negative'} ones"
        )
    return values, flags


def between(low: float, high: float, *, single: bool = False) -> float:
    """The middle of two thresholds, above ``low``; ``high`` where there is no number between them.

    Args:
        low: A score.
        high: The next larger one, or infinity.
        single: Whether the middle is rounded to float32, as scores of that type are compared with it.
    """
    if np.isinf(high):
        return float(np.nextafter(low, np.inf))
    middle = low + (high - low) / 2
    if single:
        middle = float(np.float32(middle))
    return middle if low < middle <= high else high


def kolmogorov_smirnov(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    r"""The two-sample test of whether two sets of scores come from one distribution.

    .. math:: D = \sup_s |F(s) - G(s)|, \qquad
              p = Q\left((\sqrt m + 0.12 + 0.11 / \sqrt m) D\right), \quad m = \frac{n k}{n + k}

    with the empirical distributions F of n and G of k scores, and the limiting distribution Q of Kolmogorov.

    Args:
        first: (n,) finite numbers.
        second: (k,) finite numbers, ascending.

    Returns:
        D and p: the chance of such a D, or a larger one, where both come from one continuous distribution and all
        scores are independent; near the exact one from n k / (n + k) = 4 on, and too large where scores are tied.

    Raises:
        ValueError: One of them is empty.

    Source:
        Stephens 1970, "Use of the Kolmogorov-Smirnov, Cramer-von Mises and related statistics without extensive
        tables".
    """
    ours, theirs = np.sort(np.asarray(first, np.float64)), np.asarray(second, np.float64)
    if not len(ours) or not len(theirs):
        raise ArgumentError(f"first, second: expected scores in both, got {len(ours)} and {len(theirs)}")
    n, k = len(ours), len(theirs)
    # between two scores of F only G grows, so the largest difference lies at a score of F, or just before it
    at = np.searchsorted(ours, ours, "right") / n - np.searchsorted(theirs, ours, "right") / k
    before = np.searchsorted(ours, ours, "left") / n - np.searchsorted(theirs, ours, "left") / k
    apart = float(max(np.abs(at).max(), np.abs(before).max()))
    from scipy.special import kolmogorov  # here: few need it

    root = math.sqrt(n * k / (n + k))
    return apart, float(kolmogorov((root + 0.12 + 0.11 / root) * apart))


def wilson(hits: float, trials: float) -> tuple[float, float]:
    """The 95 % score interval of a share, ``hits`` of ``trials``; both may be fractions where trials depend on another.

    Raises:
        ValueError: No trials, or more hits than trials.

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not (trials >= 1 and 0 <= hits <= trials):
        raise ArgumentError(f"hits, trials: expected 0 <= hits <= trials and trials >= 1, got {hits} of {trials}")
    share, square = hits / trials, _Z * _Z / trials
    centre = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    # at the ends the exact limits are 0 and 1; rounding would miss them by an ulp
    return 0.0 if hits == 0 else centre - half, 1.0 if hits == trials else centre + half


@dataclass(frozen=True, kw_only=True)
class MeanRatio:
    """The mean of one sample over that of another.

    Attributes:
        ratio: Of the means.
        low: Of its 95 % interval.
        high: Of its 95 % interval.
    """

    ratio: float
    low: float
    high: float


def mean_ratio(first: ArrayLike, second: ArrayLike) -> MeanRatio | None:
    """The ratio of the means of two independent samples of positive numbers; None where one has fewer than two.

    The interval is that of the logarithm by the delta method: with means m, variances v and sizes n, the ratio times
    ``exp(+-1.96 sqrt(v_1 / (n_1 m_1^2) + v_2 / (n_2 m_2^2)))``.

    Args:
        first: ``(n_1,)``.
        second: ``(n_2,)``.

    Raises:
        ValueError: A number is not above 0 and finite.
    """
    samples = [np.asarray(sample, np.float64) for sample in (first, second)]
    if any(not (np.isfinite(sample).all() and (sample > 0).all()) for sample in samples):
        raise ArgumentError("first, second: expected finite numbers above 0, got others")
    if min(map(len, samples)) < 2:
        return None
    (one, other), spread = (sample.mean() for sample in samples), 0.0
    for sample in samples:
        spread += sample.var(ddof=1) / (len(sample) * sample.mean() ** 2)
    ratio, width = float(one / other), math.exp(_Z * math.sqrt(spread))
    return MeanRatio(ratio=ratio, low=ratio / width, high=ratio * width)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Two methods on the same trials.

    Attributes:
        difference: Share of the first minus share of the second.
        low: Of its 95 % interval.
        high: Of its 95 % interval.
        p: Two-sided exact probability that the trials on which they disagree fall so unevenly by chance.
        verdict: ``"above"``, ``"below"`` or, where p is 0.05 or more, ``"undecided"``.
    """

    difference: float
    low: float
    high: float
    p: float
    verdict: str


def paired_difference(first: ArrayLike, second: ArrayLike) -> PairedDifference:
    """Compare two methods' hits on the same trials by the trials on which they disagree.

    With b trials that only the first hits and c that only the second does, the difference is ``(b - c) / n`` with the
    standard error ``sqrt(b + c - (b - c)^2 / n) / n``, and p is the binomial test of b among b + c at one half.

    Args:
        first: ``(n,)`` booleans.
        second: ``(n,)`` booleans.

    Raises:
        ValueError: No trials, or arrays of different lengths.

    Source:
        McNemar 1947, "Note on the sampling error of the difference between correlated proportions".
    """
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    if one.shape != other.shape or one.ndim != 1 or not one.size:
        raise ArgumentError(
            f"first, second: expected two arrays (n,) of the same trials, got {one.shape}, {other.shape}"
        )
    n, b, c = len(one), int((one & ~other).sum()), int((other & ~one).sum())
    difference = (b - c) / n
    half = _Z * math.sqrt(max(0.0, b + c - (b - c) ** 2 / n)) / n
    from scipy.stats import binomtest  # here: it takes as long to import as the rest of the package

    p = float(binomtest(b, b + c).pvalue) if b + c else 1.0
    verdict = "undecided" if p >= 0.05 else "above" if difference > 0 else "below"
    return PairedDifference(
        difference=difference, low=max(-1.0, difference - half), high=min(1.0, difference + half), p=p, verdict=verdict
    )
