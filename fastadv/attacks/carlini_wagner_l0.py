"""Carlini and Wagner's L0 attack: L2 attacks on a set of pixels that shrinks inside each slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv.attacks.attack import Evaluation
from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.penalty import LARGEST, RaisedPenalty, RaisedState
from fastadv.attacks.per_image import as_rows, column, put_where, row_norm
from fastadv.attacks.state import boolean, image, integer, number
from fastadv.core.fields import check_count, check_number

_CONSTANT = 2.0  # times the constant that would do if the network were linear
_SHARE = 0.5  # pixels below this part of the mean score are fixed; a quarter of it after each step back
_LESS = 0.25


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL0State(RaisedState):
    """The slots of a ``CarliniWagnerL0`` attack.

    Attributes:
        free: ``(N, 3, H, W)`` bool in the layout of the trial, the pixels that may change.
        share: ``(N,)``, see ``_SHARE``.
        backs: ``(N,)`` int64, how often a set was given up.
        best_free: Like ``free``, the set of the result so far.
        spent: Like the trial: how much the goal owes to each pixel.
        found: ``(N,)`` bool, whether there is a result.
    """

    free: Tensor = image(True, dtype=torch.bool)
    share: Tensor = number(_SHARE)
    backs: Tensor = integer()
    best_free: Tensor = image(True, dtype=torch.bool)
    spent: Tensor = image()
    found: Tensor = boolean()


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL0(RaisedPenalty[CarliniWagnerL0State]):
    """Change few pixels: minimise ``||x' - x||_2^2 + c f(x')`` over a set of free pixels, and shrink the set.

    f is that of ``CarliniWagner``, and so is tanh space. Whenever the goal is reached, the free pixels that it owes
    least to, by ``sum over channels |df/dx'_i (x'_i - x_i)|``, are set back and fixed, and the run goes on with the
    others. A run that does not reach the goal is repeated with 10 c, at most ``search_steps`` times; then the last set
    that did is taken up again with the c of before, and fewer pixels are fixed at a time. The attack ends after
    ``retries`` such steps back, or when no pixel can be fixed.

    **choice** C&W fix pixels one sorted list at a time. Here all those go whose score is below half of the free pixels'
    mean, and the one with the least; after each step back it is a quarter of that share. c starts at twice the
    constant ``2 f / ||g||^2`` of a linear network.

    Attributes:
        search_steps: Inner runs on a set, each with ten times the constant of the one before.
        learning_rate: Adam's step in tanh space. Few pixels have far to go: it is larger than that of L2.
        initial_constant: The first c, or None: see above.
        retries: Steps back.
        name: What reports call it; the other fields are those of ``PenaltyAttack``.

    Raises:
        ValueError: A field is out of range.

    Source: Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", section VI-B; Massoli et
    al., section 3.5.
    """

    slots = CarliniWagnerL0State
    growth: ClassVar[float] = 10.0
    learning_rate: float = 0.05
    retries: int = 3
    name: str = "cw-l0"

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, positive=True)
        super().__post_init__()
        check_count("retries", self.retries, least=0)

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """The negative shortfall with the confidence; f's floor is the attack's, which needs the gradient below it."""
        return -(goal.shortfall(outputs, rows) + self.confidence)

    def tick(self, state: CarliniWagnerL0State, evaluation: Evaluation) -> None:
        """One Adam step on the free pixels; where the goal is reached, a smaller set; where a run is over, more c."""
        shortfall, gradient = self.take_in(state, evaluation, state.active)
        reached = state.active & evaluation.achieved
        exhausted = self._shrink(state, reached, gradient)
        loss = row_norm(state.delta).square() + state.constant * shortfall.clamp(min=0.0)
        over = self.over(state, loss) & ~reached
        # half the gradient of the loss: Adam does not see the factor
        pull = torch.where(shortfall > 0, state.constant * -0.5, 0.0)
        gradient.mul_(column(pull)).add_(state.delta).mul_(as_rows(state.free))
        rate = torch.full_like(state.constant, self.learning_rate)
        state.space.descend(state.moments.step(state.space.to_w(gradient), state.count), rate)
        self._next_run(state, over)
        # what is fixed is at its clean value, whether it was fixed now or freed by a step back
        torch.where(as_rows(state.free), state.space.point, state.space.origin, out=state.space.point)
        self._write_trial(state, exhausted)

    def scale(self, state: CarliniWagnerL0State, shortfall: Tensor, gradient: Tensor) -> None:
        """Choose the first constant by the first evaluation of an image."""
        if self.initial_constant is None:
            constant = _CONSTANT * 2 * shortfall / row_norm(gradient).clamp(min=1e-12).square()
            state.first(state.constant, constant.clamp(1e-12, LARGEST))

    def _shrink(self, state: CarliniWagnerL0State, reached: Tensor, gradient: Tensor) -> Tensor:
        """Keep the set where the goal is reached, and fix its least useful pixels; where none would be left, True."""
        put_where(state.best, reached, state.space.point)
        put_where(as_rows(state.best_free), reached, as_rows(state.free))
        state.found.logical_or_(reached)
        torch.mul(gradient, state.delta, out=as_rows(state.spent)).abs_()
        free = state.free[:, 0]
        score = torch.where(free, state.spent.sum(1), 0.0).flatten(1)
        count = free.flatten(1).sum(1)
        least = torch.where(free.flatten(1), score, torch.inf).amin(1)
        threshold = torch.maximum(state.share * score.sum(1) / count.clamp(min=1), least)
        kept = score > column(threshold)
        exhausted = reached & ~kept.any(1)
        shrinking = column(reached & ~exhausted)
        state.free.logical_and_((kept | ~shrinking).view(len(kept), 1, *state.free.shape[2:]))
        self.begin_bound(state, shrinking[:, 0])
        return exhausted

    def _next_run(self, state: CarliniWagnerL0State, over: Tensor) -> None:
        """More of the constant; where it was raised often enough, back to the last set that reached the goal."""
        back = self.next_constant(state, over)
        state.backs.add_(back)
        state.space.place(back, state.best)
        put_where(as_rows(state.free), back, as_rows(state.best_free))
        state.share.copy_(torch.where(back, state.share * _LESS, state.share))

    def _write_trial(self, state: CarliniWagnerL0State, exhausted: Tensor) -> None:
        hopeless = (state.backs > 0) & ~state.found
        done = state.active & (exhausted | hopeless | (state.backs > self.retries))
        self.write_trial(state, done, state.found)
