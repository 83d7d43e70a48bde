"""The L-BFGS attack of Szegedy et al.: the smallest perturbation by a penalty whose weight is searched in the slot."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.attacks.attack import Evaluation
from fastadv.attacks.bracket import Bracket
from fastadv.attacks.budget import Box, Budget
from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.lbfgs_search import BoxAttack, SearchState
from fastadv.attacks.per_image import as_rows, column, put_where, row_norm
from fastadv.attacks.state import NearestState, boolean, integer, part
from fastadv.core.fields import check_count, check_number, check_open

_GROWTH = 10.0  # of a weight that failed: the coarse search
_WEIGHTS = (1e-9, 1e9)  # of the first weight: a gradient of zero must not make it infinite


@dataclass(frozen=True, kw_only=True)
class LBFGSState(SearchState, NearestState):
    """The slots of an ``LBFGS`` attack.

    Attributes:
        weight: C and its bracket.
        searches: ``(N,)`` int64, inner minimisations that are over.
        reached: ``(N,)`` bool, whether the accepted point reaches the goal.
    """

    weight: Bracket = part(Bracket.allocate)
    searches: Tensor = integer()
    reached: Tensor = boolean()


@dataclass(frozen=True, kw_only=True)
class LBFGS(BoxAttack[LBFGSState]):
    """Minimise ``||r||_2^2 + C L(x + r)`` in the box by L-BFGS-B, with the smallest C that reaches the goal.

    C is multiplied by 10 until the minimiser reaches the goal, and then bisected; each minimisation goes on from the
    point and the memory of the last one. The result is the nearest of all evaluated images that reached the goal, and
    where there is none, the last point.

    With a target class L is the cross-entropy to it. With ``Misclassify`` it is ``log(1 + e^f)``, f the margin of the
    true class over the best other one: the cross-entropy to "any other class" (that to the true class, negated, is
    flat at the start and without a bound beyond the border). With other goals it is the negative of their loss.

    **choice**: the papers print ``c ||r||`` and ``||r|| + C L``. The square is smooth at r = 0, where the search
    begins, and since the weight is searched, both have the same minimisers. The first C is that at which a linear
    network would be passed, ``4 L / ||grad L||^2`` at the clean image, so that logits of any scale do.

    Attributes:
        searches: Minimisations, each with its own C.
        steps_each: The most iterations of each.
        budget: ``Box()``, or ``Linf(eps)`` to bound what each pixel may change.
        initial_weight: The first C, or None: see above.
        history: m, pairs remembered for an image; memory is 2 (m + 1) images for a slot.
        first_step: Length of the very first step, as the root mean square over the free pixels, in pixels of [0, 1].
        tolerance: A minimisation ends where a step gains no more than this share of the objective.
        margin: In the unit of the goal's score: how far beyond the border the goal must be reached.
        name: What reports call it.

    Raises:
        ValueError: A field is out of range, or the budget is no box.

    Source: Szegedy et al. 2014, "Intriguing properties of neural networks", section 4.1; Massoli et al., eq. 1;
        Carrara et al. 2017, eq. 1 (coarse search and bisection of C).
    """

    slots = LBFGSState
    searches: int = 10
    steps_each: int = 15
    budget: Budget = field(default_factory=Box)
    initial_weight: float | None = None
    first_step: float = 1 / 255
    tolerance: float = 1e-2
    name: str = "l-bfgs"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("searches", self.searches)
        check_count("steps_each", self.steps_each)
        check_open("initial_weight", self.initial_weight)
        check_number("first_step", self.first_step, positive=True)

    @property
    def steps(self) -> int:
        """The most iterations of all minimisations."""
        return self.searches * self.steps_each

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """``-L``; the distance is the attack's own."""
        if goal.avoids_label:
            return -F.softplus(goal.shortfall(outputs, rows))
        return goal.loss(outputs, rows)

    def start(self, state: LBFGSState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots."""
        super().start(state, slots, images, ids=ids, seed=seed)
        state.weight.begin(slots, self.initial_weight or 0.0)

    def tick(self, state: LBFGSState, evaluation: Evaluation) -> None:
        """One evaluation of every minimisation; those that end hand over to the next C."""
        search, trial = state.search, as_rows(state.trial)
        state.ticks.add_(state.active)
        gradient = state.finite_gradient(evaluation.gradient)
        if self.initial_weight is None:
            linear = 4 * evaluation.loss.abs() / row_norm(gradient).square()
            first = torch.nan_to_num(linear, nan=1.0).clamp(*_WEIGHTS)
            state.weight.value.copy_(torch.where(state.ticks == 1, first, state.weight.value))
        delta = torch.sub(trial, as_rows(state.origin), out=search.work)
        length = row_norm(delta)
        state.keep_nearest(state.active & evaluation.achieved, length)
        weight = state.weight.value
        gradient.mul_(column(weight)).sub_(delta, alpha=2.0)
        accepted, over = search.advance(
            trial,
            weight * evaluation.loss - length.square(),
            gradient,
            radius=self.first_step,
            tolerance=self.tolerance,
        )
        state.reached.copy_(torch.where(accepted, evaluation.achieved, state.reached))
        over |= search.steps >= self.steps_each
        state.weight.narrow(over, state.reached, growth=_GROWTH)
        state.searches.add_(over)
        search.resume(over)
        put_where(trial, state.active, search.work)
        done = state.active & (state.searches >= self.searches)
        put_where(trial, done & state.has_best, state.best)
        state.active.logical_and_(~done)
