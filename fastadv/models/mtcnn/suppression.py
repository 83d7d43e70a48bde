"""Greedy non-maximum suppression in tensors: no Python for a box, and the result of the plain loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 256  # boxes that are compared with the better ones of their group at a time
_REACH = 2  # cells of P-Net's grid


def overlap(first: Tensor, second: Tensor, *, of_smaller: bool = False) -> Tensor:
    """Intersection over union of boxes `(..., 4)` with broadcasting, or over the smaller of the two."""
    left, top, right, bottom = first.unbind(-1)
    other_left, other_top, other_right, other_bottom = second.unbind(-1)
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp_(min=0)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp_(min=0)
    common = width.mul_(height)
    area, other = (right - left) * (bottom - top), (other_right - other_left) * (other_bottom - other_top)
    return common / (torch.minimum(area, other) if of_smaller else area + other - common)


def nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, *, of_smaller: bool = False) -> Tensor:
    """Greedy suppression within groups: a box goes where a better one that stays overlaps it by more than `threshold`.

    Of equal scores the first counts as the better one.

    Args:
        boxes: (N, 4): left, top, right, bottom.
        scores: (N,).
        groups: (N,) int64: boxes of different groups do not see each other.
        threshold: Of `overlap`.
        of_smaller: As `overlap`.

    Returns:
        The indices of those that stay, by group, the best first.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    boxes, groups = boxes[order], groups[order]
    first = torch.searchsorted(groups, groups)  # of each box's group
    pairs = [torch.zeros((2, 0), dtype=torch.int64, device=boxes.device)]
    for begin in range(0, len(order), _BLOCK):
        end, low = min(begin + _BLOCK, len(order)), int(first[begin])
        much = overlap(boxes[begin:end, None], boxes[None, low:end], of_smaller=of_smaller) > threshold
        better = torch.arange(low, end, device=boxes.device)
        worse = torch.arange(begin, end, device=boxes.device)[:, None]
        much &= (better < worse) & (better >= first[begin:end, None])
        pairs.append(much.nonzero().T + torch.tensor([[begin], [low]], device=boxes.device))
    worse, better = torch.cat(pairs, 1)
    return order[_stay(len(order), better, worse)]


def nms_on_grid(
    cells: Tensor, boxes: Tensor, scores: Tensor, shapes: Sequence[tuple[int, int]], threshold: float = 0.5
) -> Tensor:
    """`nms` of boxes that P-Net makes of the cells of its grids, one for each scale, which need few comparisons.

    With s <= 1 the scale, the box of cell x is `floor((2 x + 1) / s)` to `floor((2 x + 12) / s)`, 11 / s wide but for
    1. At a distance of three cells less than 5 / s + 1 of it is common: at most 0.6 of a box, and an IoU below 0.5. So
    only cells at most two away are compared.

    Args:
        cells: (N, 3) int64: grid, row, column; each once.
        boxes: (N, 4).
        scores: (N,).
        shapes: Rows and columns of each grid.
        threshold: Of the IoU, at least 0.5.

    Returns:
        The indices of those that stay, ascending.
    """
    own = torch.arange(len(cells), device=cells.device)
    sizes = torch.tensor(shapes, device=cells.device) + 2 * _REACH  # with cells around them that hold nothing
    counts = sizes.prod(1)
    grid, row, column = cells.T
    line = sizes[grid, 1]
    place = (counts.cumsum(0) - counts)[grid] + (row + _REACH) * line + column + _REACH
    at = torch.full((int(counts.sum()),), -1, device=cells.device)
    at[place] = own
    side = torch.arange(-_REACH, _REACH + 1, device=cells.device)
    near = at[place[:, None] + side.repeat_interleave(len(side)) * line[:, None] + side.repeat(len(side))]
    ahead = (scores[near] > scores[:, None]) | ((scores[near] == scores[:, None]) & (near < own[:, None]))
    worse, where = (ahead & (near >= 0)).nonzero().T
    better = near[worse, where]
    much = overlap(boxes[worse], boxes[better]) > threshold
    return _stay(len(cells), better[much], worse[much])


def _stay(count: int, better: Tensor, worse: Tensor) -> Tensor:
    """Which boxes stay, by the pairs of which the better one, if it stays, removes the worse one.

    After k rounds every box is decided whose longest chain of better ones has k of them: the fixed point, which has no
    other, is what the greedy loop gives.
    """
    stays = torch.ones(count, dtype=torch.bool, device=better.device)
    while True:
        left = torch.ones_like(stays)
        left[worse[stays[better]]] = False
        if torch.equal(left, stays):
            return stays.nonzero()[:, 0]
        stays = left
