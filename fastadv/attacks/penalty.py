"""What the attacks of Carlini and Wagner share: Adam in tanh space, in inner runs at one constant after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from fastadv.attacks.adam import Moments
from fastadv.attacks.attack import Evaluation, SmallestChange
from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.per_image import as_rows, put_where
from fastadv.attacks.state import RowState, integer, number, part, row
from fastadv.attacks.tanh_space import TanhSpace
from fastadv.core.fields import check_count, check_number, check_open

LARGEST = 1e12
"""The largest constant: its square, times a gradient's, is still a float32."""

_CHECKS = 10  # looks at the progress in an inner run
_APART = 10  # evaluations between two looks, at least: Adam's first steps go up and down
_PROGRESS = 0.9999


@dataclass(frozen=True, kw_only=True)
class PenaltyState(RowState):
    """The slots of a ``PenaltyAttack``.

    Attributes:
        space: Where the trial is in tanh space.
        moments: Adam's.
        count: ``(N,)`` int64, evaluations of the inner run so far.
        reference: ``(N,)``, the loss at the last look at the progress.
        best: ``(N, D)``, the result so far.
        delta: ``(N, D)``, the trial less the clean image.
    """

    space: TanhSpace = part(TanhSpace.allocate)
    moments: Moments = part(Moments.allocate)
    count: Tensor = integer()
    reference: Tensor = number(torch.inf)
    best: Tensor = row()
    delta: Tensor = row()

    def first(self, into: Tensor, value: Tensor) -> None:
        """Put what the first evaluation of an image gives ``(N,)`` where this is the first."""
        into.copy_(torch.where(self.active & (self.ticks == 1), value, into))

    def begin_run(self, mask: Tensor) -> None:
        """Begin an inner run where the mask ``(N,)`` says."""
        self.count.masked_fill_(mask, 0)
        self.reference.masked_fill_(mask, torch.inf)


P = TypeVar("P", bound=PenaltyState)


@dataclass(frozen=True, kw_only=True)
class PenaltyAttack(SmallestChange[P]):
    """Shared by the attacks that minimise a measure of the change and ``c f(x')`` over ``x' = 1/2 + h tanh(w)``.

    f is ``max(shortfall, -confidence)``, the shortfall that of the goal.

    Attributes:
        search_steps: Inner runs.
        inner_steps: Most evaluations of an inner run.
        learning_rate: Adam's step in tanh space, or None for the attack to choose.
        initial_constant: The first c, or None for the attack to choose.
        confidence: kappa, in the unit of the goal's score: how far beyond the border the goal must be reached.
        abort_early: End an inner run that makes no progress in a tenth of its steps, or in 10.

    Raises:
        ValueError: A field is out of range.
    """

    search_steps: int = 5
    inner_steps: int = 1000
    learning_rate: float | None = None
    initial_constant: float | None = None
    confidence: float = 0.0
    abort_early: bool = True

    def __post_init__(self) -> None:
        check_count("search_steps", self.search_steps)
        check_count("inner_steps", self.inner_steps)
        check_open("learning_rate", self.learning_rate)
        check_open("initial_constant", self.initial_constant)
        check_number("confidence", self.confidence)

    @property
    def margin(self) -> float:
        """The confidence."""
        return self.confidence

    @property
    def steps(self) -> int:
        """The most evaluations of all inner runs: of an image, or at one bound or on one set of pixels."""
        return self.search_steps * self.inner_steps

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """``-f``, up to a constant: the negative shortfall with the confidence, at most 0."""
        return -(goal.shortfall(outputs, rows) + self.confidence).clamp(min=0.0)

    def start(self, state: P, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; nothing is drawn."""
        state.begin(slots, images)
        state.space.begin(slots, as_rows(state.origin)[slots])
        state.moments.reset(slots)

    def take_in(self, state: P, evaluation: Evaluation, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Count an evaluation, note the change of the trial, and choose what the first one is to choose.

        Args:
            state: The slots.
            evaluation: Of all of them.
            counted: ``(N,)`` bool, where the gradient is that of f, which is flat at its floor.

        Returns:
            f ``(N,)`` where it is not at its floor, and its gradient, rows ``(N, D)``.
        """
        state.ticks.add_(state.active)
        shortfall = torch.nan_to_num(-evaluation.loss)
        gradient = state.finite_gradient(evaluation.gradient, state.active & counted)
        self.scale(state, shortfall, gradient)
        torch.sub(as_rows(state.trial), as_rows(state.origin), out=state.delta)
        return shortfall, gradient

    def scale(self, state: P, shortfall: Tensor, gradient: Tensor) -> None:
        """Choose the first constant and the rate by the first evaluation of an image."""
        raise NotImplementedError

    def over(self, state: P, loss: Tensor) -> Tensor:
        """Whether the inner run ends with this evaluation, ``(N,)`` bool."""
        over = state.count >= self.inner_steps - 1
        if self.abort_early:
            look = state.count % max(_APART, self.inner_steps // _CHECKS) == 0
            over |= look & (loss > _PROGRESS * state.reference)
            state.reference.copy_(torch.where(look, loss, state.reference))
        state.count.add_(1)
        return over & state.active


@dataclass(frozen=True, kw_only=True)
class RaisedState(PenaltyState):
    """The slots of a ``RaisedPenalty``; ``best`` is a point of tanh space.

    Attributes:
        constant: ``(N,)``, c.
        raises: ``(N,)`` int64, how often c was raised at this bound or on this set of pixels.
    """

    constant: Tensor = number()
    raises: Tensor = integer()


R = TypeVar("R", bound=RaisedState)


@dataclass(frozen=True, kw_only=True)
class RaisedPenalty(PenaltyAttack[R]):
    """Those that raise c at one bound until the goal is reached there, and then take the next bound.

    Attributes:
        growth: The factor of a constant that failed.
    """

    growth: ClassVar[float]

    def start(self, state: R, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; nothing is drawn."""
        super().start(state, slots, images, ids=ids, seed=seed)
        state.best[slots] = state.space.origin[slots]
        state.constant[slots] = self.initial_constant or 0.0

    def begin_bound(self, state: R, mask: Tensor) -> None:
        """Begin the first inner run at a bound where the mask says."""
        state.begin_run(mask)
        state.raises.masked_fill_(mask, 0)

    def next_constant(self, state: R, over: Tensor) -> Tensor:
        """More of the constant; where it was raised often enough, that of before, and True."""
        state.raises.add_(over)
        spent = over & (state.raises >= self.search_steps)
        grown = state.constant * torch.where(spent, self.growth ** (1 - self.search_steps), self.growth)
        state.constant.copy_(torch.where(over, grown, state.constant).clamp(max=LARGEST))
        state.raises.masked_fill_(spent, 0)
        state.begin_run(over)
        return spent

    @staticmethod
    def write_trial(state: R, done: Tensor, found: Tensor) -> None:
        """The trial of every point; of what is done the best, where there is one."""
        state.space.place(done & found, state.best)
        put_where(as_rows(state.trial), state.active, state.space.pixels(state.work))
        state.active.logical_and_(~done)
