"""APGD: projected ascent that chooses its own step size, with restarts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv.attacks.attack import Evaluation, SlotAttack
from fastadv.attacks.budget import Ball, check_ball
from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.per_image import as_rows, column, put_where, row_norm
from fastadv.attacks.state import RowState, boolean, integer, number, row
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_count, check_number

LOSSES = ("ce", "dlr")
_MOMENTUM = 0.75  # alpha of eq. 2
_RISES = 0.75  # rho: the share of steps that must raise the loss


def checkpoints(steps: int) -> tuple[int, ...]:
    """The iterations at which the step size is looked at.

    ``w_j = ceil(p_j steps)`` with ``p_0 = 0``, ``p_1 = 0.22`` and ``p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)``.

    Source: Croce and Hein 2020, section 4.1.
    """
    # in whole hundredths: floats would round a p of exactly k / steps up to the next iteration
    before, now = 0, 22
    found = []
    while now <= 100:
        found.append(-(-now * steps // 100))
        before, now = now, now + max(now - before - 3, 6)
    return tuple(sorted(set(found)))


@dataclass(frozen=True, kw_only=True)
class APGDState(RowState):
    """The slots of an ``APGD`` attack.

    Attributes:
        previous: ``(N, D)``, the iterate before.
        best: ``(N, D)``, the iterate with the largest loss of this run, and ``best_gradient`` its gradient.
        best_loss: ``(N,)``, its loss; ``last_loss`` that of the iterate before.
        size: ``(N,)``, the step size.
        rises: ``(N,)`` int64, steps since the last checkpoint that raised the loss.
        halved: ``(N,)`` bool, whether the last checkpoint halved the step size.
        checked_loss: ``(N,)``, the largest loss at the last checkpoint.
        count: ``(N,)`` int64, iterations of this run.
        runs: ``(N,)`` int64, runs that are over.
        kept: ``(N, D)``, the result so far: an iterate that reached the goal before one that did not, then the one with
            the larger loss; ``kept_loss`` and ``kept_reached`` say what it did.
        starts: ``(restarts, N, D)``, where the runs begin.
        windows: ``(steps + 1,)`` int64, at a checkpoint the iterations since the last one, elsewhere 0.
    """

    previous: Tensor = row()
    best: Tensor = row()
    best_gradient: Tensor = row()
    best_loss: Tensor = number(None)
    last_loss: Tensor = number(None)
    size: Tensor = number(None)
    rises: Tensor = integer(None)
    halved: Tensor = boolean(None)
    checked_loss: Tensor = number(None)
    count: Tensor = integer(None)
    runs: Tensor = integer()
    kept: Tensor = row()
    kept_loss: Tensor = number(-torch.inf)
    kept_reached: Tensor = boolean()
    starts: Tensor
    windows: Tensor


@dataclass(frozen=True, kw_only=True)
class APGD(SlotAttack[APGDState]):
    """Projected ascent with momentum that halves its step size where it makes no progress, from several starts.

    ``z = P(x_k + eta s(g_k))``, ``x_{k+1} = P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1}))`` with the sign of the
    gradient (L-infinity) or the gradient over its norm (L2), and ``eta = 2 eps`` at first. At each of ``checkpoints``,
    where fewer than 75 % of the steps since the last one raised the loss, or neither the step size nor the largest loss
    has changed since, eta is halved and the run goes on from its best iterate. The best iterate is the result.

    Attributes:
        budget: ``Linf(eps)`` or ``L2(eps)``.
        steps: Iterations of a run.
        restarts: Runs, each from a random point of its own.
        loss: ``"ce"``, the goal's loss (on logits the cross-entropy), or ``"dlr"``, the difference of logits ratio:
            ``-(Z_y - max_{i != y} Z_i) / (Z_(1) - Z_(3))``, and for a wanted class t
            ``-(max_{i != t} Z_i - Z_t) / (Z_(1) - (Z_(3) + Z_(4)) / 2)``, with the logits in descending order.
        random_start: Start the first run from a random point too, instead of the image itself.
        stop_at_success: Finish an image at the first iterate whose 8-bit version reaches its goal with ``margin``. Loss
            and gradient are taken at that version too.
        margin: In the unit of the goal's score.
        name: What reports call it.

    Raises:
        ValueError: A field is out of range; later, ``"dlr"`` meets a goal on embeddings, or too few classes.

    Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", algorithm 1, eq. 6 and 7; **choice** in eq. 7 the true class, which a targeted goal does
    not know, is the best of the others.
    """

    slots = APGDState
    keeps_success: ClassVar[bool] = True
    budget: Ball
    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    random_start: bool = True
    stop_at_success: bool = True
    margin: float = 0.0
    name: str = "apgd"

    def __post_init__(self) -> None:
        check_ball(self.budget)
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        if self.loss not in LOSSES:
            raise ArgumentError(f"loss: expected one of {', '.join(LOSSES)}, got {brief(self.loss)}")
        check_number("margin", self.margin)

    @property
    def logits_only(self) -> bool:  # type: ignore[override]
        """Whether the loss is a ratio of logits."""
        return self.loss == "dlr"

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """The goal's loss, or the difference of logits ratio."""
        if self.loss == "ce":
            return goal.loss(outputs, rows)
        least = 4 if goal.wants_label else 3
        if goal.output != "logits" or outputs.shape[1] < least:
            got = f"{outputs.shape[1]} classes" if goal.output == "logits" else f"{type(goal).__name__} on embeddings"
            raise ArgumentError(f"loss: expected a goal on logits of at least {least} classes with 'dlr', got {got}")
        top = outputs.topk(least, dim=1).values
        spread = top[:, 0] - (top[:, 2:].mean(1) if goal.wants_label else top[:, 2])
        return -goal.shortfall(outputs, rows) / (spread + 1e-12)

    @property
    def sees_levels(self) -> bool:  # type: ignore[override]
        """Whether it stops at success: then at that of the 8-bit image, which is what a run gives."""
        return self.stop_at_success

    def allocate(self, like: Tensor) -> APGDState:
        """A state of ``len(like)`` idle slots in the layout of ``like``."""
        windows = torch.zeros(self.steps + 1, dtype=torch.int64)
        marks = (0, *checkpoints(self.steps))
        windows[list(marks[1:])] = torch.tensor(marks).diff()
        starts = torch.zeros(self.restarts, len(like), like.shape[1:].numel(), device=like.device)
        return APGDState.allocate(like, starts=starts, windows=windows.to(like.device))

    def start(self, state: APGDState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; run r begins at the r-th random point of (seed, id)."""
        state.begin(slots, images)
        for run in reversed(range(self.restarts)):
            at_random = run > 0 or self.random_start
            point = self.budget.random_start(images, seed=seed, ids=ids, draw=run) if at_random else images
            state.trial[slots] = point
            state.starts[run][slots] = as_rows(state.trial)[slots]
        new = torch.zeros_like(state.active)
        new[slots] = True
        self._begin_run(state, new)
        state.kept[slots] = as_rows(state.trial)[slots]  # what stays where no loss is a number

    def tick(self, state: APGDState, evaluation: Evaluation) -> None:
        """One iteration; where a run is over, the next one's start; where all are, the best iterate."""
        state.ticks.add_(state.active)
        gradient = state.finite_gradient(evaluation.gradient)
        self._remember(state, evaluation, gradient)
        self._check(state, gradient)
        over = state.active & (state.count >= self.steps)
        self._step(state, gradient)
        state.count.add_(1)
        state.runs.add_(over)
        done = state.active & (state.runs >= self.restarts)
        if self.stop_at_success:
            done |= state.active & state.kept_reached
        if self.restarts > 1:
            self._begin_run(state, over & ~done)
        put_where(as_rows(state.trial), done, state.kept)
        state.active.logical_and_(~done)

    @staticmethod
    def _remember(state: APGDState, evaluation: Evaluation, gradient: Tensor) -> None:
        """Keep the iterate where it is the best of its run, or of all."""
        loss, rows = evaluation.loss, as_rows(state.trial)
        higher = state.active & (loss > state.best_loss)
        put_where(state.best, higher, rows)
        put_where(state.best_gradient, higher, gradient)
        state.best_loss.copy_(torch.where(higher, loss, state.best_loss))
        state.rises.add_((loss > state.last_loss) & (state.count > 0))
        state.last_loss.copy_(loss)
        reached, had = evaluation.achieved, state.kept_reached
        better = (reached & ~had) | ((reached == had) & (loss > state.kept_loss))
        better &= state.active
        put_where(state.kept, better, rows)
        state.kept_loss.copy_(torch.where(better, loss, state.kept_loss))
        had.logical_or_(state.active & reached)

    @staticmethod
    def _check(state: APGDState, gradient: Tensor) -> None:
        """At a checkpoint without progress: half the step size, and back to the best iterate."""
        window = state.windows.gather(0, state.count.clamp(max=len(state.windows) - 1))
        check = state.active & (window > 0)
        few = state.rises < _RISES * window
        idle = ~state.halved & (state.best_loss <= state.checked_loss)
        halve = check & (few | idle)
        state.size.mul_(torch.where(halve, 0.5, 1.0))
        put_where(as_rows(state.trial), halve, state.best)
        put_where(gradient, halve, state.best_gradient)
        state.halved.copy_(torch.where(check, halve, state.halved))
        state.checked_loss.copy_(torch.where(check, state.best_loss, state.checked_loss))
        state.rises.masked_fill_(check, 0)

    def _step(self, state: APGDState, gradient: Tensor) -> None:
        """``z`` from the gradient, which is written over; then the iterate and its predecessor."""
        rows = as_rows(state.trial)
        if self.budget.norm == "linf":
            gradient.sign_().mul_(column(state.size))
        else:
            norm = row_norm(gradient)
            gradient.mul_(column(torch.where(norm > 0, state.size / norm, 0.0)))
        z = self._project(gradient.add_(rows), state)
        # x + a (z - x) + (1 - a) (x - previous), where the first step of a run has a = 1
        weight = column(torch.where(state.count == 0, 1.0, _MOMENTUM))
        z.sub_(rows).mul_(weight).add_(rows)
        z.addcmul_(rows, 1 - weight).addcmul_(state.previous, weight - 1)
        put_where(state.previous, state.active, rows)
        put_where(rows, state.active, self._project(z, state))

    def _project(self, rows: Tensor, state: APGDState) -> Tensor:
        """Into the ball and the pixel range, in place."""
        origin, eps = as_rows(state.origin), self.budget.eps
        rows.sub_(origin)
        if self.budget.norm == "linf":
            rows.clamp_(-eps, eps)
        else:
            rows.mul_(column((eps / row_norm(rows).clamp(min=1e-12)).clamp(max=1.0)))
        return rows.add_(origin).clamp_(self.budget.lo, self.budget.hi)

    def _begin_run(self, state: APGDState, mask: Tensor) -> None:
        """Put the next start into the slots of the mask."""
        n = len(mask)
        index = state.runs.clamp(max=self.restarts - 1) * n + torch.arange(n, device=mask.device)
        point = torch.index_select(state.starts.view(self.restarts * n, -1), 0, index, out=state.work)
        put_where(as_rows(state.trial), mask, point)
        put_where(state.previous, mask, point)
        put_where(state.best, mask, point)
        state.best_gradient.masked_fill_(column(mask), 0.0)
        state.count.masked_fill_(mask, 0)
        state.size.masked_fill_(mask, 2 * self.budget.eps)
        state.rises.masked_fill_(mask, 0)
        state.halved.masked_fill_(mask, False)
        for loss in (state.best_loss, state.last_loss, state.checked_loss):
            loss.masked_fill_(mask, -torch.inf)
