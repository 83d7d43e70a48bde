"""Carlini and Wagner's L2 attack: Adam in tanh space, with the search for the constant inside each slot."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fastadv.attacks.attack import Evaluation
from fastadv.attacks.bracket import Bracket
from fastadv.attacks.penalty import LARGEST, PenaltyAttack, PenaltyState
from fastadv.attacks.per_image import as_rows, column, put_where, row_norm
from fastadv.attacks.state import NearestState, boolean, integer, number, part
from fastadv.attacks.tanh_space import rate_of

# By 8 LFW faces in a network of 158 identities, one run of 50 steps: once the linear constant lost a quarter of the
# images and four times gave 24 % more L2; a third of the stride gave 7 % more and five thirds 1 %.
_CONSTANT = 2.0  # times the constant that would do if the network were linear
_STRIDE = 0.3  # first step, as a part of the distance to the border of the linear network
_GROWTH = 10.0  # of a constant that failed, as in C&W's code


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerState(PenaltyState, NearestState):
    """The slots of a ``CarliniWagner`` attack; ``best`` is the nearest image that reached the goal.

    Attributes:
        constant: c and its bracket.
        rate: ``(N,)``, Adam's step in tanh space.
        searches: ``(N,)`` int64, inner runs that are over.
        found: ``(N,)`` bool, whether this inner run has reached the goal.
    """

    constant: Bracket = part(Bracket.allocate)
    rate: Tensor = number()
    searches: Tensor = integer()
    found: Tensor = boolean()


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(PenaltyAttack[CarliniWagnerState]):
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
    1000 steps as in Massoli et al., section 5.2.
    """

    slots = CarliniWagnerState
    name: str = "cw-l2"

    def start(self, state: CarliniWagnerState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; nothing is drawn."""
        super().start(state, slots, images, ids=ids, seed=seed)
        state.constant.begin(slots, self.initial_constant or 0.0)
        state.rate[slots] = self.learning_rate or 0.0

    def tick(self, state: CarliniWagnerState, evaluation: Evaluation) -> None:
        """One Adam step; where an inner run is over, the next constant; where all are, the best image."""
        shortfall, gradient = self.take_in(state, evaluation, evaluation.loss != 0)
        length = row_norm(state.delta)
        reached = state.active & evaluation.achieved
        state.keep_nearest(reached, length)
        state.found.logical_or_(reached)
        over = self.over(state, length.square() + state.constant.value * shortfall)
        # half the gradient of the loss: Adam does not see the factor
        gradient.mul_(column(state.constant.value * -0.5)).add_(state.delta)
        state.space.descend(state.moments.step(state.space.to_w(gradient), state.count), state.rate)
        self._next_run(state, over)
        self._write_trial(state)

    def scale(self, state: CarliniWagnerState, shortfall: Tensor, gradient: Tensor) -> None:
        """Choose the first constant and the rate by the first evaluation of an image."""
        if self.initial_constant is not None and self.learning_rate is not None:
            return
        steepness = row_norm(gradient).clamp(min=1e-12)
        distance = shortfall / steepness
        if self.initial_constant is None:
            state.first(state.constant.value, (_CONSTANT * 2 * distance / steepness).clamp(1e-12, LARGEST))
        if self.learning_rate is None:
            rate = rate_of(_STRIDE * distance / math.sqrt(gradient.shape[1])).clamp(1e-5, 0.1)
            state.first(state.rate, rate)

    @staticmethod
    def _next_run(state: CarliniWagnerState, over: Tensor) -> None:
        state.constant.narrow(over, state.found, growth=_GROWTH)
        state.constant.value.clamp_(max=LARGEST)
        state.space.place(over, state.space.origin)
        state.found.logical_and_(~over)
        state.begin_run(over)
        state.searches.add_(over)

    def _write_trial(self, state: CarliniWagnerState) -> None:
        # an image that had reached the goal before has nothing to look for
        done = state.active & ((state.searches >= self.search_steps) | (state.distance == 0))
        rows = as_rows(state.trial)
        put_where(rows, state.active & ~done, state.space.pixels(state.work))
        put_where(rows, done & state.has_best, state.best)
        state.active.logical_and_(~done)
