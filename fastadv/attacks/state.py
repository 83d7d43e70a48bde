"""What attacks remember for each slot: fields that are declared once, and allocated and reset by their declarations.

    class BouncingState(RowState):
        speed: Tensor = number(0.5)           one float32 a slot; every image begins with 0.5
        bounces: Tensor = integer()           begins with 0
        before: Tensor = row()                one float32 a pixel, which the attack writes before it reads it

    state = BouncingState.allocate(like)      every field, in the layout of ``like``; all slots are idle
    state.begin(slots, images)                new images; every field at its start

Tensors stay where they are for the life of the slots: a recorded tick writes to their addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv.attacks.per_image import as_rows, put_where, row_sum, rows_like

F = TypeVar("F", bound="SlotFields")


@dataclass(frozen=True, kw_only=True)
class Field:
    """The declaration of a field.

    Attributes:
        make: What all slots hold, zero, for images like these ``(N, 3, H, W)`` or their rows ``(N, D)``.
        start: What a slot holds when an image enters; None where the attack writes it before it reads it.
    """

    make: Callable[[Tensor], Any]
    start: float | None


def _declared(make: Callable[[Tensor], Any], start: float | None = None) -> Any:
    return field(metadata={"slot": Field(make=make, start=start)})


def number(start: float | None = 0.0, *, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = ()) -> Any:
    """A number of each slot, ``(N, *shape)``."""
    return _declared(lambda like: torch.zeros(len(like), *shape, dtype=dtype, device=like.device), start)


def integer(start: int | None = 0, *, shape: tuple[int, ...] = ()) -> Any:
    """An int64 of each slot."""
    return number(start, dtype=torch.int64, shape=shape)


def boolean(start: bool | None = False) -> Any:
    """A bool of each slot."""
    return number(start, dtype=torch.bool)


def row(start: float | None = None, *, dtype: torch.dtype = torch.float32) -> Any:
    """A row of each slot, ``(N, D)``."""
    return _declared(
        lambda like: torch.zeros(len(like), like.shape[1:].numel(), dtype=dtype, device=like.device), start
    )


def image(start: float | None = None, *, dtype: torch.dtype = torch.float32) -> Any:
    """An image of each slot, in the layout of the slots' images."""
    return _declared(lambda like: torch.zeros_like(like, dtype=dtype), start)


def part(make: Callable[[Tensor], Any]) -> Any:
    """What has fields of its own, such as ``Bracket.allocate``; the attack begins it by its own method."""
    return _declared(make)


@dataclass(frozen=True, kw_only=True)
class SlotFields:
    """Fields of N slots, each declared by one of the functions above; the tensors are written in place."""

    @classmethod
    def allocate(cls: type[F], like: Tensor, **given: Any) -> F:
        """Every field for ``len(like)`` slots on the device of ``like``; those ``given`` are taken as they are.

        A field whose shape depends on the attack is given; one without a declaration must be.
        """
        declared = {f.name: f.metadata["slot"] for f in fields(cls) if "slot" in f.metadata}
        return cls(**given, **{name: d.make(like) for name, d in declared.items() if name not in given})

    def reset(self, slots: Tensor) -> None:
        """Put every field to its start in the slots (int64 indices)."""
        for f in fields(self):
            declared, held = f.metadata.get("slot"), getattr(self, f.name)
            if declared is not None and declared.start is not None and held is not None:
                held[slots] = declared.start


@dataclass(frozen=True, kw_only=True)
class SlotState(SlotFields):
    """What the engine sees of every attack's state, which derives from it and declares its own fields.

    Attributes:
        trial: The images to evaluate next, ``(N, 3, H, W)`` float32.
        origin: The clean images, ``(N, 3, H, W)`` float32.
        active: ``(N,)`` bool; a slot that is not active is left as it is.
        ticks: ``(N,)`` int64: the evaluations that each image has consumed.
        stats: ``(N, 2)`` int64: non-finite and zero gradient elements met so far.
        query: ``(N, ...)``: what each slot asks of its goal, for the attack's ``objective``; or None.
    """

    trial: Tensor = image()
    origin: Tensor = image()
    active: Tensor = boolean(True)
    ticks: Tensor = integer()
    stats: Tensor = integer(shape=(2,))
    query: Tensor | None = None

    def begin(self, slots: Tensor, images: Tensor) -> None:
        """Put new images into the slots (int64 indices), active, with every field at its start."""
        self.origin[slots] = images
        self.trial[slots] = images
        self.reset(slots)


@dataclass(frozen=True, kw_only=True)
class RowState(SlotState):
    """That of an attack which takes its gradients as rows.

    Attributes:
        work: ``(N, D)`` for passing values, the gradient first.
        bad: ``(N, D)`` bool, the same.
    """

    work: Tensor = row()
    bad: Tensor = row(dtype=torch.bool)

    def finite_gradient(self, gradient: Tensor, active: Tensor | None = None) -> Tensor:
        """The rows of the gradient with 0 for what is not finite, in ``work``; counted in ``stats``.

        A row without any non-zero element adds D to the second column, others nothing: all that is asked of it is
        whether every gradient of an image was zero.

        Args:
            gradient: ``(N, 3, H, W)``.
            active: ``(N,)`` bool, the slots that count; None takes the active ones.
        """
        active = self.active if active is None else active
        rows = rows_like(gradient, self.trial)
        torch.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0, out=self.work)
        torch.ne(self.work, rows, out=self.bad)
        self.stats[:, 0].add_(row_sum(self.bad) * active)
        none = (rows.amax(1) == 0) & (rows.amin(1) == 0)
        self.stats[:, 1].add_((none & active) * rows.shape[1])
        return self.work


@dataclass(frozen=True, kw_only=True)
class NearestState(RowState):
    """That of an attack which keeps the nearest image that reached its goal.

    Attributes:
        best: ``(N, D)``, that image.
        distance: ``(N,)``, of it; inf before there is one.
    """

    best: Tensor = row()
    distance: Tensor = number(torch.inf)

    @property
    def has_best(self) -> Tensor:
        """Whether there is one, ``(N,)`` bool."""
        return torch.isfinite(self.distance)

    def keep_nearest(self, reached: Tensor, distance: Tensor) -> None:
        """Keep the trials that reached the goal, ``(N,)`` bool, where they are nearer than the best."""
        nearer = reached & (distance < self.distance)
        put_where(self.best, nearer, as_rows(self.trial))
        self.distance.copy_(torch.where(nearer, distance, self.distance))
