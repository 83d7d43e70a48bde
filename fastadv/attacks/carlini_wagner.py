"""Carlini and Wagner's L2 attack: Adam in tanh space, with the search for the constant inside each slot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv.attacks.adam import Moments
from fastadv.attacks.attack import Evaluation
from fastadv.attacks.bracket import Bracket
from fastadv.attacks.budget import Box
from fastadv.attacks.fields import check_count, check_number, check_open
from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.per_image import as_rows, column, put_where, row_norm
from fastadv.attacks.state import RowState, boolean, integer, number, part, row
from fastadv.attacks.tanh_space import TanhSpace, rate_of

# By 8 LFW faces in a network of 158 identities, one run of 50 steps: once the linear constant lost a quarter of the
# images and four times gave 24 % more L2; a third of the stride gave 7 % more and five thirds 1 %.
_CONSTANT = 2.0  # times the constant that would do if the network were linear
_STRIDE = 0.3  # first step, as a part of the distance to the border of the linear network
_GROWTH = 10.0  # of a constant that failed, as in C&W's code
_LARGEST = 1e12  # a constant: its square, times a gradient's, is still a float32
_CHECKS = 10  # looks at the progress in an inner run
_APART = 10  # evaluations between two looks, at least: Adam's first steps go up and down
_PROGRESS = 0.9999


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerState(RowState):
    """The slots of a ``CarliniWagner`` attack.

    Attributes:
        space: Where the trial is in tanh space.
        moments: Adam's.
        constant: c and its bracket.
        rate: ``(N,)``, Adam's step in tanh space.
        count: ``(N,)`` int64, evaluations of the inner run so far.
        searches: ``(N,)`` int64, inner runs that are over.
        found: ``(N,)`` bool, whether this inner run has reached the goal.
        reference: ``(N,)``, the loss at the last look at the progress.
        best: ``(N, D)``, the nearest image that reached the goal.
        shortest: ``(N,)``, its distance; inf before there is one.
    """

    space: TanhSpace = part(TanhSpace.allocate)
    moments: Moments = part(Moments.allocate)
    constant: Bracket = part(Bracket.allocate)
    rate: Tensor = number()
    count: Tensor = integer()
    searches: Tensor = integer()
    found: Tensor = boolean()
    reference: Tensor = number(torch.inf)
    best: Tensor = row()
    shortest: Tensor = number(torch.inf)
    delta: Tensor = row()


@dataclass(frozen=True, kw_only=True)
class CarliniWagner:
    """Minimise ``||x' - x||_2^2 + c f(x')``, ``f = max(shortfall, -confidence)``, over ``x' = 1/2 + h tanh(w)``.

    On logits the shortfall is ``Z_y - max_{i != y} Z_i`` or its negative, which an offset to all logits does not
    change; on embeddings and pairs it is how far the score is from the threshold. An inner run is Adam from the clean
    image. If it reached the goal anywhere, c goes to the middle of its bracket, else it is multiplied by 10 until it
    does; after ``search_steps`` runs the nearest image that reached the goal is the result, and where there is none,
    the last. An inner run ends early when its loss has not fallen in a tenth of its steps (10 at least): each image by
    its own loss.

    **choice** C&W's first constant and learning rate suit logits of one scale and pixels that change by several grey
    levels. Here both come from the shortfall f and the gradient g at the clean image: ``c = 2 * 2 f / ||g||^2``, twice
    the constant at which a linear network would be passed, and a first step of 0.3 ``f / ||g||`` in L2. So the attack
    takes logits, cosines and probabilities alike.

    Attributes:
        search_steps: Inner runs.
        inner_steps: Most evaluations of an inner run.
        learning_rate: Adam's step in tanh space, or None: see above.
        initial_constant: The first c, or None: see above.
        confidence: kappa, in the unit of the goal's score: how far beyond the border the goal must be reached.
        abort_early: End an inner run that makes no progress.
        name: What reports call it.

    Raises:
        ValueError: A field is out of range.

    Source: Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", section VI-A; 5 runs of
    1000 steps as in Massoli et al., section 5.
    """

    smallest: ClassVar[bool] = True
    search_steps: int = 5
    inner_steps: int = 1000
    learning_rate: float | None = None
    initial_constant: float | None = None
    confidence: float = 0.0
    abort_early: bool = True
    name: str = "cw-l2"

    def __post_init__(self) -> None:
        check_count("search_steps", self.search_steps)
        check_count("inner_steps", self.inner_steps)
        check_open("learning_rate", self.learning_rate)
        check_open("initial_constant", self.initial_constant)
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
        """The most evaluations of an image."""
        return self.search_steps * self.inner_steps

    @property
    def needs_gradient(self) -> bool:
        """Always."""
        return True

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """``-f``, up to a constant: the negative shortfall with the confidence, at most 0."""
        return -(goal.shortfall(outputs, rows) + self.confidence).clamp(min=0.0)

    def allocate(self, like: Tensor) -> CarliniWagnerState:
        """A state of ``len(like)`` idle slots in the layout of ``like``."""
        return CarliniWagnerState.allocate(like)

    def start(self, state: CarliniWagnerState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; nothing is drawn."""
        state.begin(slots, images)
        state.space.begin(slots, as_rows(state.origin)[slots])
        state.moments.reset(slots)
        state.constant.begin(slots, self.initial_constant or 0.0)
        state.rate[slots] = self.learning_rate or 0.0

    def tick(self, state: CarliniWagnerState, evaluation: Evaluation) -> None:
        """One Adam step; where an inner run is over, the next constant; where all are, the best image."""
        state.ticks.add_(state.active)
        shortfall = torch.nan_to_num(-evaluation.loss)  # f, where it is not at its floor
        gradient = state.finite_gradient(evaluation.gradient, state.active & (evaluation.loss != 0))
        self._scale(state, shortfall, gradient)
        torch.sub(as_rows(state.trial), as_rows(state.origin), out=state.delta)
        length = row_norm(state.delta)
        self._remember(state, evaluation.achieved, length)
        over = self._over(state, length.square() + state.constant.value * shortfall)
        # half the gradient of the loss: Adam does not see the factor
        gradient.mul_(column(state.constant.value * -0.5)).add_(state.delta)
        state.space.descend(state.moments.step(state.space.to_w(gradient), state.count), state.rate)
        self._next_run(state, over)
        self._write_trial(state)

    def _scale(self, state: CarliniWagnerState, shortfall: Tensor, gradient: Tensor) -> None:
        """Choose the first constant and the rate by the first evaluation of an image."""
        if self.initial_constant is not None and self.learning_rate is not None:
            return
        first = state.active & (state.ticks == 1)
        steepness = row_norm(gradient).clamp(min=1e-12)
        distance = shortfall / steepness
        if self.initial_constant is None:
            constant = (_CONSTANT * 2 * distance / steepness).clamp(1e-12, _LARGEST)
            state.constant.value.copy_(torch.where(first, constant, state.constant.value))
        if self.learning_rate is None:
            rate = rate_of(_STRIDE * distance / math.sqrt(gradient.shape[1])).clamp(1e-5, 0.1)
            state.rate.copy_(torch.where(first, rate, state.rate))

    @staticmethod
    def _remember(state: CarliniWagnerState, achieved: Tensor, length: Tensor) -> None:
        reached = state.active & achieved
        shorter = reached & (length < state.shortest)
        put_where(state.best, shorter, as_rows(state.trial))
        state.shortest.copy_(torch.where(shorter, length, state.shortest))
        state.found.logical_or_(reached)

    def _over(self, state: CarliniWagnerState, loss: Tensor) -> Tensor:
        """Whether the inner run ends with this evaluation."""
        over = state.count >= self.inner_steps - 1
        if self.abort_early:
            look = state.count % max(_APART, self.inner_steps // _CHECKS) == 0
            over |= look & (loss > _PROGRESS * state.reference)
            state.reference.copy_(torch.where(look, loss, state.reference))
        state.count.add_(1)
        return over & state.active

    @staticmethod
    def _next_run(state: CarliniWagnerState, over: Tensor) -> None:
        state.constant.narrow(over, state.found, growth=_GROWTH)
        state.constant.value.clamp_(max=_LARGEST)
        state.space.place(over, state.space.origin)
        state.found.logical_and_(~over)
        state.count.masked_fill_(over, 0)
        state.reference.masked_fill_(over, torch.inf)
        state.searches.add_(over)

    def _write_trial(self, state: CarliniWagnerState) -> None:
        # an image that had reached the goal before has nothing to look for
        done = state.active & ((state.searches >= self.search_steps) | (state.shortest == 0))
        rows = as_rows(state.trial)
        put_where(rows, state.active & ~done, state.space.pixels(state.work))
        put_where(rows, done & torch.isfinite(state.shortest), state.best)
        state.active.logical_and_(~done)
