"""Adam with a step count and a learning rate of its own for each image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks.per_image import column
from fastadv.attacks.state import SlotFields, row

BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True, kw_only=True)
class Moments(SlotFields):
    """Bias-corrected moments of the gradient, rows ``(N, D)``.

    ``m_k / (1 - b^k)`` is the running mean ``m + (g - m) (1 - b) / (1 - b^k)``, whose weight is 1 at the first step:
    so a restart needs no reset, only ``k = 1``.

    Attributes:
        mean: First moment.
        square: Second moment.

    Source: Kingma and Ba 2015, "Adam: a method for stochastic optimization", algorithm 1.
    """

    mean: Tensor = row(0.0)
    square: Tensor = row(0.0)

    def step(self, gradient: Tensor, count: Tensor) -> Tensor:
        """The direction ``m / (sqrt(v) + eps)`` of descent, in ``gradient``, which is written over.

        Args:
            gradient: ``(N, D)``, finite.
            count: ``(N,)``, k of each image, from 1.
        """
        self.mean.lerp_(gradient, column(_weight(BETA_1, count)))
        self.square.lerp_(gradient.square_(), column(_weight(BETA_2, count)))
        torch.sqrt(self.square, out=gradient)
        return torch.div(self.mean, gradient.add_(EPS), out=gradient)


def _weight(beta: float, count: Tensor) -> Tensor:
    """``(1 - b) / (1 - b^k)``, at most 1."""
    k = count.clamp(min=1).to(torch.float32)
    return ((beta - 1) / torch.expm1(k * math.log(beta))).clamp(max=1.0)
