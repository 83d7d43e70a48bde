"""Goals of a classifier: a class that wins, or loses, among the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.attacks.goal import Goal, Rows, check_classes


class _Labelled(Goal):
    """Shared by the goals on logits: the margin of a class over the best other one."""

    output: ClassVar[str] = "logits"
    metric: ClassVar[str] = "logit_margin"
    labels: Tensor

    def __post_init__(self) -> None:
        check_classes("labels", self.labels, expected="integer class indices (N,)")

    def score(self, outputs: Tensor, rows: Rows) -> Tensor:
        """``Z_y - max_{i != y} Z_i``: positive while class y is predicted; shift-invariant in the logits."""
        label = rows.named[:, None]
        others = outputs.scatter(1, label, -torch.inf)
        return outputs.gather(1, label).squeeze(1) - others.amax(1)

    def shortfall(self, outputs: Tensor, rows: Rows) -> Tensor:
        """C&W's f without its floor: ``max_{i != y} Z_i - Z_y`` where y is wanted, else its negative."""
        score = self.score(outputs, rows)
        return -score if self.wants_label else score

    @staticmethod
    def _cross_entropy(outputs: Tensor, rows: Rows) -> Tensor:
        return F.cross_entropy(outputs, rows.named, reduction="none")


@dataclass(frozen=True)
class Misclassify(_Labelled):
    """Any other class: ``J = cross-entropy(Z(x), y_true)``, achieved when another class wins.

    Attributes:
        labels: The true classes ``(N,)``, integers.

    Source: Massoli et al., eq. 2; the untargeted form.
    """

    avoids_label: ClassVar[bool] = True
    labels: Tensor

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        return self._cross_entropy(outputs, rows)

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        return self.score(outputs, rows) < -margin

    def rivals(self, outputs: Tensor, rows: Rows, count: int) -> Tensor:
        """``Z_y - Z_i`` of the ``count`` classes i that are nearest to winning, ascending; no (N, K, D) Jacobian."""
        label = rows.named[:, None]
        others = outputs.scatter(1, label, -torch.inf)
        kept = min(count, outputs.shape[1] - 1)
        gaps = outputs.gather(1, label) - others.topk(kept, dim=1).values
        return F.pad(gaps, (0, count - kept), value=torch.inf)


@dataclass(frozen=True)
class ClassifyAs(_Labelled):
    """A chosen class: ``J = -cross-entropy(Z(x), y_target)``, achieved when the class wins.

    Attributes:
        labels: The wanted classes ``(N,)``, integers.

    Source: Massoli et al., eq. 2; the targeted form (FTGSM and ITGSM of Zhong and Deng).
    """

    wants_label: ClassVar[bool] = True
    labels: Tensor

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        return -self._cross_entropy(outputs, rows)

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        return self.score(outputs, rows) > margin
