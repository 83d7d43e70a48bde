"""How often attacks succeed, apart from the images that reached the goal before the attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core.errors import ArgumentError


class Rates(TypedDict):
    """What JSON files call the figures of a `Success`."""

    images: int
    success: float | None
    met_before: float | None
    met_before_images: int
    success_of_rest: float | None
    rest_successes: int


@dataclass(frozen=True, kw_only=True)
class Success:
    """Counts of attacked images; a share is None where it would be of no image.

    Attributes:
        images: How many were attacked.
        successes: How many reach the goal after the attack.
        met_before_images: Of how many the clean image reached the goal already.
        rest_successes: How many reach the goal after the attack and did not before: what norms are averaged over.
    """

    images: int
    successes: int
    met_before_images: int
    rest_successes: int

    @property
    def success(self) -> float | None:
        """Share of the images that reach the goal after the attack."""
        return self.successes / self.images if self.images else None

    @property
    def met_before(self) -> float | None:
        """Share of the images whose clean version reached the goal already."""
        return self.met_before_images / self.images if self.images else None

    @property
    def success_of_rest(self) -> float | None:
        """Share of the other images that reach the goal after the attack."""
        rest = self.images - self.met_before_images
        return self.rest_successes / rest if rest else None

    def rates(self) -> Rates:
        """Counts and shares as plain JSON values."""
        return Rates(
            images=self.images,
            success=self.success,
            met_before=self.met_before,
            met_before_images=self.met_before_images,
            success_of_rest=self.success_of_rest,
            rest_successes=self.rest_successes,
        )


def count_success(hits: ArrayLike, met: ArrayLike) -> Success:
    """Count.

    Args:
        hits: ``(N,)`` booleans, images that reach the goal after the attack.
        met: ``(N,)`` booleans, images that reached it before.

    Raises:
        ValueError: Arrays of different lengths.
    """
    after, before = np.asarray(hits, bool), np.asarray(met, bool)
    if after.ndim != 1 or after.shape != before.shape:
        raise ArgumentError(f"hits, met: expected two (N,) arrays, got {after.shape} and {before.shape}")
    return Success(
        images=len(after),
        successes=int(after.sum()),
        met_before_images=int(before.sum()),
        rest_successes=int((after & ~before).sum()),
    )


def mean_of(values: ArrayLike, chosen: NDArray[np.bool_]) -> float | None:
    """The mean of the chosen values; None of none."""
    kept = np.asarray(values, np.float64)[chosen]
    return float(kept.mean()) if len(kept) else None
