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
from fastadv.attacks.per_image import as_rows, column, finite_gradient, put_where, rows_like


@dataclass(frozen=True, kw_only=True)
class MinimalFGSMState:
    """The slots of a ``MinimalFGSM`` attack; the tensors are written in place.

    Attributes:
        trial: See ``State``; likewise ``origin``, ``active``, ``ticks`` and ``stats``.
        eps: The sizes that are tried.
        direction: ``(N, D)``, the sign of the gradient at the clean image.
    """

    trial: Tensor
    origin: Tensor
    active: Tensor
    ticks: Tensor
    stats: Tensor
    eps: LineSearch
    direction: Tensor
    work: Tensor
    bad: Tensor
    query: None = None


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
        n, device = len(like), like.device
        trial = torch.zeros_like(like, dtype=torch.float32)
        rows = as_rows(trial)
        return MinimalFGSMState(
            trial=trial,
            origin=torch.zeros_like(trial),
            active=torch.zeros(n, dtype=torch.bool, device=device),
            ticks=torch.zeros(n, dtype=torch.int64, device=device),
            stats=torch.zeros(n, 2, dtype=torch.int64, device=device),
            eps=LineSearch.allocate(n, device),
            direction=torch.zeros_like(rows),
            work=torch.zeros_like(rows),
            bad=torch.zeros_like(rows, dtype=torch.bool),
        )

    def start(self, state: MinimalFGSMState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; nothing is drawn."""
        state.origin[slots] = images
        state.trial[slots] = images
        state.eps.begin(slots, self.first, self.bisections)
        state.direction[slots] = 0
        state.ticks[slots] = 0
        state.stats[slots] = 0
        state.active[slots] = True

    def tick(self, state: MinimalFGSMState, evaluation: Evaluation) -> None:
        """The first: take the direction. The others: take note of one eps, and try the next."""
        first = state.active & (state.ticks == 0)
        state.ticks.add_(state.active)
        gradient = finite_gradient(
            rows_like(evaluation.gradient, state.trial),
            stats=state.stats, active=first, work=state.work, bad=state.bad,
        )  # fmt: skip
        put_where(state.direction, first, gradient.sign_())
        stuck = first & (evaluation.achieved | (state.stats[:, 1] > 0))  # there before, or without any gradient
        state.active.logical_and_(~stuck)
        tried = state.active & ~first
        over = state.eps.advance(tried, evaluation.achieved, growth=self.growth, largest=self.largest)
        origin, size = as_rows(state.origin), column(state.eps.bracket.value)
        moved = torch.addcmul(origin, state.direction, size, out=state.work).clamp_(self.budget.lo, self.budget.hi)
        put_where(as_rows(state.trial), state.active, moved)
        state.active.logical_and_(~over)
