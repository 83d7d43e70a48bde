"""Maximisation in a box per image by projected L-BFGS: one evaluation at a time, every image with its own step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks.budget import Box, Budget, Linf
from fastadv.attacks.lbfgs_history import History
from fastadv.attacks.per_image import column, put_where, row_dot
from fastadv.core.errors import ArgumentError

_ARMIJO = 1e-4  # the share of the gain that the slope promises, as in L-BFGS-B
_SHRINK = (0.1, 0.5)  # bounds of a shortened step, as parts of the last one
_TRIES = 12  # evaluations of one line search
_ROUNDING = 1e-6  # relative rounding of a float32 objective: a loss this small is no reason to refuse a step
_FAR = 1e30


@dataclass(frozen=True, kw_only=True)
class BoxSearch:
    """What N searches know; tensors of rows are ``(N, D)`` float32, numbers ``(N,)``; written in place.

    From the accepted point x with gradient g, the free variables are those that g does not push out of the box. The
    direction is ``H (g * free) * free`` (``History``), and without pairs ``radius * sign(g * free)``. It is cut with
    the box: ``p = clip(x + direction) - x``, and x + t p is tried with t = 1 and then, while the gain is below
    ``1e-4 t g'p``, with the maximum of the parabola through the values and the slope, kept in [0.1 t, 0.5 t]. As both
    ends are in the box, so is all of the line. A pair (s, y) is remembered on the variables that were free at both of
    its ends: what a bound holds says nothing about the curvature that the next step meets.

    A search ends (``ended``) where a step gains no more than ``tolerance`` of the objective's size, where no direction
    ascends, or where a line search fails even along the signs.

    Attributes:
        low: Lower bounds.
        high: Upper bounds.
        point: The accepted points x.
        gradient: Their gradients.
        free: 1 for the free variables, else 0.
        move: The steps p, cut with the box.
        value: The objective at the points.
        slope: ``g'p``.
        length: t of the trial that is being evaluated.
        tries: Trials that this line search has refused.
        begins: Whether the trial is a first point, accepted as it is.
        steps: Accepted steps.
        history: The pairs.
        work: ``(N, D)`` for passing values.
        other: The same.

    Source: Byrd et al. 1995, "A limited memory algorithm for bound constrained optimization", with the projection of
        Bertsekas 1982, "Projected Newton methods", in place of the Cauchy point.
    """

    low: Tensor
    high: Tensor
    point: Tensor
    gradient: Tensor
    free: Tensor
    move: Tensor
    value: Tensor
    slope: Tensor
    length: Tensor
    tries: Tensor
    begins: Tensor
    steps: Tensor
    history: History
    work: Tensor
    other: Tensor

    @staticmethod
    def allocate(rows: Tensor, size: int) -> BoxSearch:
        """Searches on rows like these ``(N, D)``, with ``size`` pairs each."""
        n, device = len(rows), rows.device
        return BoxSearch(
            low=torch.zeros_like(rows),
            high=torch.zeros_like(rows),
            point=torch.zeros_like(rows),
            gradient=torch.zeros_like(rows),
            free=torch.zeros_like(rows),
            move=torch.zeros_like(rows),
            value=torch.zeros(n, dtype=torch.float64, device=device),
            slope=torch.zeros(n, dtype=torch.float64, device=device),
            length=torch.zeros(n, dtype=torch.float64, device=device),
            tries=torch.zeros(n, dtype=torch.int64, device=device),
            begins=torch.zeros(n, dtype=torch.bool, device=device),
            steps=torch.zeros(n, dtype=torch.int64, device=device),
            history=History.allocate(n, rows.shape[1], size, device),
            work=torch.zeros_like(rows),
            other=torch.zeros_like(rows),
        )

    def put(self, slots: Tensor, low: Tensor, high: Tensor) -> None:
        """New searches in the slots (indices), with bounds ``(k, D)``; the next evaluation is of their first points."""
        self.low[slots] = low
        self.high[slots] = high
        self.history.count[slots] = 0
        self.tries[slots] = 0
        self.steps[slots] = 0
        self.begins[slots] = True

    def resume(self, mask: Tensor) -> None:
        """Evaluate the accepted points again where the mask ``(N,)`` says, since the objective there is another one.

        The pairs are kept: their curvature is a better guess than none.
        """
        self.begins.logical_or_(mask)
        self.tries.masked_fill_(mask, 0)
        self.steps.masked_fill_(mask, 0)
        put_where(self.work, mask, self.point)

    def advance(
        self, trial: Tensor, value: Tensor, gradient: Tensor, *, radius: float, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """Take in one evaluation of every trial, and write the next ones into ``work``.

        Args:
            trial: ``(N, D)``, what was evaluated: the first points where ``begins``, else what ``work`` was.
            value: ``(N,)``, the objective, ascended.
            gradient: ``(N, D)`` finite float32; written over.
            radius: Length of the first step in every free variable.
            tolerance: See the class.

        Returns:
            ``(N,)`` bool each: where the trial was accepted, and where the search has ended.
        """
        value = value.double()
        gain = value - self.value
        enough = gain >= _ARMIJO * self.length * self.slope - _ROUNDING * self.value.abs()
        accepted = self.begins | enough
        settled = accepted & ~self.begins & (gain <= tolerance * value.abs())
        refused = ~accepted & (self.tries >= _TRIES - 1)
        stuck = refused & (self.history.count == 0)
        anew = accepted | (refused & ~stuck)
        self.tries.copy_(torch.where(anew, 0, self.tries + 1))
        fresh = accepted & ~self.begins
        self.steps.add_(fresh)
        self._move_on(accepted, trial, value, gradient)
        self.history.forget(refused)
        self._turn(fresh, anew, radius)
        flat = anew & ~(self.slope > 0)
        ended = settled | stuck | (flat & (self.history.count == 0))
        # a direction that does not ascend is bad memory: the same point again, without it
        again = flat & ~ended
        self.history.forget(again)
        self.begins.copy_(again)
        self._shorten(anew, gain)
        torch.addcmul(self.point, self.move, column(self.length.float()), out=self.work)
        torch.clamp(self.work, self.low, self.high, out=self.work)
        put_where(self.work, again, self.point)
        return accepted, ended

    def _move_on(self, accepted: Tensor, trial: Tensor, value: Tensor, gradient: Tensor) -> None:
        """Make accepted trials the points; the new pair and gradient go to the history's entry."""
        s, y, _ = self.history.entry
        torch.sub(trial, self.point, out=s)
        torch.sub(self.gradient, gradient, out=y)
        torch.add(trial, gradient, alpha=_FAR, out=self.work).clamp_(self.low, self.high)
        torch.ne(self.work, trial, out=self.other)
        self.work.copy_(self.free).mul_(self.other)
        s.mul_(self.work)
        y.mul_(self.work)
        put_where(self.point, accepted, trial)
        put_where(self.gradient, accepted, gradient)
        put_where(self.free, accepted, self.other)
        self.value.copy_(torch.where(accepted, value, self.value))

    def _turn(self, fresh: Tensor, anew: Tensor, radius: float) -> None:
        """The next direction from every point, cut with the box; taken where ``anew``."""
        _, _, q = self.history.entry
        torch.mul(self.gradient, self.free, out=q)
        torch.sign(q, out=self.other).mul_(radius)
        self.history.direction(fresh, out=self.work)
        put_where(self.work, self.history.count == 0, self.other)
        self.work.mul_(self.free).add_(self.point).clamp_(self.low, self.high).sub_(self.point)
        put_where(self.move, anew, self.work)
        slope = row_dot(self.gradient, self.move, work=self.other).double()
        self.slope.copy_(slope)

    def _shorten(self, anew: Tensor, gain: Tensor) -> None:
        """t = 1 for a new direction, else the maximum of the parabola."""
        least, most = (part * self.length for part in _SHRINK)
        promised = self.slope * self.length
        best = promised * self.length / (2 * (promised - gain))
        shorter = torch.nan_to_num(best, nan=0.0, posinf=0.0).maximum(least).minimum(most)
        self.length.copy_(torch.where(anew, 1.0, shorter))


def bounds(budget: Budget, origin: Tensor) -> tuple[Tensor, Tensor]:
    """The corners of the box around each image, in the shape of ``origin``."""
    least, most = (budget.clip(torch.full_like(origin, end), origin) for end in (-torch.inf, torch.inf))
    return least, most


def check_box(budget: Budget) -> None:
    """A ValueError unless the budget is a box."""
    if not isinstance(budget, (Linf, Box)):
        raise ArgumentError(f"budget must be Linf(eps) or Box(), got {budget!r}")
