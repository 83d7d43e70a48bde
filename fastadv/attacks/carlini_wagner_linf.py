"""Carlini and Wagner's L-infinity attack: a penalty on what exceeds a bound that shrinks inside each slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv.attacks.adam import Moments
from fastadv.attacks.attack import Evaluation
from fastadv.attacks.budget import Box
from fastadv.attacks.fields import check_count, check_number, check_open
from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.per_image import as_rows, column, put_where, row_norm
from fastadv.attacks.state import RowState, integer, number, part, row
from fastadv.attacks.tanh_space import TanhSpace, rate_of

_SHRINK = 0.9
_SMALLEST = 1 / 256  # C&W's last bound: below it no 8-bit image changes
_FIRST_STRIDE = 0.1  # first step, as a part of the distance to the border of the linear network
_STRIDE = 0.05  # the later ones, as a part of the bound
_GROWTH = 2.0
_LARGEST = 1e12  # a constant: its square, times a gradient's, is still a float32
_CHECKS = 10
_APART = 10  # evaluations between two looks, at least: Adam's first steps go up and down
_PROGRESS = 0.9999


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerLinfState(RowState):
    """The slots of a ``CarliniWagnerLinf`` attack.

    Attributes:
        space: Where the trial is in tanh space.
        moments: Adam's.
        constant: ``(N,)``, c.
        bound: ``(N,)``, tau.
        low: ``(N,)``, the largest bound that was given up, or 0.
        rate: ``(N,)``, Adam's step in tanh space.
        count: ``(N,)`` int64, evaluations of the inner run so far.
        raises: ``(N,)`` int64, how often c was raised at this bound.
        reference: ``(N,)``, the loss at the last look at the progress.
        best: ``(N, D)``, the point of tanh space of the result so far.
        smallest: ``(N,)``, its largest change; inf before there is one.
    """

    space: TanhSpace = part(TanhSpace.allocate)
    moments: Moments = part(Moments.allocate)
    constant: Tensor = number()
    bound: Tensor = number()
    low: Tensor = number()
    rate: Tensor = number()
    count: Tensor = integer()
    raises: Tensor = integer()
    reference: Tensor = number(torch.inf)
    best: Tensor = row()
    smallest: Tensor = number(torch.inf)
    delta: Tensor = row()
    inside: Tensor = row()


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerLinf:
    """Minimise ``c f(x') + sum_i max(|x'_i - x_i| - tau, 0)``, and shrink tau for as long as that succeeds.

    f is that of ``CarliniWagner``, and so is tanh space. tau begins at the whole pixel range. As soon as an inner run
    reaches the goal with a largest change at most half-way from the best so far to tau, tau becomes 0.9 times that
    change and the run goes on from there. An inner run that does not is repeated from the best image with c doubled,
    at most ``search_steps`` times; then tau is given up.

    **choice** C&W end there, up to 1 / 0.9 away from the smallest perturbation. Here tau goes on half-way between what
    was given up and the best, until the two are within ``tolerance``; or until tau is below 1/256, as theirs.

    **choice** C&W raise c from 1e-5 to 20, for logits. Here it starts at ``1 / mean |g|`` with the gradient g of the
    shortfall at the clean image, where f pulls as hard as the penalty does. The step is a tenth of the linear network's
    L-infinity distance ``f / ||g||_1`` before the first success, and 5 % of tau after it.

    Attributes:
        search_steps: Inner runs at a bound, each with twice the constant of the one before.
        inner_steps: Most evaluations of an inner run.
        learning_rate: Adam's step in tanh space, or None: see above.
        initial_constant: The first c, or None: see above.
        tolerance: How much larger than a bound that was given up the result may be, as a part of it.
        confidence: kappa, in the unit of the goal's score: how far beyond the border the goal must be reached.
        abort_early: End an inner run that makes no progress in a tenth of its steps, or in 10.
        name: What reports call it.

    Raises:
        ValueError: A field is out of range.

    Source: Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", section VI-C; Massoli et
    al., eq. 7.
    """

    smallest: ClassVar[bool] = True
    search_steps: int = 5
    inner_steps: int = 1000
    learning_rate: float | None = None
    initial_constant: float | None = None
    tolerance: float = 0.05
    confidence: float = 0.0
    abort_early: bool = True
    name: str = "cw-linf"

    def __post_init__(self) -> None:
        check_count("search_steps", self.search_steps)
        check_count("inner_steps", self.inner_steps)
        check_open("learning_rate", self.learning_rate)
        check_open("initial_constant", self.initial_constant)
        check_number("tolerance", self.tolerance, positive=True)
        check_number("confidence", self.confidence)

    @property
    def budget(self) -> Box:
        """The pixel range: the attack looks for the smallest perturbation itself."""
        return Box()

    @property
    def margin(self) -> float:
        """The confidence."""
        return self.confidence

    @property
    def steps(self) -> int:
        """The evaluations of an image at one bound, at most."""
        return self.search_steps * self.inner_steps

    @property
    def needs_gradient(self) -> bool:
        """Always."""
        return True

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """``-f``, up to a constant: the negative shortfall with the confidence, at most 0."""
        return -(goal.shortfall(outputs, rows) + self.confidence).clamp(min=0.0)

    def allocate(self, like: Tensor) -> CarliniWagnerLinfState:
        """A state of ``len(like)`` idle slots in the layout of ``like``."""
        return CarliniWagnerLinfState.allocate(like)

    def start(self, state: CarliniWagnerLinfState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; nothing is drawn."""
        state.begin(slots, images)
        state.space.begin(slots, as_rows(state.origin)[slots])
        state.best[slots] = state.space.origin[slots]
        state.moments.reset(slots)
        state.constant[slots] = self.initial_constant or 0.0
        state.bound[slots] = self.budget.eps
        state.rate[slots] = self.learning_rate or 0.0

    def tick(self, state: CarliniWagnerLinfState, evaluation: Evaluation) -> None:
        """One Adam step; where the bound is reached, a smaller one; where a run is over, a larger constant."""
        state.ticks.add_(state.active)
        shortfall = torch.nan_to_num(-evaluation.loss)  # f, where it is not at its floor
        gradient = state.finite_gradient(evaluation.gradient, state.active & (evaluation.loss != 0))
        self._scale(state, shortfall, gradient)
        torch.sub(as_rows(state.trial), as_rows(state.origin), out=state.delta)
        self._shrink(state, evaluation.achieved)
        excess = self._excess(state)
        over = self._over(state, state.constant * shortfall + row_norm(excess, 1.0))
        gradient.mul_(column(-state.constant)).add_(excess.sign_())
        state.space.descend(state.moments.step(state.space.to_w(gradient), state.count), state.rate)
        self._next_run(state, over)
        self._write_trial(state)

    def _scale(self, state: CarliniWagnerLinfState, shortfall: Tensor, gradient: Tensor) -> None:
        """Choose the first constant and the rate by the first evaluation of an image."""
        first = state.active & (state.ticks == 1)
        steepness = row_norm(gradient, 1.0).clamp(min=1e-12)
        if self.initial_constant is None:
            constant = (gradient.shape[1] / steepness).clamp(1e-12, _LARGEST)
            state.constant.copy_(torch.where(first, constant, state.constant))
        if self.learning_rate is None:
            rate = rate_of(_FIRST_STRIDE * shortfall / steepness).clamp(1e-5, 0.1)
            state.rate.copy_(torch.where(first, rate, state.rate))

    def _shrink(self, state: CarliniWagnerLinfState, achieved: Tensor) -> None:
        """Where the goal is reached near enough to the bound, keep the point and take a smaller bound."""
        change = torch.maximum(state.delta.amax(1), -state.delta.amin(1))
        reached = state.active & achieved & (change <= (state.smallest + state.bound) / 2)
        put_where(state.best, reached, state.space.point)
        state.smallest.copy_(torch.where(reached, change, state.smallest))
        change = torch.minimum(state.bound, change)
        bound = torch.maximum(_SHRINK * change, (state.low + change) / 2)
        state.bound.copy_(torch.where(reached, bound, state.bound))
        if self.learning_rate is None:
            state.rate.copy_(torch.where(reached, rate_of(_STRIDE * bound).clamp(1e-5, 0.1), state.rate))
        state.count.masked_fill_(reached, 0)
        state.raises.masked_fill_(reached, 0)
        state.reference.masked_fill_(reached, torch.inf)

    @staticmethod
    def _excess(state: CarliniWagnerLinfState) -> Tensor:
        """By how much each change exceeds the bound, with its sign; written over the changes."""
        bound = column(state.bound)
        torch.clamp(state.delta, -bound, bound, out=state.inside)
        return state.delta.sub_(state.inside)

    def _over(self, state: CarliniWagnerLinfState, loss: Tensor) -> Tensor:
        """Whether the inner run ends with this evaluation."""
        over = state.count >= self.inner_steps - 1
        if self.abort_early:
            look = state.count % max(_APART, self.inner_steps // _CHECKS) == 0
            over |= look & (loss > _PROGRESS * state.reference)
            state.reference.copy_(torch.where(look, loss, state.reference))
        state.count.add_(1)
        return over & state.active

    def _next_run(self, state: CarliniWagnerLinfState, over: Tensor) -> None:
        """More of the constant; where it was raised often enough, a bound between this one and the best."""
        state.raises.add_(over)
        given_up = over & (state.raises >= self.search_steps)
        grown = state.constant * torch.where(given_up, _GROWTH ** (1 - self.search_steps), _GROWTH)
        state.constant.copy_(torch.where(over, grown, state.constant).clamp(max=_LARGEST))
        state.low.copy_(torch.where(given_up, state.bound, state.low))
        state.bound.copy_(torch.where(given_up, (state.bound + state.smallest) / 2, state.bound))
        state.space.place(over, state.best)
        state.count.masked_fill_(over, 0)
        state.reference.masked_fill_(over, torch.inf)
        state.raises.masked_fill_(given_up, 0)

    def _write_trial(self, state: CarliniWagnerLinfState) -> None:
        close = state.smallest <= state.low * (1 + self.tolerance)
        hopeless = ~torch.isfinite(state.bound)  # the whole range was given up
        done = state.active & (close | hopeless | (state.bound < _SMALLEST) | (state.smallest == 0))
        state.space.place(done & torch.isfinite(state.smallest), state.best)
        put_where(as_rows(state.trial), state.active, state.space.pixels(state.work))
        state.active.logical_and_(~done)
