"""What each slot is compared with: written when an image enters, read at every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastadv.attacks import Attack, Budget, Goal, Linf, Rows, SlotState
from fastadv.attacks.attack import sees_levels
from fastadv.attacks.budget import to_levels
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.engine.carried import Carried, together
from fastadv.engine.job import InFlight
from fastadv.engine.transfers import to_device
from fastadv.surrogates import BoundSurrogate


@dataclass(frozen=True, kw_only=True)
class SlotRows:
    """One row a slot, in buffers that never move.

    Attributes:
        ids: ``(N,)`` int64, the numbers that key the images' random draws.
        parts: The buffers of each part of the goal: references, or the images that are embedded at every evaluation.
        budget: The attack's, where it is evaluated at 8-bit versions; else None.
        levels: ``(N, 3, H, W)`` each, the lowest and the highest grey level of each pixel, where such a budget bounds
            every pixel on its own; else None.
    """

    ids: Tensor
    parts: tuple[Carried, ...]
    budget: Budget | None
    levels: tuple[Tensor, Tensor] | None

    @staticmethod
    def build(attack: Attack[Any], goal: Goal, surrogate: BoundSurrogate, trial: Tensor, width: int) -> SlotRows:
        """Buffers for the slots of ``trial``; ``width`` is the length of the attacked model's output."""
        budget = attack.budget if sees_levels(attack) else None
        return SlotRows(
            ids=torch.zeros(len(trial), dtype=torch.int64, device=trial.device),
            parts=tuple(_buffers(part, goal, surrogate, trial, width) for part in goal.parts),
            budget=budget,
            levels=(torch.zeros_like(trial), torch.zeros_like(trial)) if isinstance(budget, Linf) else None,
        )

    def put(self, slots: Tensor, entered: Sequence[InFlight], images: Tensor) -> None:
        """Write the rows of new images."""
        self.ids[slots] = to_device(
            torch.tensor([e.job.id for e in entered], dtype=torch.int64, device="cpu"), self.ids.device
        )
        if self.levels is not None and isinstance(self.budget, Linf):
            for buffer, bound in zip(self.levels, self.budget.level_bounds(images), strict=True):
                buffer[slots] = bound
        for k, buffers in enumerate(self.parts):
            buffers.put(slots, [e.parts[k] for e in entered])

    def of(self, member: int, part: slice, embed: Callable[[Tensor], Tensor]) -> Rows:
        """The rows of some slots for one network; ``embed`` embeds the images that are embedded every time."""
        return together([each.rows(part, member, embed) for each in self.parts])

    def bare(self, part: slice) -> Rows:
        """The rows of some slots for the attacked model without masks."""
        return together([each.bare_rows(part) for each in self.parts])

    def evaluated(self, state: SlotState, part: slice) -> Tensor:
        """Of the trials of some slots, the images that the networks get: themselves, or their 8-bit versions."""
        trial = state.trial[part].detach()
        if self.budget is None:
            return trial
        if self.levels is None:
            return self.budget.round8(trial, state.origin[part])
        low, high = self.levels  # as `round8`, without finding the bounds of each pixel again
        return to_levels(trial, low[part], high[part])


def _buffers(part: Goal, goal: Goal, surrogate: BoundSurrogate, trial: Tensor, width: int) -> Carried:
    n, device = len(trial), trial.device
    label = None if part.labels is None else torch.zeros(n, dtype=torch.int64, device=device)
    if part.references is None and not part.own_reference:
        return Carried(label=label)
    if surrogate.stochastic:
        bare = None if surrogate.bare is None else torch.zeros(n, width, device=device)
        return Carried(label=label, target=torch.zeros_like(trial), reference=bare)
    if len(surrogate.members) > 1 and goal.output != "embedding":
        raise ArgumentError(
            f"goal: expected one on embeddings, which every model of an ensemble has, got one on {brief(goal.output)}"
        )
    widths = (width, *(member.model.embedding_size for member in surrogate.members[1:]))
    reference, *others = (torch.zeros(n, w, device=device) for w in widths)
    return Carried(label=label, reference=reference, others=tuple(others))
