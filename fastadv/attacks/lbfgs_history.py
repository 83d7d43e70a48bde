"""The memory of L-BFGS-B, one an image: the last m pairs of steps and gradient changes, and their inner products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GROUP = 8  # images of one matrix product: a fixed shape, so that the bits do not depend on how many slots there are
_ALIGNMENT = 16  # float32 values of a cache line: rows that begin on one give the same bits wherever they lie
_CURVATURE = 1e-6  # smallest cosine of a pair that is kept, a few times the rounding of a float32 product
_VECTORS = 3  # that are multiplied with the pairs at a time


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Inner products of the pairs, from the newest to the oldest, ``(N, m, m)`` float64; 0 where there is no pair.

    Attributes:
        sy: ``s_i'y_j``.
        yy: ``y_i'y_j``.
        ss: ``s_i's_j``.
        held: ``(N, m)`` bool, which pairs there are.
        order: ``(N, m)`` int64, their places in the ring.
    """

    sy: Tensor
    yy: Tensor
    ss: Tensor
    held: Tensor
    order: Tensor


@dataclass(frozen=True, kw_only=True)
class History:
    """Fixed buffers for N images of D numbers and m pairs each; every pair's place is its image's own.

    The products among the pairs are kept and grow by one row and one column a step; what else a step needs of the
    pairs are their products with a few vectors (``products``), their products among themselves over the free
    variables only (``masked``), and one sum of them (``combine``).

    Attributes:
        pairs: ``(N', 2 (m + 1), W)`` float32: the steps s, then the changes y, each in a ring of which one place is
            spare; W is D and padding, and N' is N up to the next multiple of 8.
        new: ``(N', 3, W)``: where the caller writes vectors (``entry``).
        part: ``(8, 2 (m + 1) + 3, W)``: the pairs of 8 images, each with the variables that it is multiplied over.
        known: ``(N, 3, m + 1, m + 1)`` float64: ``s_i'y_j``, ``y_i'y_j`` and ``s_i's_j``.
        spare: ``(N,)`` int64, the place that the next pair goes to.
        count: ``(N,)`` int64, pairs held.
        offsets: ``(N,)`` int64, the row of ``pairs`` at which each image begins.
        ages: ``(m,)`` int64, 1 to m.
        width: D.

    Source: Byrd, Nocedal and Schnabel 1994, "Representations of quasi-Newton matrices and their use in limited memory
        methods".
    """

    pairs: Tensor
    new: Tensor
    part: Tensor
    known: Tensor
    spare: Tensor
    count: Tensor
    offsets: Tensor
    ages: Tensor
    width: int

    @staticmethod
    def allocate(count: int, width: int, size: int, device: torch.device) -> History:
        """Empty histories of ``size`` pairs for ``count`` images of ``width`` numbers."""
        padded = -(-width // _ALIGNMENT) * _ALIGNMENT
        rows, places = -(-count // _GROUP) * _GROUP, size + 1
        return History(
            pairs=torch.zeros(rows, 2 * places, padded, device=device),
            new=torch.zeros(rows, _VECTORS, padded, device=device),
            part=torch.zeros(_GROUP, 2 * places + _VECTORS, padded, device=device),
            known=torch.zeros(count, 3, places, places, dtype=torch.float64, device=device),
            spare=torch.zeros(count, dtype=torch.int64, device=device),
            count=torch.zeros(count, dtype=torch.int64, device=device),
            offsets=torch.arange(count, device=device) * (2 * places),
            ages=torch.arange(1, size + 1, device=device),
            width=width,
        )

    @property
    def entry(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where to write three vectors, each ``(N, D)``; for ``remember`` s, y and any third one."""
        a, b, c = self.new[: len(self.count), :, : self.width].unbind(1)
        return a, b, c

    def forget(self, mask: Tensor) -> None:
        """Drop the pairs of the images that the mask ``(N,)`` names."""
        self.count.masked_fill_(mask, 0)

    def remember(self, fresh: Tensor) -> Tensor:
        """Take in the pair (s, y) of the entry, where it is ``fresh`` and its curvature positive.

        Args:
            fresh: ``(N,)`` bool.

        Returns:
            ``(N, 2 (m + 1))`` float64, the products of the ring with the entry's third vector.
        """
        n, places = len(self.count), self.known.shape[-1]
        flat = self.pairs.view(-1, self.pairs.shape[2])
        flat.index_copy_(0, self.offsets + self.spare, self.new[:n, 0])
        flat.index_copy_(0, self.offsets + self.spare + places, self.new[:n, 1])
        seen = self.products()
        steps, changes = seen[:, :places], seen[:, places:]
        at = self.spare[:, None]
        here = torch.zeros_like(steps[..., 0], dtype=torch.bool).scatter_(1, at, True)
        row, col = here[:, :, None], here[:, None, :]
        sy, yy, ss = self.known.unbind(1)
        sy.copy_(torch.where(col, steps[..., 1, None], torch.where(row, changes[:, None, :, 0], sy)))
        yy.copy_(torch.where(col, changes[..., 1, None], torch.where(row, changes[:, None, :, 1], yy)))
        ss.copy_(torch.where(col, steps[..., 0, None], torch.where(row, steps[:, None, :, 0], ss)))
        own_ss, own_sy, own_yy = (part.gather(1, at)[:, 0] for part in (steps[..., 0], steps[..., 1], changes[..., 1]))
        good = fresh & (own_sy > _CURVATURE * (own_ss * own_yy).sqrt()) & (own_yy > 0)
        self.spare.add_(good).remainder_(places)
        self.count.add_(good).clamp_(max=places - 1)
        return seen[..., 2]

    def products(self) -> Tensor:
        """Of the ring with the entry's vectors, ``(N, 2 (m + 1), 3)`` float64."""
        groups = range(0, len(self.pairs), _GROUP)
        seen = [torch.bmm(self.pairs[g : g + _GROUP], self.new[g : g + _GROUP].transpose(1, 2)) for g in groups]
        return torch.cat(seen)[: len(self.count)].double()

    def masked(self, free: Tensor, held: Tensor) -> Tensor:
        """Of the steps over the held variables, of the changes over the free ones, and of the entry's vectors.

        Args:
            free: ``(N, D)`` float32, 1 for a free variable, else 0.
            held: ``(N, D)`` float32, 1 - ``free``.

        Returns:
            ``(N, 2 (m + 1) + 3, 2 (m + 1))`` float64, each multiplied with every row of the ring.
        """
        n, places = len(self.count), self.known.shape[-1]
        part, width = self.part, self.width
        seen = []
        for g in range(0, len(self.pairs), _GROUP):
            live = min(_GROUP, n - g)
            pairs = self.pairs[g : g + live, :, :width]
            torch.mul(pairs[:, :places], held[g : g + live, None], out=part[:live, :places, :width])
            torch.mul(pairs[:, places:], free[g : g + live, None], out=part[:live, places : 2 * places, :width])
            part[:, 2 * places :].copy_(self.new[g : g + _GROUP])
            seen.append(torch.bmm(part, self.pairs[g : g + _GROUP].transpose(1, 2)))
        return torch.cat(seen)[:n].double()

    def combine(self, weights: Tensor) -> Tensor:
        """Add the sum of the ring's rows, weighted ``(N, 2 (m + 1))``, to the entry's third vector, and return it."""
        n = len(self.count)
        padded = torch.nn.functional.pad(weights.float(), (0, 0, 0, len(self.pairs) - n))
        for g in range(0, len(self.pairs), _GROUP):
            group = slice(g, g + _GROUP)
            self.new[group, 2:].baddbmm_(padded[group, None], self.pairs[group])
        return self.new[:n, 2, : self.width]

    def tables(self) -> Tables:
        """The products among the pairs that are held, from the newest to the oldest."""
        n, _, places, _ = self.known.shape
        order = (self.spare[:, None] - self.ages).remainder(places)
        held = self.ages <= self.count[:, None]
        every = self.known.gather(2, order[:, None, :, None].expand(n, 3, -1, places))
        every = every.gather(3, order[:, None, None, :].expand(n, 3, places - 1, -1))
        both = (held[:, :, None] & held[:, None, :])[:, None]
        sy, yy, ss = torch.where(both, every, 0.0).unbind(1)
        return Tables(sy=sy, yy=yy, ss=ss, held=held, order=order)
