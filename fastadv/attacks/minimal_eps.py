"""The smallest eps at which a sign-gradient attack succeeds: a bisection inside each slot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks.attack import Evaluation
from fastadv.attacks.bracket import SizedState, SmallestSize, most_tries
from fastadv.attacks.budget import Box
from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.per_image import as_rows, column, put_where
from fastadv.attacks.recipe import Recipe
from fastadv.attacks.sign_gradient import SignGradient, SignGradientState
from fastadv.attacks.state import integer, row
from fastadv.core.errors import ArgumentTypeError


@dataclass(frozen=True, kw_only=True)
class MinimalEpsState(SizedState, SignGradientState):
    """The slots of a ``MinimalEps`` search.

    Attributes:
        offset: ``(N, D)``, the random start's distance from the origin at the attack's own radius, or None.
        count: ``(N,)`` int64, steps of the run at this radius.
        best: ``(N, D)``, the image that reached the goal at the smallest radius.
    """

    offset: Tensor | None = row()
    count: Tensor = integer(None)
    best: Tensor = row()
    work: Tensor = row()


@dataclass(frozen=True, kw_only=True)
class MinimalEps(SmallestSize[MinimalEpsState]):
    """Runs of one attack at one radius after the other: the smallest radius at which the attack reaches its goal.

    The radius grows by a factor until a run succeeds, then ``bisections`` halve the interval; the step size keeps its
    ratio to the radius. A run ends at its first success. An image's radii are its own: slots at different radii share
    a batch. Where the largest radius does not do, the last iterate is the result.

    Attributes:
        attack: FGSM, BIM, PGD, MI-FGSM, FIM and their like, in L-infinity or L2: any ``SignGradient``.
        first: The first radius, in the unit of the attack's budget.
        largest: The largest radius.
        growth: The factor, above 1.
        bisections: After the first success.
        name: What reports call it; "minimal-" and the attack's name where it is empty.

    Raises:
        TypeError: The attack is no ``SignGradient``.
        ValueError: A field is out of range.

    Source: Yang et al. 2020, "RobFR: benchmarking adversarial robustness on face recognition", section 4.1, which
    reports the distribution of such radii.
    """

    slots = MinimalEpsState
    attack: SignGradient
    largest: float
    growth: float = 2.0
    bisections: int = 6
    name: str = ""

    def __post_init__(self) -> None:
        given: object = self.attack
        if not isinstance(given, SignGradient):
            hint = "; use recipe.attack" if isinstance(given, Recipe) else ""
            raise ArgumentTypeError(f"attack: expected a SignGradient, got {type(given).__name__}{hint}")
        super().__post_init__()
        if not self.name:
            object.__setattr__(self, "name", f"minimal-{self.attack.name}")

    @property
    def budget(self) -> Box:  # type: ignore[override]
        """The pixel range: the radius is what is looked for."""
        return Box(lo=self.attack.budget.lo, hi=self.attack.budget.hi)

    @property
    def margin(self) -> float:
        """The attack's."""
        return self.attack.margin

    @property
    def steps(self) -> int:
        """The most evaluations of an image."""
        return (self.attack.steps + 1) * most_tries(self.first, self.growth, self.bisections, self.largest)

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """The attack's."""
        return self.attack.objective(goal, outputs, rows, query)

    def allocate(self, like: Tensor) -> MinimalEpsState:
        """A state of ``len(like)`` idle slots in the layout of ``like``."""
        own = {} if self.attack.random_start else {"offset": None}
        return MinimalEpsState.allocate(like, **vars(self.attack.allocate(like)), **own)

    def start(self, state: MinimalEpsState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; a random start is drawn for (seed, id), once for all radii."""
        super().start(state, slots, images, ids=ids, seed=seed)
        if state.offset is not None:
            state.trial[slots] = self.attack.budget.random_start(images, seed=seed, ids=ids)
            state.offset[slots] = as_rows(state.trial)[slots] - as_rows(state.origin)[slots]
        new = torch.zeros_like(state.active)
        new[slots] = True
        self._restart(state, new)

    def tick(self, state: MinimalEpsState, evaluation: Evaluation) -> None:
        """One step of the run at each slot's radius; where the run is over, the next radius."""
        state.ticks.add_(state.active)
        reached = state.active & evaluation.achieved
        put_where(state.best, reached, as_rows(state.trial))
        ended = reached | (state.active & (state.count >= self.attack.steps))
        # no step is taken at the end of a run, so nothing counts its gradient: an image that no gradient has moved so
        # far is where it was one evaluation before
        still = state.stats[:, 1] == (state.ticks - 1) * state.work.shape[1]
        state.stats[:, 1].add_((ended & ~reached & still) * state.work.shape[1])
        attack, eps = self.attack, state.size.bracket.value
        alpha = eps * (attack.step_size / attack.budget.eps)
        attack.move(state, evaluation.gradient, state.active & ~ended, alpha=alpha, eps=eps)
        state.count.add_(1)
        over = self.next_size(state, ended, reached)
        self._restart(state, ended & ~over)
        put_where(as_rows(state.trial), over & torch.isfinite(state.size.bracket.high), state.best)
        state.active.logical_and_(~over)

    def _restart(self, state: MinimalEpsState, mask: Tensor) -> None:
        """Begin a run at the new radius where the mask says."""
        start = as_rows(state.origin)
        if state.offset is not None:
            ratio = column(state.size.bracket.value / self.attack.budget.eps)
            start = torch.addcmul(start, state.offset, ratio, out=state.work).clamp_(self.budget.lo, self.budget.hi)
        put_where(as_rows(state.trial), mask, start)
        if state.velocity is not None:
            as_rows(state.velocity).mul_(column(~mask))
        state.count.masked_fill_(mask, 0)
