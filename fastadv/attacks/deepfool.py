"""DeepFool: steps to the nearest linearised decision border, one candidate class a tick."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.attacks.attack import Evaluation, SmallestChange
from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.per_image import as_rows, column, put_where, row_dot, row_norm
from fastadv.attacks.state import NearestState, integer, number, row
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_count, check_number

_GAIN = 0.995  # a return that is expected to gain less is not worth its evaluations
_LEAST = {"l2": 1e-4, "linf": 1e-6}  # a shorter step could be lost in float32 pixels


@dataclass(frozen=True, kw_only=True)
class DeepFoolState(NearestState):
    """The slots of a ``DeepFool`` attack.

    Attributes:
        query: ``(N, 1 + candidates)`` float32: the rank of the candidate that is asked for, and, as the answer, the
            shortfalls of all candidates.
        total: ``(N, D)``, the sum of the steps.
        step: ``(N, D)``, the shortest step that the candidates have given so far.
        shortest: ``(N,)``, its length.
        steepest: ``(N,)``, the largest gradient norm among the candidates so far.
        moves: ``(N,)`` int64, steps taken.
        returns: ``(N,)`` int64, returns to the border.
    """

    query: Tensor = number()
    total: Tensor = row(0.0)
    step: Tensor = row()
    shortest: Tensor = number(torch.inf)
    steepest: Tensor = number()
    moves: Tensor = integer()
    returns: Tensor = integer()
    delta: Tensor = row()


@dataclass(frozen=True, kw_only=True)
class DeepFool(SmallestChange[DeepFoolState]):
    """The smallest step to the nearest linearised border, repeated until the decision flips.

    With the shortfall ``f_k`` of candidate k (``Z_y - Z_k`` on logits) and its gradient ``g_k``, the nearest border is
    that of the least ``f_k / ||g_k||_q``, q the dual of the norm; the step to it is ``-f_k g_k / ||g_k||_2^2`` (L2) or
    ``-f_k / ||g_k||_1 sign(g_k)`` (L-infinity), and the trial is ``clip(x_0 + (1 + overshoot) sum of the steps)``.

    One tick is one candidate's gradient. Candidates come in the order of their shortfalls, and a step is taken as soon
    as no further one can be nearer: candidate k would need a gradient of norm ``f_k / shortest``, more than ``reach``
    times the largest that has been met. So a step costs one or two evaluations, whether there are ten classes or ten
    thousand, and no ``(B, K, D)`` Jacobian exists. A goal that can be reached in one way (a class to be taken for, a
    pair to accept or refuse) has one candidate.

    With ``returns``, an image over the border goes to the point of the border, as linearised there, that is nearest to
    the clean image, ``(<g, r> - f) g / ||g||_2^2`` with r the perturbation and f, g of where it is, and steps on from
    there until the decision flips again; the nearest image over the border is the result. The paper has none.

    An image whose border, as linearised, asks a pixel to move by more than the pixel range has no usable gradient: it
    is left where it is and named, as one whose gradient is zero.

    **choice** An attack that is targeted at a class steps to the border with the class that wins at the time.

    Attributes:
        steps: Most steps of an image.
        overshoot: How far beyond the border each iterate is, as a part of the whole perturbation.
        norm: ``"l2"`` or ``"linf"``.
        candidates: Most candidates of a step.
        reach: See above; inf looks at all candidates, as the paper does with all classes.
        returns: Most returns to the border. By LFW faces in a network of 158 identities, one return with one candidate
            gives 10 % less L2 than the paper's ten candidates, and 6.8 evaluations an image instead of 10.3.
        margin: In the unit of the goal's score: the decision must flip by as much.
        name: What reports call it.

    Raises:
        ValueError: A field is out of range.

    Source: Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method to fool deep neural networks",
    algorithm 2; overshoot 0.02 and 50 steps are theirs. The return is the projection of Abdolahpourrostam et al. 2023,
    "Revisiting DeepFool: generalization and improvement".
    """

    slots = DeepFoolState
    steps: int = 50
    overshoot: float = 0.02
    norm: str = "l2"
    candidates: int = 10
    reach: float = 1.2
    returns: int = 0
    margin: float = 0.0
    name: str = "deepfool"

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_number("overshoot", self.overshoot)
        if not isinstance(self.norm, str) or self.norm not in _LEAST:
            raise ArgumentError(f"norm: expected 'l2' or 'linf', got {brief(self.norm)}")
        check_count("candidates", self.candidates)
        if not isinstance(self.reach, (int, float)) or isinstance(self.reach, bool) or not self.reach >= 1:
            raise ArgumentError(f"reach: expected a number of at least 1, got {brief(self.reach)}")
        check_count("returns", self.returns, least=0)
        check_number("margin", self.margin)

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """The negative shortfall, with the margin, of the candidate that each slot asks for.

        The shortfalls of all candidates are written into the query, which is the attack's own.
        """
        assert query is not None
        shortfalls = goal.rivals(outputs, rows, self.candidates) + self.margin
        query[:, 1:].copy_(shortfalls.detach())
        return -shortfalls.gather(1, query[:, :1].long()).squeeze(1)

    def allocate(self, like: Tensor) -> DeepFoolState:
        """A state of ``len(like)`` idle slots in the layout of ``like``."""
        query = torch.zeros(len(like), 1 + self.candidates, device=like.device)
        return DeepFoolState.allocate(like, query=query)

    def tick(self, state: DeepFoolState, evaluation: Evaluation) -> None:
        """Weigh one candidate; where it was the last of its step, move."""
        state.ticks.add_(state.active)
        gradient = state.finite_gradient(evaluation.gradient)
        steepness = self._without_noise(state, gradient, -evaluation.loss)
        # the last move is evaluated too, and left as it is
        over = state.active & (evaluation.achieved | (state.moves >= self.steps))
        going = state.active & ~over
        if self.returns:
            over = over & ~self._go_back(state, evaluation, gradient, steepness)
        self._weigh(state, -evaluation.loss, gradient, steepness, going)
        more = going & self._another(state)
        state.query[:, 0].add_(more)
        over = over | self._move(state, going & ~more)
        if self.returns:
            put_where(as_rows(state.trial), over & state.has_best, state.best)
        state.active.logical_and_(~over)

    def _without_noise(self, state: DeepFoolState, gradient: Tensor, shortfall: Tensor) -> Tensor:
        """The dual norm of each gradient, and 0 for one that is rounding noise, which counts as an all-zero gradient.

        A step to the linearised border that moves a pixel by more than the pixel range leads nowhere: so looks the
        gradient of a similarity at its maximum, an image against itself, and it would only destroy the picture.
        """
        steepness = row_norm(gradient, 2.0 if self.norm == "l2" else 1.0)
        if self.norm == "l2":
            furthest = shortfall * torch.maximum(gradient.amax(1), -gradient.amin(1)) / steepness.square()
        else:
            furthest = shortfall / steepness
        noise = (steepness > 0) & (furthest > self.budget.eps)
        state.stats[:, 1].add_((noise & state.active) * gradient.shape[1])
        return steepness.masked_fill_(noise, 0.0)

    def _go_back(self, state: DeepFoolState, evaluation: Evaluation, gradient: Tensor, steepness: Tensor) -> Tensor:
        """Keep an image that is over the border; where that makes it nearer, go back to the border along its normal."""
        delta = torch.sub(as_rows(state.trial), as_rows(state.origin), out=state.delta)
        length = row_norm(delta) if self.norm == "l2" else torch.maximum(delta.amax(1), -delta.amin(1))
        reached = state.active & evaluation.achieved
        state.keep_nearest(reached, length)
        # the linearised border is where <gradient, r> has this value; its point nearest to the origin has this length
        value = row_dot(gradient, delta, work=delta) - evaluation.loss
        length = value / steepness
        back = reached & (length > 0) & ((1 + self.overshoot) * length < _GAIN * state.distance)
        back &= (state.returns < self.returns) & (state.moves < self.steps)
        if self.norm == "l2":
            torch.mul(gradient, column(torch.where(back, length / steepness, 0.0)), out=delta)
        else:
            torch.sign(gradient, out=delta).mul_(column(torch.where(back, length, 0.0)))
        put_where(state.total, back, delta)
        state.returns.add_(back)
        self._place(state, back)
        return back

    def _weigh(
        self, state: DeepFoolState, shortfall: Tensor, gradient: Tensor, steepness: Tensor, going: Tensor
    ) -> None:
        """Keep the candidate's step where it is the shortest so far; the gradient is written over."""
        length = torch.where(steepness > 0, shortfall / steepness, torch.inf)
        shorter = going & (length < state.shortest)
        state.shortest.copy_(torch.where(shorter, length, state.shortest))
        state.steepest.copy_(torch.maximum(state.steepest, steepness))
        length = length.clamp(min=_LEAST[self.norm])
        if self.norm == "l2":
            gradient.mul_(column(torch.where(shorter, length / steepness, 0.0)))
        else:
            gradient.sign_().mul_(column(torch.where(shorter, length, 0.0)))
        put_where(state.step, shorter, gradient)

    def _another(self, state: DeepFoolState) -> Tensor:
        """Whether the next candidate could be nearer than the nearest so far."""
        following = state.query[:, 0].long() + 1
        shortfalls = F.pad(state.query[:, 1:], (0, 1), value=torch.inf)
        shortfall = shortfalls.gather(1, column(following)).squeeze(1)
        bound = state.shortest * state.steepest * self.reach
        return torch.isfinite(shortfall) & ~(shortfall >= bound)

    def _move(self, state: DeepFoolState, moving: Tensor) -> Tensor:
        """Take the shortest step; an image without any gradient is finished where it is, and named."""
        stuck = moving & ~torch.isfinite(state.shortest)
        moving = moving & ~stuck
        state.total.addcmul_(state.step, column(moving.to(state.step.dtype)))
        self._place(state, moving)
        return stuck

    def _place(self, state: DeepFoolState, moved: Tensor) -> None:
        """Write the trial of what has moved, and begin its candidates again."""
        torch.add(as_rows(state.origin), state.total, alpha=1 + self.overshoot, out=state.delta)
        put_where(as_rows(state.trial), moved, state.delta.clamp_(self.budget.lo, self.budget.hi))
        state.moves.add_(moved)
        state.query[:, 0].masked_fill_(moved, 0.0)
        state.shortest.masked_fill_(moved, torch.inf)
        state.steepest.masked_fill_(moved, 0.0)
