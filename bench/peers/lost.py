"""Which rows of an attack lost, whatever their speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastadv.core.statistics import paired_difference

_LONGER = 1.01  # a larger norm than this times another row's loses
_MANY = 20  # of fewer images the interval can have no width, where all disagree: the exact test decides as well


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run did to the first images.

    Attributes:
        success: ``(n,)`` bool, in float32 on the 8-bit images.
        norm: ``(n,)``, of the change.
    """

    success: NDArray[np.bool_]
    norm: NDArray[np.float64]


def lost(outcomes: Sequence[Outcome], *, minimal: bool) -> list[bool]:
    """For each run, whether another one did better on the images that both had.

    Better is a success rate above, by more than the 95 % interval of the paired difference; with ``minimal`` also a
    median norm that is more than 1 % shorter where both succeeded, by a run that has not lost by its success.

    Args:
        outcomes: Of one attack; every run took the images in the same order, and not all of them took all.
        minimal: Whether the attack looks for the smallest change.
    """
    fewer = [any(_fewer(one, other) for other in outcomes) for one in outcomes]
    if not minimal:
        return fewer
    good = [other for other, worse in zip(outcomes, fewer, strict=True) if not worse]
    return [worse or any(_longer(one, other) for other in good) for one, worse in zip(outcomes, fewer, strict=True)]


def _fewer(one: Outcome, other: Outcome) -> bool:
    n = min(len(one.success), len(other.success))
    if n == 0:
        return False
    difference = paired_difference(other.success[:n], one.success[:n])
    return difference.low > 0 and (n >= _MANY or difference.p < 0.05)


def _longer(one: Outcome, other: Outcome) -> bool:
    n = min(len(one.success), len(other.success))
    both = one.success[:n] & other.success[:n]
    return bool(both.any() and np.median(one.norm[:n][both]) > _LONGER * np.median(other.norm[:n][both]))
