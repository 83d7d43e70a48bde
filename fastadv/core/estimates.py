"""Measured numbers with 95 % intervals, and the intervals of what is computed from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core.errors import ArgumentError
from fastadv.core.numbers import finite
from fastadv.core.statistics import PairedDifference, wilson

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured number.

    Attributes:
        value: The number.
        low: Lower end of its 95 % interval; minus infinity where one observation gives none.
        high: Upper end.
        hits: Of a share: how many trials have it; else None.
        trials: Of a share: all trials; of a mean: how many numbers; else None.
    """

    value: float
    low: float
    high: float
    hits: int | None = None
    trials: int | None = None

    def __sub__(self, other: Estimate | float) -> Estimate:
        r"""The difference of two independent estimates, or of an estimate and a constant.

        .. math:: L = a - b - \sqrt{(a - a_l)^2 + (b_u - b)^2}, \qquad U = a - b + \sqrt{(a_u - a)^2 + (b - b_l)^2}

        Of two shares with Wilson's intervals this is Newcombe's interval. Estimates on the same images vary together:
        their interval is too wide then, never too narrow as long as they rise and fall together.

        Source:
            Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10; Zou and
            Donner 2008, "Construction of confidence limits about effect measures".
        """
        if not isinstance(other, Estimate):
            return Estimate(value=self.value - other, low=self.low - other, high=self.high - other)
        value = self.value - other.value
        return Estimate(
            value=value,
            low=value - math.hypot(self.value - self.low, other.high - other.value),
            high=value + math.hypot(self.high - self.value, other.value - other.low),
        )

    def __neg__(self) -> Estimate:
        return Estimate(value=-self.value, low=-self.high, high=-self.low)

    @property
    def verdict(self) -> str:
        """Whether the number is above 0: ``"pass"``, ``"fail"``, or ``"undecided"`` where the interval holds 0."""
        return PASS if self.low > 0 else FAIL if self.high < 0 else UNDECIDED

    def described(self) -> dict[str, Any]:
        """As plain JSON values; an end that is not finite is None."""
        found = {"value": self.value, "low": self.low, "high": self.high}
        return {
            **{name: finite(value) for name, value in found.items()},
            "hits": self.hits,
            "trials": self.trials,
        }


def share_of(hits: int, trials: int) -> Estimate:
    """A share, with Wilson's interval.

    Raises:
        ValueError: As ``wilson``.
    """
    low, high = wilson(hits, trials)
    return Estimate(value=hits / trials, low=low, high=high, hits=hits, trials=trials)


def mean_of(values: ArrayLike, weights: ArrayLike | None = None) -> Estimate:
    """The mean of numbers, with Student's interval; infinite where there is no more than one independent number.

    Args:
        values: The numbers.
        weights: How many independent numbers each counts as; None: 1 each.

    Raises:
        ValueError: No numbers, or one that is not finite.
    """
    found = np.asarray(values, np.float64).ravel()
    if not len(found) or not np.isfinite(found).all():
        raise ArgumentError(f"values: expected finite numbers, at least one, got {len(found)}")
    weight = np.ones_like(found) if weights is None else np.asarray(weights, np.float64)
    count = float(weight.sum())
    mean, half = float(np.average(found, weights=weight)), math.inf
    if count > 1:
        from scipy.stats import t  # here: it takes as long to import as the rest of the package

        variance = float((weight * (found - mean) ** 2).sum()) / (count - 1)
        half = float(t.ppf(0.975, count - 1)) * math.sqrt(variance / count)
    return Estimate(value=mean, low=mean - half, high=mean + half, trials=len(found))


def drawn(values: ArrayLike) -> Estimate:
    """A number with its percentile interval: the first of the values, and those of draws with replacement after it.

    A draw that gives no number is left out; without any the interval is infinite.

    Raises:
        ValueError: No values.
    """
    found = np.asarray(values, np.float64).ravel()
    if not len(found):
        raise ArgumentError("values: expected a number and its draws, got none")
    value, draws = float(found[0]), found[1:][np.isfinite(found[1:])]
    low, high = np.percentile(draws, (2.5, 97.5)).tolist() if len(draws) else (-math.inf, math.inf)
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def of_paired(found: PairedDifference) -> Estimate:
    """The difference of two methods' shares on the same trials (``paired_difference``)."""
    return Estimate(value=found.difference, low=found.low, high=found.high)


def average(found: Sequence[Estimate]) -> Estimate:
    """The mean of estimates, as wide as if all erred together.

    Raises:
        ValueError: No estimates.
    """
    if not found:
        raise ArgumentError("estimates: expected at least one, got none")
    value, low, high = (sum(getattr(each, name) for each in found) / len(found) for name in ("value", "low", "high"))
    return Estimate(value=value, low=low, high=high)


def least(found: Sequence[Estimate]) -> Estimate:
    """The least of estimates: above 0 where each of them is, below 0 where one is.

    Raises:
        ValueError: No estimates.
    """
    if not found:
        raise ArgumentError("estimates: expected at least one, got none")
    value, low, high = (min(getattr(each, name) for each in found) for name in ("value", "low", "high"))
    return Estimate(value=value, low=low, high=high)


def share_or_none(flags: ArrayLike) -> Estimate | None:
    """The share of trials that have it, as ``share_of``; None of no trials."""
    found = np.asarray(flags, bool)
    return share_of(int(found.sum()), len(found)) if len(found) else None


def mean_or_none(values: NDArray[np.float64] | Sequence[float]) -> Estimate | None:
    """The mean of numbers, as ``mean_of``; None of no numbers."""
    return mean_of(values) if len(values) else None


def minus(first: Estimate | None, second: Estimate | float | None) -> Estimate | None:
    """The first minus the second; None where one of them was not measured."""
    return None if first is None or second is None else first - second


def average_or_none(found: Iterable[Estimate | None]) -> Estimate | None:
    """The ``average`` of those that were measured; None where none was."""
    there = [each for each in found if each is not None]
    return average(there) if there else None


def least_or_none(found: Iterable[Estimate | None]) -> Estimate | None:
    """The ``least`` of those that were measured; None where none was."""
    there = [each for each in found if each is not None]
    return least(there) if there else None
