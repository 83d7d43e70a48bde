"""Goals of verification: an embedding that a verifier refuses or accepts beside a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastadv.attacks.goal import Goal, Rows, check_references
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import is_number

METRICS = ("cosine", "euclidean")


def check_threshold(metric: str, threshold: float) -> None:
    if metric not in METRICS:
        raise ArgumentError(f"metric: expected one of {', '.join(METRICS)}, got {brief(metric)}")
    low, high = (-1.0, 1.0) if metric == "cosine" else (0.0, 2.0)
    if not (is_number(threshold) and low <= threshold <= high):
        raise ArgumentError(f"threshold: expected a {metric} value in [{low:g}, {high:g}], got {brief(threshold)}")


class Compared(Goal):
    """Shared by the goals that compare an embedding with a reference: score and threshold."""

    accepted: ClassVar[bool]  # whether the goal is to be accepted as the reference
    threshold: float
    metric: str

    def score(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Cosine similarity, or the Euclidean distance of the unit embeddings."""
        if self.metric == "euclidean":
            return rows.distance(outputs)
        return (outputs * rows.compared).sum(1)

    def _acceptance(self, outputs: Tensor, rows: Rows) -> Tensor:
        """How far above the threshold of acceptance the pair is; negative when it is refused."""
        score = self.score(outputs, rows)
        return score - self.threshold if self.metric == "cosine" else self.threshold - score

    def shortfall(self, outputs: Tensor, rows: Rows) -> Tensor:
        """How far the pair is from being refused, or accepted, as the goal wants; in the unit of the score."""
        acceptance = self._acceptance(outputs, rows)
        return -acceptance if self.accepted else acceptance


@dataclass(frozen=True, kw_only=True)
class Evade(Compared):
    """Be refused: ``J = +d(x, reference)``, achieved when the pair falls below the threshold.

    The gradient of d is zero at the reference itself: an image that starts on its own embedding needs a random
    start, and the engine reports one that never had a gradient.

    Attributes:
        references: Images ``(N, 3, H, W)`` or unit embeddings ``(N, D)``; None compares each image with itself.
        threshold: The verifier's threshold, a cosine similarity or a distance according to ``metric``.
        metric: ``"cosine"`` (accepted at or above the threshold) or ``"euclidean"`` (accepted at or below it).

    Raises:
        ValueError: A field has the wrong shape, type or range.

    Source: Zhong and Deng, eq. 7-8 (positive pairs), with the sign of their algorithms.
    """

    accepted: ClassVar[bool] = False
    references: Tensor | None = None
    threshold: float
    metric: str = "cosine"

    def __post_init__(self) -> None:
        check_references("references", self.references)
        check_threshold(self.metric, self.threshold)

    @property
    def own_reference(self) -> bool:
        return self.references is None

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        return rows.distance(outputs)

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        return self._acceptance(outputs, rows) < -margin


@dataclass(frozen=True)
class Impersonate(Compared):
    """Be taken for the target: ``J = -d(x, target)``, achieved when the pair reaches the threshold.

    Attributes:
        targets: Images ``(N, 3, H, W)`` or unit embeddings ``(N, D)``.
        threshold: See ``Evade``; likewise ``metric``.

    Raises:
        ValueError: A field has the wrong shape, type or range.

    Source: Zhong and Deng, eq. 7-8 (negative pairs), with the sign of their algorithms.
    """

    accepted: ClassVar[bool] = True
    targets: Tensor
    threshold: float
    metric: str = "cosine"

    def __post_init__(self) -> None:
        if self.targets is None:
            raise ArgumentError("targets: expected images (N, 3, H, W) or embeddings (N, D), got None")
        check_references("targets", self.targets)
        check_threshold(self.metric, self.threshold)

    @property
    def references(self) -> Tensor:
        return self.targets

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        return -rows.distance(outputs)

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        return self._acceptance(outputs, rows) >= margin
