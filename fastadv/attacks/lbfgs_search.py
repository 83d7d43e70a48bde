"""Maximisation in a box per image by L-BFGS-B: one evaluation at a time, every image with its own step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fastadv.attacks.attack import SlotAttack
from fastadv.attacks.budget import Budget, check_box
from fastadv.attacks.lbfgs_history import History
from fastadv.attacks.lbfgs_line import LineSearch
from fastadv.attacks.lbfgs_matrix import Compact
from fastadv.attacks.per_image import as_rows, column, put_where, row_dot, row_norm
from fastadv.attacks.state import RowState, SlotFields, boolean, integer, number, part, row
from fastadv.core.fields import check_count, check_number

_FAR = 1e30
_CURVATURE = 1e-6  # smallest cosine of a pair that is kept, a few times the rounding of a float32 product
_TRIES = 12  # evaluations of one line search
_NEWTON = 2  # steps of Newton's method along the projected gradient, after the one that ignores the box


@dataclass(frozen=True, kw_only=True)
class BoxSearch(SlotFields):
    """What N searches know; tensors of rows are ``(N, D)`` float32, numbers ``(N,)``.

    One iteration is that of L-BFGS-B, with ``f`` the negative objective, u its negative gradient at the accepted point
    x, and the quadratic model q of ``Compact`` around x:

    1. The generalised Cauchy point: the minimiser of q along ``x(t) = clip(x + t u)``. **choice**: where the box cuts
       the path, t comes from three steps of Newton's method on the derivative, which is linear between two cuts, and
       not from a walk along the cuts in their order.
    2. The minimiser of q over the variables that are free there, cut with the box; where the direction p to it does
       not descend, it is shortened from the Cauchy point until it is in the box.
    3. ``x + t p`` by the line search of ``LineSearch``, from t = 1 up to the box (t = 1 in the first iteration).

    **choice**: a pair (s, y) is remembered on the variables that were free at both of its ends, and is 0 elsewhere.
    What a bound holds says nothing about the curvature that the next step meets; on six LFW faces the distance to the
    guide was 10 % smaller after 60 evaluations. Where no bound is met the trials are those of SciPy's L-BFGS-B.

    **choice**: the variables' unit. L-BFGS-B's first model is ``q = f - u'p + |p|^2 / 2``, so its first step, the
    gradient itself, depends on the units of variables and objective; nothing later does. Here the first model, and
    that after the pairs have been dropped, has the curvature with which the free variables change by ``radius`` in the
    root mean square. That is SciPy's L-BFGS-B with the variables multiplied by a number of each image's own. In grey
    levels, at 1/255 of the gradient's length in pixels, a float32 network rounds most of the first step away.

    A search ends (``ended``) where a step gains no more than ``tolerance`` of the objective's size, where no direction
    ascends, or where a line search without any pairs fails.

    Attributes:
        low: Lower bounds.
        high: Upper bounds.
        point: The accepted points x.
        gradient: u, the gradient of what is ascended.
        loose: 1 for the variables that u does not push out of the box, else 0.
        free: The same for those that are inside at the Cauchy point.
        move: The directions p.
        value: The objective at the points.
        slope: ``u'p``.
        line: The line searches.
        tries: Trials that this line search has refused.
        begins: Whether the trial is a first point, accepted as it is.
        steps: Accepted steps.
        history: The pairs.
        work: ``(N, D)`` for passing values.
        other: The same.

    Source: Byrd, Lu, Nocedal and Zhu 1995, "A limited memory algorithm for bound constrained optimization"; Morales and
        Nocedal 2011, "Remark on algorithm 778" (the cut with the box in 2).
    """

    low: Tensor = row()
    high: Tensor = row()
    point: Tensor = row()
    gradient: Tensor = row()
    loose: Tensor = row()
    free: Tensor = row()
    move: Tensor = row()
    value: Tensor = number(None, dtype=torch.float64)
    slope: Tensor = number(None, dtype=torch.float64)
    line: LineSearch = part(lambda like: LineSearch.allocate(len(like), like.device))
    tries: Tensor = integer()
    begins: Tensor = boolean(True)
    steps: Tensor = integer()
    history: History
    work: Tensor = row()
    other: Tensor = row()

    @staticmethod
    def of(like: Tensor, size: int) -> BoxSearch:
        """Searches on images like these, with ``size`` pairs each."""
        history = History.allocate(len(like), like.shape[1:].numel(), size, like.device)
        return BoxSearch.allocate(like, history=history)

    def put(self, slots: Tensor, low: Tensor, high: Tensor) -> None:
        """New searches in the slots (indices), with bounds ``(k, D)``; the next evaluation is of their first points."""
        self.low[slots] = low
        self.high[slots] = high
        self.history.clear(slots)
        self.reset(slots)

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
            radius: Length of the first step, as the root mean square over the free variables.
            tolerance: See the class.

        Returns:
            ``(N,)`` bool each: where the trial was accepted, and where the search has ended.
        """
        value = value.double()
        slope = row_dot(gradient, self.move, work=self.other).double()
        gain = value - self.value
        done, failed = self._ended(-value, -slope)
        accepted = self.begins | done
        settled = accepted & ~self.begins & (gain <= tolerance * value.abs())
        refused = ~accepted & (failed | (self.tries >= _TRIES - 1))
        stuck = refused & (self.history.count == 0)
        anew = accepted | (refused & ~stuck)
        self.tries.copy_(torch.where(anew, 0, self.tries + 1))
        self.line.advance(-value, -slope)
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
        self.line.begin(anew, -self.value, -self.slope, torch.where(self.steps == 0, 1.0, torch.inf))
        torch.addcmul(self.point, self.move, column(self.line.step.float()), out=self.work)
        torch.clamp(self.work, self.low, self.high, out=self.work)
        put_where(self.work, again, self.point)
        return accepted, ended

    def _move_on(self, accepted: Tensor, trial: Tensor, value: Tensor, gradient: Tensor) -> None:
        """Make accepted trials the points; the new pair goes to the history's entry."""
        s, y, _ = self.history.entry
        torch.sub(trial, self.point, out=s)
        torch.sub(self.gradient, gradient, out=y)
        # moved on by much more than the box, a variable stays where it is only if it is held
        torch.add(trial, gradient, alpha=_FAR, out=self.work).clamp_(self.low, self.high)
        torch.ne(self.work, trial, out=self.other)
        torch.mul(self.loose, self.other, out=self.work)
        s.mul_(self.work)
        y.mul_(self.work)
        put_where(self.point, accepted, trial)
        put_where(self.gradient, accepted, gradient)
        put_where(self.loose, accepted, self.other)
        self.value.copy_(torch.where(accepted, value, self.value))

    def _ended(self, value: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """``LineSearch.ended``, with the distance to the box measured where more than t = 1 may be asked for."""
        ended = self.line.ended(value, slope)
        more = ~self.begins & ~ended[0] & torch.isinf(self.line.most)
        if _any(more):
            self.line.limit(more, self._room(self.move, self.point).clamp(min=1.0))
            ended = self.line.ended(value, slope)
        return ended

    def _turn(self, fresh: Tensor, anew: Tensor, radius: float) -> None:
        """The next direction from every point; taken where ``anew``."""
        s, y, q = self.history.entry
        torch.mul(self.gradient, self.loose, out=q)
        bent = row_dot(s, y, work=self.work) > _CURVATURE * row_norm(s) * row_norm(y)
        squared = row_norm(q).double().square()
        products = self.history.remember(fresh & bent)
        model = Compact.of(self.history, squared.sqrt() / (radius * math.sqrt(q.shape[1])))
        sound = self._subspace(model, self._cauchy_point(model, squared, model.coordinates(products)))
        put_where(self.move, anew, self.work)
        slope = row_dot(self.gradient, self.move, work=self.other).double()
        self.slope.copy_(torch.where(sound & model.sound, slope, torch.nan))

    def _cauchy_point(self, model: Compact, squared: Tensor, along: Tensor) -> Tensor:
        """Write v = x(t) - x, and u where it moves on at t, to the entry, and return t of the Cauchy point.

        Args:
            model: q.
            squared: ``(N,)``, of the part of u that moves at t = 0.
            along: ``(N, 2 m, 1)``, its coordinates.
        """
        bend = model.theta * squared - model.form(along, along)
        low, high = torch.zeros_like(squared), torch.full_like(squared, torch.inf)
        t = torch.nan_to_num(squared / bend, nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0.0)
        for _ in range(_NEWTON):
            squared = self._follow(t)
            v, along = model.coordinates(self.history.products(2)).split(1, 2)
            down = (model.theta * t - 1) * squared - model.form(v, along)
            bend = model.theta * squared - model.form(along, along)
            low, high = torch.where(down < 0, t, low), torch.where(down < 0, high, t)
            better = t - down / bend
            inside = (better > low) & (better < high)
            middle = torch.where(torch.isinf(high), t, (low + high) / 2)
            t = torch.where(inside, better, torch.where(bend > 0, middle, t))
        self._follow(t)
        return t

    def _follow(self, t: Tensor) -> Tensor:
        """Go along the projected gradient to t, and write what is free there; the square of its u, ``(N,)``."""
        v, moving, _ = self.history.entry
        torch.addcmul(self.point, self.gradient, column(t.float()), out=self.work)
        torch.clamp(self.work, self.low, self.high, out=self.work)
        torch.sub(self.work, self.point, out=v)
        torch.gt(self.work, self.low, out=self.free)
        torch.lt(self.work, self.high, out=self.other)
        self.free.mul_(self.other)
        torch.mul(self.gradient, self.free, out=moving)
        return row_norm(moving).double().square()

    def _subspace(self, model: Compact, t: Tensor) -> Tensor:
        """Write the direction p to ``work``, from the Cauchy point; returns where it can be trusted."""
        v, _, to = self.history.entry
        held = torch.sub(1.0, self.free, out=self.other)
        on, along = model.coordinates(self.history.products(2)).split(1, 2)
        weights, sound = model.subspace(self.history.masked(self.free, held), on, along, t)
        torch.mul(self.gradient, column((1 / model.theta).float()), out=to)
        self.history.combine(model.ring(weights))
        torch.mul(to, self.free, out=self.work).addcmul_(v, held)
        self.work.add_(self.point).clamp_(self.low, self.high).sub_(self.point)
        shorten = ~(row_dot(self.gradient, self.work, work=self.other) > 0)
        if _any(shorten):
            # the longest part of the way from the Cauchy point that is in the box
            torch.sub(to, v, out=self.other).mul_(self.free)
            part = self._room(self.other, torch.add(self.point, v)).clamp(max=1.0)
            self.other.mul_(column(part.float())).add_(v)
            put_where(self.work, shorten, self.other)
        return sound

    def _room(self, direction: Tensor, base: Tensor) -> Tensor:
        """The largest factor of the directions with which the bases stay in the box, ``(N,)``."""
        room = torch.where(direction > 0, self.high, self.low).sub_(base).div_(direction)
        return torch.where(direction == 0, torch.inf, room).amin(1).double()


def _any(mask: Tensor) -> bool:
    """Whether a mask names an image; on a device that must not be waited for, always."""
    return mask.is_cuda or bool(mask.any())


@dataclass(frozen=True, kw_only=True)
class SearchState(RowState):
    """The slots of a ``BoxAttack``.

    Attributes:
        search: The searches.
    """

    search: BoxSearch


B = TypeVar("B", bound=SearchState)


@dataclass(frozen=True, kw_only=True)
class BoxAttack(SlotAttack[B]):
    """Shared by the attacks that L-BFGS-B solves.

    Attributes:
        budget: ``Linf(eps)``, or ``Box()`` for the pixel range alone.
        history: m, pairs remembered for an image; memory is 2 (m + 1) images for a slot.
        tolerance: A search ends where a step gains no more than this share of the objective.
        margin: In the unit of the goal's score.

    Raises:
        ValueError: A field is out of range, or the budget is no box.
    """

    budget: Budget
    history: int = 5
    tolerance: float = 1e-5
    margin: float = 0.0

    def __post_init__(self) -> None:
        check_box(self.budget)
        check_count("history", self.history)
        check_number("tolerance", self.tolerance)
        check_number("margin", self.margin)

    def allocate(self, like: Tensor) -> B:
        """A state of ``len(like)`` idle slots in the layout of ``like``."""
        made: B = self.slots.allocate(like, search=BoxSearch.of(like, self.history))
        return made

    def start(self, state: B, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots, with the corners of the box around each."""
        state.begin(slots, images)
        origin = as_rows(state.origin)[slots]
        low, high = (self.budget.clip(torch.full_like(origin, end), origin) for end in (-torch.inf, torch.inf))
        state.search.put(slots, low, high)
