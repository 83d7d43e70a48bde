"""How far a share of a few hundred trials can be trusted, and whether two methods differ on the same trials."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastadv.core.errors import ArgumentError

_Z = 1.959963984540054  # of a two-sided 95 % interval


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share, ``hits`` of ``trials``.

    Raises:
        ValueError: No trials, or more hits than trials.

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not (trials >= 1 and 0 <= hits <= trials):
        raise ArgumentError(f"hits: expected 0 to trials >= 1, got {hits} of {trials}")
    share, square = hits / trials, _Z * _Z / trials
    centre = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    # at the ends the exact limits are 0 and 1; rounding would miss them by an ulp
    return 0.0 if hits == 0 else centre - half, 1.0 if hits == trials else centre + half


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
    p = min(1.0, 2 * sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c))
    verdict = "undecided" if p >= 0.05 else "above" if difference > 0 else "below"
    return PairedDifference(
        difference=difference,
        low=max(-1.0, difference - half),
        high=min(1.0, difference + half),
        p=p,
        verdict=verdict,
    )
