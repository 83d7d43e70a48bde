"""The memory of L-BFGS-B, one an image: the last m pairs of steps and gradient changes, and their inner products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_GROUP = 8  # images of one matrix product: a fixed shape, so that the bits do not depend on how many slots there are
_ALIGNMENT = 16  # float32 values of a cache line: rows that begin on one give the same bits wherever they lie


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
    pairs are their products with a few vectors (``products``), their products among themselves over some of the
    variables (``masked``), and one sum of them (``combine``).

    Attributes:
        rows: ``(2 m N' + 1, W)`` float32: of every image the steps s, then the changes y, each in a ring; and a row for
            what is not kept. W is D and padding, and N' is N up to the next multiple of 8.
        new: ``(N', 3, W)``: where the caller writes vectors (``entry``).
        part: ``(8, 2 m, W)``: the pairs of 8 images, each over the variables that count.
        known: ``(N, 3, m, m)`` float64: ``s_i'y_j``, ``y_i'y_j`` and ``s_i's_j``.
        place: ``(N,)`` int64, that the next pair goes to.
        count: ``(N,)`` int64, pairs held.
        offsets: ``(N,)`` int64, the row at which each image begins.
        ages: ``(m,)`` int64, 1 to m.
        width: D.

    Source: Byrd, Nocedal and Schnabel 1994, "Representations of quasi-Newton matrices and their use in limited memory
        methods".
    """

    rows: Tensor
    new: Tensor
    part: Tensor
    known: Tensor
    place: Tensor
    count: Tensor
    offsets: Tensor
    ages: Tensor
    width: int

    @staticmethod
    def allocate(count: int, width: int, size: int, device: torch.device) -> History:
        """Empty histories of ``size`` pairs for ``count`` images of ``width`` numbers."""
        padded = -(-width // _ALIGNMENT) * _ALIGNMENT
        images = -(-count // _GROUP) * _GROUP
        return History(
            rows=torch.zeros(2 * size * images + 1, padded, device=device),
            new=torch.zeros(images, 3, padded, device=device),
            part=torch.zeros(_GROUP, 2 * size, padded, device=device),
            known=torch.zeros(count, 3, size, size, dtype=torch.float64, device=device),
            place=torch.zeros(count, dtype=torch.int64, device=device),
            count=torch.zeros(count, dtype=torch.int64, device=device),
            offsets=torch.arange(count, device=device) * (2 * size),
            ages=torch.arange(1, size + 1, device=device),
            width=width,
        )

    @property
    def pairs(self) -> Tensor:
        """``(N', 2 m, W)``, the rows of each image."""
        return self.rows[:-1].view(len(self.new), -1, self.rows.shape[1])

    @property
    def entry(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where to write three vectors, each ``(N, D)``; for ``remember`` s, y and any third one."""
        a, b, c = self.new[: len(self.count), :, : self.width].unbind(1)
        return a, b, c

    def clear(self, slots: Tensor) -> None:
        """Begin anew in the slots (indices): sums of pairs are rounded by their places, which are those of any slot."""
        self.count[slots] = 0
        self.place[slots] = 0

    def forget(self, mask: Tensor) -> None:
        """Drop the pairs of the images that the mask ``(N,)`` names."""
        self.count.masked_fill_(mask, 0)

    def remember(self, good: Tensor) -> Tensor:
        """Take in the pair (s, y) of the entry where it is ``good``: of positive curvature.

        Args:
            good: ``(N,)`` bool.

        Returns:
            ``(N, 2 m, 1)`` float64, the products of the ring with the entry's third vector.
        """
        n, size = len(self.count), self.known.shape[-1]
        at = self.offsets + self.place
        self.rows.index_copy_(0, torch.where(good, at, len(self.rows) - 1), self.new[:n, 0])
        self.rows.index_copy_(0, torch.where(good, at + size, len(self.rows) - 1), self.new[:n, 1])
        seen = self.products(3)
        by_s, by_y = seen[:, :size], seen[:, size:]
        here = torch.zeros_like(by_s[..., 0], dtype=torch.bool).scatter_(1, self.place[:, None], good[:, None])
        row, col = here[:, :, None], here[:, None, :]
        for known, down, across in (
            (self.known[:, 0], by_s[..., 1], by_y[..., 0]),
            (self.known[:, 1], by_y[..., 1], by_y[..., 1]),
            (self.known[:, 2], by_s[..., 0], by_s[..., 0]),
        ):
            known.copy_(torch.where(col, down[:, :, None], torch.where(row, across[:, None, :], known)))
        self.place.add_(good).remainder_(size)
        self.count.add_(good).clamp_(max=size)
        return seen[..., 2:]

    def products(self, vectors: int) -> Tensor:
        """Of the ring with the first vectors of the entry, ``(N, 2 m, vectors)`` float64."""
        pairs, new = self.pairs.mT, self.new[:, :vectors]
        groups = [slice(g, g + _GROUP) for g in range(0, len(pairs), _GROUP)]
        return torch.cat([torch.bmm(new[g], pairs[g]) for g in groups])[: len(self.count)].double().mT

    def masked(self, free: Tensor, held: Tensor) -> Tensor:
        """Of the steps over the held variables, and of the changes over the free ones, with every row of the ring.

        Args:
            free: ``(N, D)`` float32, 1 for a free variable, else 0.
            held: ``(N, D)`` float32, 1 - ``free``.

        Returns:
            ``(N, 2 m, 2 m)`` float64.
        """
        n, size = len(self.count), self.known.shape[-1]
        seen = []
        for g in range(0, len(self.new), _GROUP):
            live, pairs = min(_GROUP, n - g), self.pairs[g : g + _GROUP]
            part, every = self.part[:live, :, : self.width], pairs[:live, :, : self.width]
            torch.mul(every[:, :size], held[g : g + live, None], out=part[:, :size])
            torch.mul(every[:, size:], free[g : g + live, None], out=part[:, size:])
            seen.append(torch.bmm(self.part, pairs.mT))
        return torch.cat(seen)[:n].double()

    def combine(self, weights: Tensor) -> Tensor:
        """Add the sum of the ring's rows, weighted ``(N, 2 m)``, to the entry's third vector, and return it."""
        n, pairs = len(self.count), self.pairs
        padded = F.pad(weights.float(), (0, 0, 0, len(self.new) - n))
        for g in range(0, len(self.new), _GROUP):
            group = slice(g, g + _GROUP)
            self.new[group, 2:].baddbmm_(padded[group, None], pairs[group])
        return self.new[:n, 2, : self.width]

    def tables(self) -> Tables:
        """The products among the pairs that are held, from the newest to the oldest."""
        n, _, size, _ = self.known.shape
        order = (self.place[:, None] - self.ages).remainder(size)
        held = self.ages <= self.count[:, None]
        every = self.known.gather(2, order[:, None, :, None].expand(n, 3, -1, size))
        every = every.gather(3, order[:, None, None, :].expand(n, 3, size, -1))
        both = (held[:, :, None] & held[:, None, :])[:, None]
        sy, yy, ss = torch.where(both, every, 0.0).unbind(1)
        return Tables(sy=sy, yy=yy, ss=ss, held=held, order=order)
