"""Minimal FGSM: the smallest signed step along the first gradient that flips the decision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks.attack import Evaluation
from fastadv.attacks.bracket import SizedState, SmallestSize
from fastadv.attacks.per_image import as_rows, column, put_where
from fastadv.attacks.state import RowState, row
from fastadv.core.fields import check_number


@dataclass(frozen=True, kw_only=True)
class MinimalFGSMState(SizedState, RowState):
    """The slots of a ``MinimalFGSM`` attack.

    Attributes:
        direction: ``(N, D)``, the sign of the gradient at the clean image.
    """

    direction: Tensor = row(0.0)


@dataclass(frozen=True, kw_only=True)
class MinimalFGSM(SmallestSize[MinimalFGSMState]):
    """``clip(x + eps sign grad J(x))`` with the smallest eps that reaches the goal.

    The gradient is taken once, at the clean image. eps grows by a factor until the decision flips, then
    ``bisections`` halve the interval. Where the largest eps does not reach the goal, its image is the result.

    Attributes:
        first: The first eps, pixels in [0, 1]; the search for the smallest has the fields of ``SmallestSize``.
        margin: In the unit of the goal's score: the decision must flip by as much.
        name: What reports call it.

    Raises:
        ValueError: A field is out of range.

    Source: Mehr and Schroeder, section 4, after Goodfellow et al. 2015; the bisection takes the place of a scan.
    """

    slots = MinimalFGSMState
    first: float = 0.25 / 255
    margin: float = 0.0
    name: str = "minimal-fgsm"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("margin", self.margin)

    def tick(self, state: MinimalFGSMState, evaluation: Evaluation) -> None:
        """The first: take the direction. The others: take note of one eps, and try the next."""
        first = state.active & (state.ticks == 0)
        state.ticks.add_(state.active)
        gradient = state.finite_gradient(evaluation.gradient, first)
        put_where(state.direction, first, gradient.sign_())
        stuck = first & (evaluation.achieved | (state.stats[:, 1] > 0))  # there before, or without any gradient
        state.active.logical_and_(~stuck)
        tried = state.active & ~first
        over = self.next_size(state, tried, evaluation.achieved)
        origin, size = as_rows(state.origin), column(state.size.bracket.value)
        moved = torch.addcmul(origin, state.direction, size, out=state.work).clamp_(self.budget.lo, self.budget.hi)
        put_where(as_rows(state.trial), state.active, moved)
        state.active.logical_and_(~over)
