"""The contract between an attack and the engine: a state machine that eats one evaluation per tick.

    state = attack.allocate(images_like)       tensors for a fixed number of slots (state.py says how they are declared)
    attack.start(state, slots, images, ...)    put new images into the named slots
    attack.tick(state, evaluation)             consume loss, gradient and success; write the next trial
    state.active                               which slots are still at work

Nothing in ``tick`` allocates per image, synchronises or copies to the host, so it can be captured as a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from fastadv.attacks.budget import Box, Budget
from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.state import SlotState


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of the model and the goal on every slot.

    Attributes:
        loss: What the attack ascends, ``(N,)``: its ``objective``.
        achieved: Whether each trial reaches the goal with the attack's margin, ``(N,)`` bool.
        gradient: The objective's gradient to the trial, ``(N, 3, H, W)``; zeros for an attack that needs none.
        outputs: Embeddings ``(N, D)`` or logits ``(N, K)``.
    """

    loss: Tensor
    achieved: Tensor
    gradient: Tensor
    outputs: Tensor


S = TypeVar("S", bound=SlotState)


class Attack(Protocol[S]):
    """The state machine of a ``Recipe``: how to move. ``fa.run(Recipe(Mine(...)), ...)`` runs one of your own.

    A frozen value; everything that changes lives in the state, whose class derives from ``SlotState``.

    One that looks for the smallest change says so by a class attribute ``smallest = True``: the engine then leaves an
    image alone that has reached its goal, with the margin, before the attack. ``SlotAttack`` and ``SmallestChange``
    hold what most attacks share.

    One with a true attribute ``sees_levels`` is evaluated at the 8-bit version of its trial (``budget.round8``), the
    image that a run saves, and so its success is that image's. One with a true ``stop_at_success``, that looks for the
    smallest change, or that says so by ``keeps_success`` has its success tested on the bare model where its surrogate
    is another network.
    """

    @property
    def name(self) -> str:
        """The name that reports show."""

    @property
    def budget(self) -> Budget:
        """Where the trial may go."""

    @property
    def margin(self) -> float:
        """How much better than the threshold a success must be to count for the attack."""

    @property
    def steps(self) -> int:
        """The most steps that an image can take; of an attack with ``restarts``, those of one of them."""

    @property
    def needs_gradient(self) -> bool:
        """Whether an evaluation has a backward pass."""

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """What is ascended, ``(N,)``, each image's from its own row; most attacks take the goal's loss."""

    def allocate(self, like: Tensor) -> S:
        """A state for ``len(like)`` slots, on the device and in the memory layout of ``like``: its ``allocate``."""

    def start(self, state: S, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put ``images`` into ``slots`` (int64 indices): ``state.begin``, and what depends on the image or the attack.

        Random numbers come from (seed, id) alone.
        """

    def tick(self, state: S, evaluation: Evaluation) -> None:
        """Consume one evaluation; write the next trial of every active slot in place."""


class SlotAttack(Generic[S]):
    """What attacks share that do not say otherwise: along the gradient of the goal's loss, from the image itself.

    A state machine: ``Recipe(Mine(...))`` is what functions take.

    Attributes:
        slots: The class of the state.
        needs_gradient: Whether an evaluation has a backward pass.
        logits_only: Whether it moves towards goals on logits alone.
        ends_at_last: Whether its last iterate is the result, and that after k steps the result of k steps.
        sees_levels: Whether its trials are evaluated at their 8-bit versions.
        keeps_success: Whether a trial that reaches the goal is preferred to others, also by an attack that goes on.
    """

    slots: ClassVar[type[Any]]
    needs_gradient: ClassVar[bool] = True
    logits_only: ClassVar[bool] = False
    ends_at_last: ClassVar[bool] = False
    sees_levels: ClassVar[bool] = False
    keeps_success: ClassVar[bool] = False

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """The goal's loss."""
        return goal.loss(outputs, rows)

    def allocate(self, like: Tensor) -> S:
        """A state of ``len(like)`` idle slots in the layout of ``like``."""
        made: S = self.slots.allocate(like)
        return made

    def start(self, state: S, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots; nothing is drawn."""
        state.begin(slots, images)


class SmallestChange(SlotAttack[S]):
    """Shared by the attacks that look for the smallest perturbation themselves: their budget is the pixel range."""

    smallest: ClassVar[bool] = True
    budget: ClassVar[Box] = Box()


def seeks_smallest(attack: object) -> bool:
    """Whether an attack looks for the smallest change, so that an image which needs none is its own result."""
    return bool(getattr(attack, "smallest", False))


def sees_levels(attack: object) -> bool:
    """Whether an attack's trials are evaluated at their 8-bit versions."""
    return bool(getattr(attack, "sees_levels", False))


def most_steps(attack: Attack[Any]) -> int:
    """The most steps that an image can take, in all restarts together."""
    return attack.steps * int(getattr(attack, "restarts", 1))


def depends_on_success(attack: object) -> bool:
    """Whether an attack's result depends on which trials reach the goal."""
    names = ("smallest", "stop_at_success", "keeps_success")
    return any(bool(getattr(attack, name, False)) for name in names)
