"""The sign-gradient family as one state machine: FGSM, BIM, PGD, MI-FGSM, FFM, FIM, M-FIM and their L2 forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv import ops
from fastadv.attacks.attack import Evaluation, SlotAttack
from fastadv.attacks.budget import Ball, check_ball
from fastadv.attacks.state import SlotState, boolean, image
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_count, check_number, is_number


@dataclass(frozen=True, kw_only=True)
class SignGradientState(SlotState):
    """The slots of a ``SignGradient`` attack."""

    velocity: Tensor | None = image(0.0)
    workspace: Tensor | None
    flag: Tensor = boolean(None)


@dataclass(frozen=True, kw_only=True)
class SignGradient(SlotAttack[SignGradientState]):
    """Projected ascent along the sign of the gradient (L-infinity) or along the gradient (L2).

    With ``momentum = None`` and an L-infinity budget, one tick is ``x <- clip(x + alpha * sign(g), x0, eps)``
    (Massoli et al., eq. 2-3). With ``momentum = mu`` the velocity ``v <- mu * v + g / ||g||`` takes the place of
    g (eq. 4). With an L2 budget the step is ``x <- project(x + alpha * v / ||v||_2)`` (eq. 5), where no momentum
    means ``mu = 0``. The last iterate is the result, and the engine judges it like every other.

    A state machine: ``Recipe(SignGradient(...))`` is what functions take.

    Attributes:
        budget: ``Linf(eps)`` or ``L2(eps)``.
        steps: Number of steps, at least 1.
        step_size: ``alpha``, in pixels of [0, 1].
        momentum: The decay ``mu >= 0``, or None.
        norm: The norm that divides the gradient before it enters the velocity, ``"l1"`` or ``"l2"``.
        random_start: Start from a uniform point of the budget instead of the image itself.
        stop_at_success: Finish an image at the first trial whose 8-bit version reaches its goal with ``margin``. The
            gradient is taken at that version too.
        margin: In the unit of the goal's score; only used to stop.
        backend: Which implementation of the fused step runs; None chooses.
        name: What reports call it.

    Raises:
        ValueError: A field is out of range.
    """

    slots = SignGradientState
    ends_at_last: ClassVar[bool] = True
    budget: Ball
    steps: int
    step_size: float
    momentum: float | None = None
    norm: str = "l1"
    random_start: bool = False
    stop_at_success: bool = False
    margin: float = 0.0
    backend: str | None = None
    name: str = "sign-gradient"

    def __post_init__(self) -> None:
        check_ball(self.budget)
        check_count("steps", self.steps)
        check_number("step_size", self.step_size, positive=True)
        if self.momentum is not None and not (is_number(self.momentum) and self.momentum >= 0):
            raise ArgumentError(f"momentum: expected None or a number of at least 0, got {brief(self.momentum)}")
        if self.norm not in ("l1", "l2"):
            raise ArgumentError(f"norm: expected 'l1' or 'l2', got {brief(self.norm)}")
        check_number("margin", self.margin)

    @property
    def sees_levels(self) -> bool:  # type: ignore[override]
        """Whether it stops at success: then at that of the 8-bit image, which is what a run gives."""
        return self.stop_at_success

    def allocate(self, like: Tensor) -> SignGradientState:
        """A state of ``len(like)`` idle slots in the layout of ``like``."""
        if self.momentum is None and self.budget.norm == "linf":
            return SignGradientState.allocate(like, velocity=None, workspace=None)
        return SignGradientState.allocate(like, workspace=ops.momentum_workspace(like))

    def start(self, state: SignGradientState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; with ``random_start`` at a point drawn for (seed, id)."""
        state.begin(slots, images)
        if self.random_start:
            state.trial[slots] = self.budget.random_start(images, seed=seed, ids=ids)

    def tick(self, state: SignGradientState, evaluation: Evaluation) -> None:
        """One step of every active slot."""
        state.ticks.add_(state.active)
        if self.stop_at_success:
            torch.logical_not(evaluation.achieved, out=state.flag)
            state.active.logical_and_(state.flag)
        self.move(state, evaluation.gradient, state.active, alpha=self.step_size, eps=self.budget.eps)
        torch.lt(state.ticks, self.steps, out=state.flag)
        state.active.logical_and_(state.flag)

    def move(
        self,
        state: SignGradientState,
        gradient: Tensor,
        active: Tensor,
        *,
        alpha: float | Tensor,
        eps: float | Tensor,
    ) -> None:
        """One step of the active slots, of one size and in one ball for all of them or in each slot's own."""
        low, high, backend = self.budget.lo, self.budget.hi, self.backend
        if state.velocity is None:
            ops.sign_step_(
                state.trial, gradient, state.origin,
                alpha=alpha, eps=eps, active=active, stats=state.stats, lo=low, hi=high, backend=backend,
            )  # fmt: skip
            return
        ops.momentum_step_(
            state.trial, gradient, state.origin, state.velocity,
            alpha=alpha, eps=eps, mu=self.momentum or 0.0, norm=self.norm,
            step="sign" if self.budget.norm == "linf" else "l2",
            active=active, stats=state.stats, workspace=state.workspace, lo=low, hi=high, backend=backend,
        )  # fmt: skip
