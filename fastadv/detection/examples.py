"""Natural and adversarial embeddings to fit a detector on, and which of them a step sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.fields import check_type
from fastadv.detection.representatives import check_names
from fastadv.ops import checks, philox

# Of the counter-based generator: independent of what attacks and trainings draw with the same seed.
_DRAW_LAYER, _SPLIT_LAYER = 3000, 3001
_ROWS = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Embeddings of images, and what was done to each.

    Attributes:
        embeddings: ``(N, L, K)`` or, with the reading ``relative``, ``(N, L, 5)`` float32, finite. They may lie in a
            memory-mapped file: they are read in parts.
        groups: ``(N,)`` int64, on the CPU: 0 for a natural image, g for one made by ``attacks[g - 1]``; -1, -2, ... for
            natural images of further kinds, such as changed ones.
        attacks: the names of the attacks.

    Raises:
        TypeError, ValueError: a field has the wrong type, shape or value; no image of a group.
    """

    embeddings: Tensor
    groups: Tensor
    attacks: tuple[str, ...]

    def __post_init__(self) -> None:
        value = self.embeddings
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            came = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentTypeError(f"embeddings: expected a torch.float32 tensor, got {came}")
        if value.dim() != 3 or 0 in value.shape:
            raise ArgumentError(f"embeddings: expected shape (N, L, K), none of them 0, got {tuple(value.shape)}")
        check_type("groups", self.groups, Tensor, "a torch.Tensor")
        checks.per_image("groups", self.groups, value.new_empty((len(value), 0), device="cpu"), torch.int64)
        check_names("attacks", self.attacks)
        first, last = int(self.groups.min()), int(self.groups.max())
        if first <= -len(value) or last > len(self.attacks):
            raise ArgumentError(f"groups: expected at most {len(self.attacks)}, and no gaps, got {first} to {last}")
        further = (f"natural kind {kind}" for kind in range(self.kinds - 1, 0, -1))
        names = (*further, "natural", *self.attacks)
        missing = [n for n, count in zip(names, self.counts.tolist(), strict=True) if not count]
        if missing:
            raise ArgumentError(f"groups: expected one or more images of each, got none of {', '.join(missing)}")
        if not all(bool(part.isfinite().all()) for part in value.split(_ROWS)):
            raise ArgumentError("embeddings: expected finite values, got NaN or infinity")

    def __len__(self) -> int:
        """How many there are."""
        return len(self.embeddings)

    @property
    def kinds(self) -> int:
        """How many kinds of natural images there are."""
        return 1 - min(0, int(self.groups.min()))

    @property
    def counts(self) -> Tensor:
        """Images of every group ``(kinds + attacks,)``, in the order of their numbers."""
        return torch.bincount(self.groups + self.kinds - 1, minlength=self.kinds + len(self.attacks))

    def split(self, sources: Tensor, *, share: float = 0.2, seed: int = 0) -> tuple[Examples, Examples]:
        """Set a share of the sources aside, with all that was made of each.

        An image and its adversarial versions share a source (or a person's images do), so that none of them is on both
        sides.

        Args:
            sources: ``(N,)`` int64, what each example was made from.
            share: of the sources, rounded, one at least.
            seed: of the choice.

        Returns:
            The rest, and what was set aside.

        Raises:
            TypeError, ValueError: an argument is of the wrong type or value, or one side lacks a group.
        """
        checks.tensor("sources", sources)
        checks.per_image("sources", sources, self.groups, torch.int64)
        distinct, place = sources.unique(return_inverse=True)
        if not 0 < share < 1 or len(distinct) < 2:
            raise ArgumentError(
                f"share: expected a number in (0, 1), of two or more, got {share} of {len(distinct)} sources"
            )
        away = min(len(distinct) - 1, max(1, round(share * len(distinct))))
        keys = philox.words(seed, distinct, 0, _SPLIT_LAYER, 1)[:, 0]
        chosen = torch.zeros(len(distinct), dtype=torch.bool)
        chosen[keys.argsort(stable=True)[:away]] = True
        return self._take(~chosen[place]), self._take(chosen[place])

    def parts(self, count: int) -> tuple[Examples, ...]:
        """The same with the columns of each part: the numbers of a layer, cut into so many of one width."""
        return tuple(replace(self, embeddings=part.contiguous()) for part in self.embeddings.chunk(count, dim=2))

    def digest(self) -> str:
        """SHA-256 of everything, to know the same examples again."""
        made = hashlib.sha256(repr((tuple(self.embeddings.shape), self.attacks)).encode())
        made.update(self.groups.contiguous().numpy().tobytes())
        for part in self.embeddings.split(_ROWS):
            made.update(part.detach().cpu().contiguous().numpy().tobytes())
        return made.hexdigest()

    def _take(self, chosen: Tensor) -> Examples:
        rows = chosen.nonzero()[:, 0]
        picked = self.embeddings[rows.to(self.embeddings.device)]
        return replace(self, embeddings=picked, groups=self.groups[rows])


class Sampler:
    """Draws rows with replacement: half natural, every kind alike often, half adversarial, every attack alike often.

    So an attack with more images is not seen more often. **Choice**: the paper balances the attacks and does not say
    how often natural images come; it has one kind of these.
    """

    def __init__(self, examples: Examples, seed: int) -> None:
        """Prepare to draw from these examples."""
        self.seed = seed
        self.rows = examples.groups.argsort(stable=True)
        self.kinds, self.counts = examples.kinds, examples.counts
        self.begins = self.counts.cumsum(0) - self.counts

    def draw(self, epoch: int, count: int) -> Tensor:
        """Rows ``(count,)`` int64: a function of seed, epoch and count alone."""
        words = philox.words(self.seed, torch.tensor([epoch]), 0, _DRAW_LAYER, 2 * count)[0].view(2, count)
        high, kinds, attacks = words[0] >> 1, self.kinds, len(self.counts) - self.kinds
        group = torch.where(words[0] & 1 == 0, high * kinds >> 31, kinds + (high * attacks >> 31))
        return self.rows[self.begins[group] + (words[1] * self.counts[group] >> 32)]


def balanced_mean(losses: Tensor, examples: Examples) -> float:
    """Mean of per-image losses ``(N,)``, weighted as :class:`Sampler` draws, in float64."""
    sums = torch.zeros(len(examples.counts), dtype=torch.float64)
    sums.index_add_(0, examples.groups + examples.kinds - 1, losses.double().cpu())
    means = sums / examples.counts
    return float(0.5 * means[: examples.kinds].mean() + 0.5 * means[examples.kinds :].mean())
