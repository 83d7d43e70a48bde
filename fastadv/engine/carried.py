"""What the engine keeps of a goal for each image, part by part: of a batch, of one image, and of the slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks import Rows


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What one part of a goal (``Goal.parts``) has of each image of a batch, or of one image: then without the N.

    Attributes:
        reference: Unit embeddings or a layer's features ``(N, D)`` by the attacked model, or None.
        others: Unit embeddings ``(N, D_k)`` by the surrogate's further networks, where they are computed once.
        target: The images ``(N, 3, H, W)`` that are embedded at every evaluation, or None.
        label: Class indices ``(N,)`` int64, or None.
    """

    reference: Tensor | None = None
    others: tuple[Tensor, ...] = ()
    target: Tensor | None = None
    label: Tensor | None = None

    def row(self, index: int) -> Carried:
        """What belongs to one image of the batch."""
        return Carried(
            reference=None if self.reference is None else self.reference[index],
            others=tuple(each[index] for each in self.others),
            target=None if self.target is None else self.target[index],
            label=None if self.label is None else self.label[index],
        )

    def put(self, slots: Tensor, new: Sequence[Carried]) -> None:
        """Write one image's each into slots of these buffers; what has no buffer is left out."""
        for k, buffer in enumerate((self.reference, self.target, self.label, *self.others)):
            if buffer is not None:
                given = [(one.reference, one.target, one.label, *one.others)[k] for one in new]
                buffer[slots] = torch.stack([each for each in given if each is not None])

    def rows(self, part: slice, member: int, embed: Callable[[Tensor], Tensor]) -> Rows:
        """Of some slots for one network of the surrogate; ``embed`` embeds what is embedded at every evaluation."""
        reference = None
        if self.target is not None:
            reference = embed(self.target[part])
        elif self.reference is not None:
            reference = (self.reference, *self.others)[member][part]
        return Rows(reference=reference, label=self._labels(part))

    def bare_rows(self, part: slice) -> Rows:
        """Of some slots for the attacked model without masks."""
        reference = None if self.reference is None else self.reference[part]
        return Rows(reference=reference, label=self._labels(part))

    def _labels(self, part: slice) -> Tensor | None:
        return None if self.label is None else self.label[part]


def rows_of(rows: Sequence[Carried]) -> Rows:
    """The rows of one part of a goal for several images, by the attacked model."""
    references = [one.reference for one in rows if one.reference is not None]
    labels = [one.label for one in rows if one.label is not None]
    return Rows(
        reference=torch.stack(references) if references else None, label=torch.stack(labels) if labels else None
    )


def together(parts: Sequence[Rows]) -> Rows:
    """The rows of a goal: those of its only part, or of its several."""
    return parts[0] if len(parts) == 1 else Rows(parts=tuple(parts))
