"""Carlini and Wagner's L0 attack: L2 attacks on a set of pixels that shrinks inside each slot."""

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
from fastadv.attacks.state import RowState, boolean, image, integer, number, part, row
from fastadv.attacks.tanh_space import TanhSpace

_CONSTANT = 2.0  # times the constant that would do if the network were linear
_GROWTH = 10.0
_LARGEST = 1e12  # a constant: its square, times a gradient's, is still a float32
_SHARE = 0.5  # pixels below this part of the mean score are fixed; a quarter of it after each step back
_LESS = 0.25
_CHECKS = 10
_APART = 10  # evaluations between two looks, at least: Adam's first steps go up and down
_PROGRESS = 0.9999


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL0State(RowState):
    """The slots of a ``CarliniWagnerL0`` attack.

    Attributes:
        space: Where the trial is in tanh space.
        moments: Adam's.
        free: ``(N, 3, H, W)`` bool in the layout of the trial, the pixels that may change.
        constant: ``(N,)``, c.
        share: ``(N,)``, see ``_SHARE``.
        count: ``(N,)`` int64, evaluations of the inner run so far.
        raises: ``(N,)`` int64, how often c was raised on this set.
        backs: ``(N,)`` int64, how often a set was given up.
        reference: ``(N,)``, the loss at the last look at the progress.
        best: ``(N, D)``, the point of tanh space of the result so far.
        best_free: Like ``free``, the set of the result so far.
        spent: Like the trial: how much the goal owes to each pixel.
        found: ``(N,)`` bool, whether there is a result.
    """

    space: TanhSpace = part(TanhSpace.allocate)
    moments: Moments = part(Moments.allocate)
    free: Tensor = image(True, dtype=torch.bool)
    constant: Tensor = number()
    share: Tensor = number(_SHARE)
    count: Tensor = integer()
    raises: Tensor = integer()
    backs: Tensor = integer()
    reference: Tensor = number(torch.inf)
    best: Tensor = row()
    best_free: Tensor = image(True, dtype=torch.bool)
    spent: Tensor = image()
    found: Tensor = boolean()
    delta: Tensor = row()


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL0:
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
        inner_steps: Most evaluations of an inner run.
        learning_rate: Adam's step in tanh space. Few pixels have far to go: it is larger than that of L2.
        initial_constant: The first c, or None: see above.
        retries: Steps back.
        confidence: kappa, in the unit of the goal's score: how far beyond the border the goal must be reached.
        abort_early: End an inner run that makes no progress in a tenth of its steps, or in 10.
        name: What reports call it.

    Raises:
        ValueError: A field is out of range.

    Source: Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", section VI-B; Massoli et
    al., section 3.5.
    """

    smallest: ClassVar[bool] = True
    search_steps: int = 5
    inner_steps: int = 1000
    learning_rate: float = 0.05
    initial_constant: float | None = None
    retries: int = 3
    confidence: float = 0.0
    abort_early: bool = True
    name: str = "cw-l0"

    def __post_init__(self) -> None:
        check_count("search_steps", self.search_steps)
        check_count("inner_steps", self.inner_steps)
        check_number("learning_rate", self.learning_rate, positive=True)
        check_open("initial_constant", self.initial_constant)
        check_count("retries", self.retries, least=0)
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
        """The evaluations of an image on one set, at most."""
        return self.search_steps * self.inner_steps

    @property
    def needs_gradient(self) -> bool:
        """Always."""
        return True

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """The negative shortfall with the confidence; f's floor is the attack's, which needs the gradient below it."""
        return -(goal.shortfall(outputs, rows) + self.confidence)

    def allocate(self, like: Tensor) -> CarliniWagnerL0State:
        """A state of ``len(like)`` idle slots in the layout of ``like``."""
        return CarliniWagnerL0State.allocate(like)

    def start(self, state: CarliniWagnerL0State, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; nothing is drawn."""
        state.begin(slots, images)
        state.space.begin(slots, as_rows(state.origin)[slots])
        state.best[slots] = state.space.origin[slots]
        state.moments.reset(slots)
        state.constant[slots] = self.initial_constant or 0.0

    def tick(self, state: CarliniWagnerL0State, evaluation: Evaluation) -> None:
        """One Adam step on the free pixels; where the goal is reached, a smaller set; where a run is over, more c."""
        state.ticks.add_(state.active)
        gradient = state.finite_gradient(evaluation.gradient)
        shortfall = torch.nan_to_num(-evaluation.loss)
        self._scale(state, shortfall, gradient)
        torch.sub(as_rows(state.trial), as_rows(state.origin), out=state.delta)
        reached = state.active & evaluation.achieved
        exhausted = self._shrink(state, reached, gradient)
        loss = row_norm(state.delta).square() + state.constant * shortfall.clamp(min=0.0)
        over = self._over(state, loss) & ~reached
        # half the gradient of the loss: Adam does not see the factor
        pull = torch.where(shortfall > 0, state.constant * -0.5, 0.0)
        gradient.mul_(column(pull)).add_(state.delta).mul_(as_rows(state.free))
        rate = torch.full_like(state.constant, self.learning_rate)
        state.space.descend(state.moments.step(state.space.to_w(gradient), state.count), rate)
        self._next_run(state, over)
        # what is fixed is at its clean value, whether it was fixed now or freed by a step back
        torch.where(as_rows(state.free), state.space.point, state.space.origin, out=state.space.point)
        self._write_trial(state, exhausted)

    def _scale(self, state: CarliniWagnerL0State, shortfall: Tensor, gradient: Tensor) -> None:
        """Choose the first constant by the first evaluation of an image."""
        if self.initial_constant is None:
            first = state.active & (state.ticks == 1)
            constant = (_CONSTANT * 2 * shortfall / row_norm(gradient).clamp(min=1e-12).square()).clamp(1e-12, _LARGEST)
            state.constant.copy_(torch.where(first, constant, state.constant))

    @staticmethod
    def _shrink(state: CarliniWagnerL0State, reached: Tensor, gradient: Tensor) -> Tensor:
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
        fresh = shrinking[:, 0]
        state.count.masked_fill_(fresh, 0)
        state.raises.masked_fill_(fresh, 0)
        state.reference.masked_fill_(fresh, torch.inf)
        return exhausted

    def _over(self, state: CarliniWagnerL0State, loss: Tensor) -> Tensor:
        """Whether the inner run ends with this evaluation."""
        over = state.count >= self.inner_steps - 1
        if self.abort_early:
            look = state.count % max(_APART, self.inner_steps // _CHECKS) == 0
            over |= look & (loss > _PROGRESS * state.reference)
            state.reference.copy_(torch.where(look, loss, state.reference))
        state.count.add_(1)
        return over & state.active

    def _next_run(self, state: CarliniWagnerL0State, over: Tensor) -> None:
        """More of the constant; where it was raised often enough, back to the last set that reached the goal."""
        state.raises.add_(over)
        back = over & (state.raises >= self.search_steps)
        grown = state.constant * torch.where(back, _GROWTH ** (1 - self.search_steps), _GROWTH)
        state.constant.copy_(torch.where(over, grown, state.constant).clamp(max=_LARGEST))
        state.backs.add_(back)
        state.space.place(back, state.best)
        put_where(as_rows(state.free), back, as_rows(state.best_free))
        state.share.copy_(torch.where(back, state.share * _LESS, state.share))
        state.raises.masked_fill_(back, 0)
        state.count.masked_fill_(over, 0)
        state.reference.masked_fill_(over, torch.inf)

    def _write_trial(self, state: CarliniWagnerL0State, exhausted: Tensor) -> None:
        hopeless = (state.backs > 0) & ~state.found
        done = state.active & (exhausted | hopeless | (state.backs > self.retries))
        state.space.place(done & state.found, state.best)
        put_where(as_rows(state.trial), state.active, state.space.pixels(state.work))
        state.active.logical_and_(~done)
