"""Whether the scores of the last images are still distributed as those that a detector was calibrated on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.statistics import kolmogorov_smirnov

LEAST = 20
_MOST = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A window of scores against the calibration set, by the two-sample Kolmogorov-Smirnov test.

    Attributes:
        statistic: the largest difference of the two distribution functions, in [0, 1].
        p_value: the chance of such a difference without drift, for images that are independent of each other.
        images: how many scores the window holds.
    """

    statistic: float
    p_value: float
    images: int


class DriftWindow:
    """The last scores of a detector; may be used from several threads. Memory: 8 bytes a score of the window.

    Used as::

        window = DriftWindow(detector.thresholds.scores)
        window.add(guard(images).scores.tolist())
        print(window.test())
    """

    def __init__(self, calibration: Tensor, *, size: int = 1000) -> None:
        """Begin with an empty window.

        Args:
            calibration: ``(n,)`` finite scores of natural images, ascending: those of :class:`Thresholds`.
            size: how many of the last scores are compared, 20 to 2**20.

        Raises:
            ValueError: a size out of its range.
        """
        self._calibration = calibration.double().numpy()
        self._scores = np.empty(check_size("size", size))
        self._count = 0
        self._lock = threading.Lock()

    def add(self, scores: Sequence[float]) -> None:
        """Take scores, in the order of the images; those that are no finite numbers are left out."""
        with self._lock:
            for score in scores:
                if np.isfinite(score):
                    self._scores[self._count % len(self._scores)] = score
                    self._count += 1

    def test(self) -> Drift | None:
        """The window as it is now; None while it holds fewer than 20 scores."""
        with self._lock:
            held = self._scores[: self._count].copy()
        if len(held) < LEAST:
            return None
        statistic, p_value = kolmogorov_smirnov(held, self._calibration)
        return Drift(statistic=statistic, p_value=p_value, images=len(held))


def check_size(name: str, size: int) -> int:
    """A size of a window, or an error."""
    if type(size) is not int or not LEAST <= size <= _MOST:
        raise ArgumentError(f"{name}: expected an integer from {LEAST} to {_MOST}, got {brief(size)}")
    return size
