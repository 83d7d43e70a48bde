"""Carlini and Wagner's L-infinity attack: a penalty on what exceeds a bound that shrinks inside each slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv.attacks.attack import Evaluation
from fastadv.attacks.penalty import LARGEST, RaisedPenalty, RaisedState
from fastadv.attacks.per_image import column, put_where, row_norm
from fastadv.attacks.state import number, row
from fastadv.attacks.tanh_space import rate_of
from fastadv.core.fields import check_number

_SHRINK = 0.9
_SMALLEST = 1 / 256  # C&W's last bound: below it no 8-bit image changes
_FIRST_STRIDE = 0.1  # first step, as a part of the distance to the border of the linear network
_STRIDE = 0.05  # the later ones, as a part of the bound


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerLinfState(RaisedState):
    """The slots of a ``CarliniWagnerLinf`` attack.

    Attributes:
        bound: ``(N,)``, tau.
        low: ``(N,)``, the largest bound that was given up, or 0.
        rate: ``(N,)``, Adam's step in tanh space.
        nearest: ``(N,)``, the largest change of the result so far; inf before there is one.
        inside: ``(N, D)`` for passing values.
    """

    bound: Tensor = number()
    low: Tensor = number()
    rate: Tensor = number()
    nearest: Tensor = number(torch.inf)
    inside: Tensor = row()


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerLinf(RaisedPenalty[CarliniWagnerLinfState]):
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
        learning_rate: Adam's step in tanh space, or None: see above.
        initial_constant: The first c, or None: see above.
        tolerance: How much larger than a bound that was given up the result may be, as a part of it.
        name: What reports call it; the other fields are those of ``PenaltyAttack``.

    Raises:
        ValueError: A field is out of range.

    Source: Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", section VI-C; Massoli et
    al., eq. 7.
    """

    slots = CarliniWagnerLinfState
    growth: ClassVar[float] = 2.0
    tolerance: float = 0.05
    name: str = "cw-linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tolerance", self.tolerance, positive=True)

    def start(self, state: CarliniWagnerLinfState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; nothing is drawn."""
        super().start(state, slots, images, ids=ids, seed=seed)
        state.bound[slots] = self.budget.eps
        state.rate[slots] = self.learning_rate or 0.0

    def tick(self, state: CarliniWagnerLinfState, evaluation: Evaluation) -> None:
        """One Adam step; where the bound is reached, a smaller one; where a run is over, a larger constant."""
        shortfall, gradient = self.take_in(state, evaluation, evaluation.loss != 0)
        self._shrink(state, evaluation.achieved)
        excess = self._excess(state)
        over = self.over(state, state.constant * shortfall + row_norm(excess, 1.0))
        gradient.mul_(column(-state.constant)).add_(excess.sign_())
        state.space.descend(state.moments.step(state.space.to_w(gradient), state.count), state.rate)
        self._next_run(state, over)
        self._write_trial(state)

    def scale(self, state: CarliniWagnerLinfState, shortfall: Tensor, gradient: Tensor) -> None:
        """Choose the first constant and the rate by the first evaluation of an image."""
        steepness = row_norm(gradient, 1.0).clamp(min=1e-12)
        if self.initial_constant is None:
            state.first(state.constant, (gradient.shape[1] / steepness).clamp(1e-12, LARGEST))
        if self.learning_rate is None:
            state.first(state.rate, rate_of(_FIRST_STRIDE * shortfall / steepness).clamp(1e-5, 0.1))

    def _shrink(self, state: CarliniWagnerLinfState, achieved: Tensor) -> None:
        """Where the goal is reached near enough to the bound, keep the point and take a smaller bound."""
        change = torch.maximum(state.delta.amax(1), -state.delta.amin(1))
        reached = state.active & achieved & (change <= (state.nearest + state.bound) / 2)
        put_where(state.best, reached, state.space.point)
        state.nearest.copy_(torch.where(reached, change, state.nearest))
        change = torch.minimum(state.bound, change)
        bound = torch.maximum(_SHRINK * change, (state.low + change) / 2)
        state.bound.copy_(torch.where(reached, bound, state.bound))
        if self.learning_rate is None:
            state.rate.copy_(torch.where(reached, rate_of(_STRIDE * bound).clamp(1e-5, 0.1), state.rate))
        self.begin_bound(state, reached)

    @staticmethod
    def _excess(state: CarliniWagnerLinfState) -> Tensor:
        """By how much each change exceeds the bound, with its sign; written over the changes."""
        bound = column(state.bound)
        torch.clamp(state.delta, -bound, bound, out=state.inside)
        return state.delta.sub_(state.inside)

    def _next_run(self, state: CarliniWagnerLinfState, over: Tensor) -> None:
        """More of the constant; where it was raised often enough, a bound between this one and the best."""
        given_up = self.next_constant(state, over)
        state.low.copy_(torch.where(given_up, state.bound, state.low))
        state.bound.copy_(torch.where(given_up, (state.bound + state.nearest) / 2, state.bound))
        state.space.place(over, state.best)

    def _write_trial(self, state: CarliniWagnerLinfState) -> None:
        close = state.nearest <= state.low * (1 + self.tolerance)
        hopeless = ~torch.isfinite(state.bound)  # the whole range was given up
        done = state.active & (close | hopeless | (state.bound < _SMALLEST) | (state.nearest == 0))
        self.write_trial(state, done, torch.isfinite(state.nearest))
