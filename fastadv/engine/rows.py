"""What each slot is compared with: written when an image enters, read at every evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks import Goal, Rows
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.engine.job import InFlight
from fastadv.surrogates import BoundSurrogate


@dataclass(frozen=True, kw_only=True)
class SlotRows:
    """One row a slot, in buffers that never move.

    Attributes:
        ids: ``(N,)`` int64, the numbers that key the images' random draws.
        label: Class indices ``(N,)`` int64, or None.
        references: Unit embeddings or a layer's features ``(N, D_k)``, one tensor a network of the surrogate; empty
            where they are not stored.
        targets: The images to compare with, ``(N, 3, H, W)``, where they are embedded at every evaluation; or None.
    """

    ids: Tensor
    label: Tensor | None
    references: tuple[Tensor, ...]
    targets: Tensor | None

    @staticmethod
    def build(goal: Goal, surrogate: BoundSurrogate, trial: Tensor, width: int) -> SlotRows:
        """Buffers for the slots of ``trial``; ``width`` is the length of the attacked model's output."""
        n, device = len(trial), trial.device
        ids = torch.zeros(n, dtype=torch.int64, device=device)
        label = None if goal.labels is None else torch.zeros(n, dtype=torch.int64, device=device)
        if goal.references is None and not goal.own_reference:
            return SlotRows(ids=ids, label=label, references=(), targets=None)
        if surrogate.stochastic:
            return SlotRows(ids=ids, label=label, references=(), targets=torch.zeros_like(trial))
        if len(surrogate.members) > 1 and goal.output != "embedding":
            raise ArgumentError(
                "goal: expected one on embeddings, which every model of an ensemble has, got one on "
                f"{brief(goal.output)}"
            )
        widths = (width, *(member.model.embedding_size for member in surrogate.members[1:]))
        references = tuple(torch.zeros(n, w, device=device) for w in widths)
        return SlotRows(ids=ids, label=label, references=references, targets=None)

    def put(self, slots: Tensor, entered: Sequence[InFlight]) -> None:
        """Write the rows of new images."""
        self.ids[slots] = torch.tensor([e.job.id for e in entered], dtype=torch.int64, device=self.ids.device)
        if self.label is not None:
            self.label[slots] = torch.tensor([e.label for e in entered], device=self.ids.device)
        for k, buffer in enumerate(self.references):
            rows = [e.reference if k == 0 else e.others[k - 1] for e in entered]
            buffer[slots] = torch.stack([row for row in rows if row is not None])
        if self.targets is not None:
            self.targets[slots] = torch.stack([e.target for e in entered if e.target is not None])

    def of(self, member: int, part: slice, fresh: Tensor | None) -> Rows:
        """The rows of some slots for one network; ``fresh`` embeddings take the place of stored ones."""
        reference = fresh
        if fresh is None and self.references:
            reference = self.references[member][part]
        return Rows(reference=reference, label=None if self.label is None else self.label[part])
