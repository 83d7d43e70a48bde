"""Minimal FGSM: the smallest signed step along the first gradient that flips the decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv.attacks.attack import Evaluation
from fastadv.attacks.bracket import LineSearch, check_line, most_tries
from fastadv.attacks.budget import Box
from fastadv.attacks.fields import check_number
from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.per_image import as_rows, column, put_where
from fastadv.attacks.state import RowState, part, row


@dataclass(frozen=True, kw_only=True)
class MinimalFGSMState(RowState):
    """The slots of a ``MinimalFGSM`` attack.

    Attributes:
        eps: The sizes that are tried.
        direction: ``(N, D)``, the sign of the gradient at the clean image.
    """

    eps: LineSearch = part(LineSearch.allocate)
    direction: Tensor = row(0.0)


@dataclass(frozen=True, kw_only=True)
class MinimalFGSM:
    """``clip(x + eps sign grad J(x))`` with the smallest eps that reaches the goal.

    The gradient is taken once, at the clean image. eps grows by a factor until the decision flips, then
    ``bisections`` halve the interval. Where the largest eps does not reach the goal, its image is the result.

    Attributes:
        first: The first eps, pixels in [0, 1].
        growth: The factor, above 1.
        bisections: After the first success.
        largest: The largest eps.
        margin: In the unit of the goal's score: the decision must flip by as much.
        name: What reports call it.

    Raises:
        ValueError: A field is out of range.

    Source: Mehr and Schroeder, section III, after Goodfellow et al. 2015; the bisection takes the place of a scan.
    """

    smallest: ClassVar[bool] = True
    first: float = 0.25 / 255
    growth: float = 1.25
    bisections: int = 8
    largest: float = 1.0
    margin: float = 0.0
    name: str = "minimal-fgsm"

    def __post_init__(self) -> None:
        check_line(self.first, self.growth, self.bisections, self.largest)
        check_number("margin", self.margin)

    @property
    def budget(self) -> Box:
        """The pixel range: the attack looks for the smallest perturbation itself."""
        return Box()

    @property
    def steps(self) -> int:
        """The most evaluations of an image."""
        return 1 + most_tries(self.first, self.growth, self.bisections, self.largest)

    @property
    def needs_gradient(self) -> bool:
        """At the first evaluation of each image, so at some slot's most of the time."""
        return True

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """The goal's loss."""
        return goal.loss(outputs, rows)

    def allocate(self, like: Tensor) -> MinimalFGSMState:
        """A state of ``len(like)`` idle slots in the layout of ``like``."""
        return MinimalFGSMState.allocate(like)

    def start(self, state: MinimalFGSMState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; nothing is drawn."""
        state.begin(slots, images)
        state.eps.begin(slots, self.first, self.bisections)

    def tick(self, state: MinimalFGSMState, evaluation: Evaluation) -> None:
        """The first: take the direction. The others: take note of one eps, and try the next."""
        first = state.active & (state.ticks == 0)
        state.ticks.add_(state.active)
        gradient = state.finite_gradient(evaluation.gradient, first)
        put_where(state.direction, first, gradient.sign_())
        stuck = first & (evaluation.achieved | (state.stats[:, 1] > 0))  # there before, or without any gradient
        state.active.logical_and_(~stuck)
        tried = state.active & ~first
        over = state.eps.advance(tried, evaluation.achieved, growth=self.growth, largest=self.largest)
        origin, size = as_rows(state.origin), column(state.eps.bracket.value)
        moved = torch.addcmul(origin, state.direction, size, out=state.work).clamp_(self.budget.lo, self.budget.hi)
        put_where(as_rows(state.trial), state.active, moved)
        state.active.logical_and_(~over)
