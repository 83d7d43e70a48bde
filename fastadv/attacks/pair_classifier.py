"""The pair classifier: verification as a two-class problem, so that every attack on a classifier can be used on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv.attacks.goal import Goal, Rows, check_references
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import is_number

MAX_DISTANCE = 2.0
"""The largest distance of two unit embeddings."""


def same_probability(distance: Tensor, threshold: float, max_distance: float = MAX_DISTANCE) -> Tensor:
    """``P(same)`` of Euclidean distances of unit embeddings: see ``PairClassifier``."""
    far = 0.5 - 0.5 * (distance - threshold) / (max_distance - threshold)
    return torch.where(distance < threshold, 1 - 0.5 * distance / threshold, far)


@dataclass(frozen=True, kw_only=True)
class PairClassifier(Goal):
    """A pair's probability of being the same person, from its distance d, pushed over one half.

    ``P(same) = 1 - 0.5 d / t`` for ``d < t``, else ``0.5 - 0.5 (d - t) / (M - t)``: 1 at distance 0, one half at the
    threshold t, 0 at the largest distance M. With ``wanted = "different"`` (``anonymisation``) the loss is
    ``J = -P(same)``, achieved below one half; with ``wanted = "same"`` (``impersonation``) it is ``J = +P(same)``,
    achieved at one half or above.

    Attributes:
        references: The fixed second images ``(N, 3, H, W)``, or unit embeddings ``(N, D)``.
        threshold: t, a Euclidean distance of unit embeddings in (0, max_distance).
        max_distance: M, at most 2.
        wanted: The class to reach, ``"same"`` or ``"different"``.

    Raises:
        ValueError: A field has the wrong shape, type or range.

    Source: Mehr and Schroeder, section 4, after Foolbox' two-class wrapping of a verifier.
    """

    metric: ClassVar[str] = "probability_same"
    references: Tensor
    threshold: float
    max_distance: float = MAX_DISTANCE
    wanted: str

    def __post_init__(self) -> None:
        if self.references is None:
            raise ArgumentError("references: expected images (N, 3, H, W) or embeddings (N, D), got None")
        check_references("references", self.references)
        if self.wanted not in ("same", "different"):
            raise ArgumentError(f"wanted: expected 'same' or 'different', got {brief(self.wanted)}")
        if not (is_number(self.max_distance) and 0 < self.max_distance <= MAX_DISTANCE):
            raise ArgumentError(
                f"max_distance: expected a distance in (0, {MAX_DISTANCE:g}], got {brief(self.max_distance)}"
            )
        if not (is_number(self.threshold) and 0 < self.threshold < self.max_distance):
            raise ArgumentError(
                f"threshold: expected a distance in (0, max_distance = {self.max_distance:g}), got "
                f"{brief(self.threshold)}"
            )

    def score(self, outputs: Tensor, rows: Rows) -> Tensor:
        """``P(same)``, ``(N,)``."""
        return same_probability(rows.distance(outputs), self.threshold, self.max_distance)

    def shortfall(self, outputs: Tensor, rows: Rows) -> Tensor:
        """``P(same) - 1/2`` or its negative: half the difference of the two classes' probabilities."""
        over = self.score(outputs, rows) - 0.5
        return -over if self.wanted == "same" else over

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """``P`` of the wanted class, but for a constant."""
        return -self.shortfall(outputs, rows)

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        """Whether the wanted class has one half and ``margin`` more; at one half exactly the pair is the same."""
        lacking = self.shortfall(outputs, rows)
        return lacking <= -margin if self.wanted == "same" else lacking < -margin


def anonymisation(references: Tensor, *, threshold: float, max_distance: float = MAX_DISTANCE) -> PairClassifier:
    """From the same person to a different one. Mehr and Schroeder, section 4.

    Args:
        references: The fixed second images of genuine pairs, or their unit embeddings.
        threshold: The verifier's Euclidean distance.
        max_distance: The distance of probability 0.
    """
    return PairClassifier(references=references, threshold=threshold, max_distance=max_distance, wanted="different")


def impersonation(references: Tensor, *, threshold: float, max_distance: float = MAX_DISTANCE) -> PairClassifier:
    """From a different person to the same one, with impostor pairs; the arguments are those of ``anonymisation``."""
    return PairClassifier(references=references, threshold=threshold, max_distance=max_distance, wanted="same")
