"""Images as ``x = 1/2 + (1/2 + m) tanh(w)``, each slot at a point w of its own: the pixel range needs no clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks.per_image import column, put_where
from fastadv.attacks.state import SlotFields, row

MARGIN = 0.02
"""m. **choice** C&W have 0, where a pixel of 0 or 1 has an infinite w or no derivative, and cannot move. With m > 0,
and w kept where x is in [0, 1], its derivative is 8 % of a grey pixel's, and Adam, which divides by it, moves it."""

_HALF = 0.5 + MARGIN
_LIMIT = math.atanh(0.5 / _HALF)


@dataclass(frozen=True, kw_only=True)
class TanhSpace(SlotFields):
    """Points of tanh space, rows ``(N, D)``.

    Attributes:
        origin: w of the clean images.
        point: w of the trial.
        tanh: Its hyperbolic tangent.

    Source: Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", section V-B.
    """

    origin: Tensor = row()
    point: Tensor = row()
    tanh: Tensor = row()

    def begin(self, slots: Tensor, rows: Tensor) -> None:
        """Put clean images into the slots (indices)."""
        t = (rows.double() - 0.5) / _HALF
        # in float64, and rounded once: float32 atanh has other bits at other places of a vector
        self.origin[slots] = (0.5 * (torch.log1p(t) - torch.log1p(-t))).to(rows.dtype)
        self.point[slots] = self.origin[slots]
        self.tanh[slots] = torch.tanh(self.point[slots])

    def to_w(self, gradient: Tensor) -> Tensor:
        """A gradient to the pixels becomes one to w, but for the factor 1/2 + m; in place."""
        return torch.ops.aten.tanh_backward.grad_input(gradient, self.tanh, grad_input=gradient)

    def descend(self, direction: Tensor, rate: Tensor) -> None:
        """Move the point by ``-rate`` ``(N,)`` times the direction, inside the pixel range."""
        self.point.addcmul_(direction, column(-rate)).clamp_(-_LIMIT, _LIMIT)

    def place(self, mask: Tensor, points: Tensor) -> None:
        """Put the points of other rows where the mask ``(N,)`` says."""
        put_where(self.point, mask, points)

    def pixels(self, out: Tensor) -> Tensor:
        """The images of the points, in ``out``; takes note of their tanh."""
        torch.tanh(self.point, out=self.tanh)
        return torch.mul(self.tanh, _HALF, out=out).add_(0.5).clamp_(0.0, 1.0)


def rate_of(change: Tensor) -> Tensor:
    """The step in w that changes a grey pixel by ``change``."""
    return change / _HALF
