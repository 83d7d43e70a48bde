"""The memory of L-BFGS, one an image: the last m pairs of steps and gradient changes, and the direction they give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.attacks.per_image import column

_GROUP = 8  # images of one matrix product: a fixed shape, so that the bits do not depend on how many slots there are
_ALIGNMENT = 16  # float32 values of a cache line: rows that begin on one give the same bits wherever they lie
_CURVATURE = 1e-6  # smallest cosine of a pair that is kept, a few times the rounding of a float32 product


@dataclass(frozen=True, kw_only=True)
class History:
    """Fixed buffers for N images of D numbers and m pairs each; every pair's place is its image's own.

    With the newest pair first, the direction is ``H q``, with H the BFGS update of ``gamma I``,
    ``gamma = s'y / y'y``, by the pairs from the oldest to the newest. The recursion of two loops needs the pairs
    only in inner products. Those among the pairs are kept and grow by one row and one column a step, so the pairs
    are read twice a step, whatever m: for the products with the new vectors, and for the sum that is the direction.

    A pair holds 0 wherever its mask was 0: it describes the curvature among the free variables.

    Attributes:
        pairs: ``(N', 2 (m + 1), W)`` float32: the steps s, then the changes y, each in a ring of which one place is
            spare; W is D and padding, and N' is N up to the next multiple of 8.
        new: ``(N', 3, W)``: where the caller writes s, y and q (``entry``).
        products: ``(N, 2, m + 1, m + 1)`` float64: ``s_i'y_j`` and ``y_i'y_j``.
        spare: ``(N,)`` int64, the place that the next pair goes to.
        count: ``(N,)`` int64, pairs held.
        offsets: ``(N,)`` int64, the row of ``pairs`` at which each image begins.
        ages: ``(m,)`` int64, 1 to m.
        width: D.

    Source: Nocedal 1980, "Updating quasi-Newton matrices with limited storage"; the products as in Chen et al. 2014,
        "Large-scale L-BFGS using MapReduce".
    """

    pairs: Tensor
    new: Tensor
    products: Tensor
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
            new=torch.zeros(rows, 3, padded, device=device),
            products=torch.zeros(count, 2, places, places, dtype=torch.float64, device=device),
            spare=torch.zeros(count, dtype=torch.int64, device=device),
            count=torch.zeros(count, dtype=torch.int64, device=device),
            offsets=torch.arange(count, device=device) * (2 * places),
            ages=torch.arange(1, size + 1, device=device),
            width=width,
        )

    @property
    def entry(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where to write s, y and q, each ``(N, D)``: the change of the point, minus that of the gradient to ascend,
        and that gradient at the new point."""
        s, y, q = self.new[: len(self.count), :, : self.width].unbind(1)
        return s, y, q

    def forget(self, mask: Tensor) -> None:
        """Drop the pairs of the images that the mask ``(N,)`` names."""
        self.count.masked_fill_(mask, 0)

    def direction(self, fresh: Tensor, *, out: Tensor) -> None:
        """Take in the new pair, where it is ``fresh`` and its curvature positive, and write ``H q``.

        Args:
            fresh: ``(N,)`` bool: whose ``entry`` holds a new pair.
            out: ``(N, D)`` float32, written; zeros for an image without pairs. The entry is used up.
        """
        n, places = len(self.count), self.pairs.shape[1] // 2
        flat = self.pairs.view(-1, self.pairs.shape[2])
        flat.index_copy_(0, self.offsets + self.spare, self.new[:n, 0])
        flat.index_copy_(0, self.offsets + self.spare + places, self.new[:n, 1])
        groups = range(0, len(self.pairs), _GROUP)
        seen = torch.cat([self._products(slice(g, g + _GROUP)) for g in groups])[:n].double()
        with_q = self._extend(fresh, seen)
        weights, gamma = (F.pad(part, (0, 0, 0, len(self.pairs) - n)) for part in self._recursion(with_q))
        self.new[:, 2].mul_(gamma)
        for g in groups:
            part = slice(g, g + _GROUP)
            self.new[part, 2:].baddbmm_(weights[part, None], self.pairs[part])
        out.copy_(self.new[:n, 2, : self.width])

    def _products(self, part: slice) -> Tensor:
        """Of the pairs of some images with s, y and q."""
        return torch.bmm(self.pairs[part], self.new[part].transpose(1, 2))

    def _extend(self, fresh: Tensor, seen: Tensor) -> Tensor:
        """Put the new pair's products into the tables, and count it in where it is good; returns those with q."""
        places = self.products.shape[-1]
        steps, changes = seen[:, :places], seen[:, places:]
        at = self.spare[:, None]
        here = torch.zeros_like(steps[..., 0], dtype=torch.bool).scatter_(1, at, True)
        row, col = here[:, :, None], here[:, None, :]
        sy, yy = self.products.unbind(1)
        sy.copy_(torch.where(col, steps[..., 1, None], torch.where(row, changes[:, None, :, 0], sy)))
        yy.copy_(torch.where(col, changes[..., 1, None], torch.where(row, changes[:, None, :, 1], yy)))
        ss, own_sy, own_yy = (part.gather(1, at)[:, 0] for part in (steps[..., 0], steps[..., 1], changes[..., 1]))
        good = fresh & (own_sy > _CURVATURE * (ss * own_yy).sqrt()) & (own_yy > 0)
        self.spare.add_(good).remainder_(places)
        self.count.add_(good).clamp_(max=places - 1)
        return seen[..., 2]

    def _recursion(self, with_q: Tensor) -> tuple[Tensor, Tensor]:
        """The two loops as two triangular systems; the weights of the rows ``(N, 2 (m + 1))`` and gamma ``(N, 1)``.

        With the pairs from the newest to the oldest, ``a`` of the first loop solves ``L a = S'q`` with L the lower
        triangle of ``S'Y``; ``c = a - b`` of the second solves ``L'c = D a - gamma (Y'q - Y'Y a)``.
        """
        n, _, places, _ = self.products.shape
        order = (self.spare[:, None] - self.ages).remainder(places)  # (N, m), newest first
        held = self.ages <= self.count[:, None]
        both = self.products.gather(2, order[:, None, :, None].expand(n, 2, -1, places))
        both = both.gather(3, order[:, None, None, :].expand(n, 2, places - 1, -1))
        sy, yy = both.unbind(1)
        pair = held[:, :, None] & held[:, None, :]
        lower = torch.where(pair, sy, 0.0).tril()
        diagonal = lower.diagonal(dim1=1, dim2=2)
        gamma = torch.where(held[:, :1], diagonal[:, :1] / yy[:, :1, 0], 0.0)
        lower = lower + torch.diag_embed(torch.where(held, 0.0, 1.0))
        sq = torch.where(held, with_q.gather(1, order), 0.0)
        yq = torch.where(held, with_q.gather(1, order + places), 0.0)
        a = torch.linalg.solve_triangular(lower, sq[:, :, None], upper=False)
        rest = (yq[:, :, None] - torch.where(pair, yy, 0.0) @ a) * gamma[:, :, None]
        b = diagonal[:, :, None] * a - rest
        c = torch.linalg.solve_triangular(lower.mT, b, upper=True)
        weights = torch.zeros_like(with_q)
        weights.scatter_(1, order, c[:, :, 0])
        weights.scatter_(1, order + places, -column(gamma[:, 0]) * a[:, :, 0])
        return weights.float(), gamma.float()
