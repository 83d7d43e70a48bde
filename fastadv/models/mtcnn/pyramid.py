"""The pyramid that P-Net sees: its levels, and which box each of its windows is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fastadv.models.mtcnn.networks import pnet_cells

WINDOW, STRIDE = 12, 2  # of P-Net
_STRIP = 2**18  # pixels of a level that P-Net sees at a time


@dataclass(frozen=True, kw_only=True)
class Level:
    """A level of the pyramid of pictures of one size.

    Attributes:
        height: Of the pictures.
        width: The same.
        scale: Of the level.
    """

    height: int
    width: int
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """Its height and width."""
        return int(self.height * self.scale + 1), int(self.width * self.scale + 1)

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of P-Net's windows."""
        return pnet_cells(self.size[0]), pnet_cells(self.size[1])


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What P-Net sees in one pass: a level, or small levels side by side.

    Attributes:
        levels: Of the pyramid of pictures of one size.
        corners: Row and column of the upper left pixel of each, even numbers. Between the windows of two levels are at
            least five that lie in neither, more than :func:`nms_on_grid` looks across.
        size: Height and width.
    """

    levels: tuple[Level, ...]
    corners: tuple[tuple[int, int], ...]
    size: tuple[int, int]

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of P-Net's windows, those between the levels too."""
        return pnet_cells(self.size[0]), pnet_cells(self.size[1])

    @property
    def strips(self) -> list[range]:
        """Rows of windows that are scored at a time, so that memory does not grow with the picture."""
        rows = self.cells[0]
        step = max(1, _STRIP // (STRIDE * self.size[1])) if len(self.levels) == 1 else rows
        return [range(begin, min(begin + step, rows)) for begin in range(0, rows, step)]

    def seen(self, strip: range) -> range:
        """The rows of pixels that a strip's windows see; below the last windows of a level one may be missing."""
        return range(STRIDE * strip.start, min(STRIDE * strip.stop + WINDOW - STRIDE, self.size[0]))

    @property
    def fences(self) -> list[tuple[slice, slice]]:
        """Rows and columns of what the first convolution gives that lie behind a level's last one, which has no pair.

        P-Net takes the maximum of pairs; a level alone ends there.
        """
        if len(self.levels) == 1:
            return []
        found = []
        for level, (top, left) in zip(self.levels, self.corners, strict=True):
            bottom, right = top + level.size[0], left + level.size[1]
            if level.size[0] % 2:
                found.append((slice(bottom - 2, bottom - 1), slice(left, right)))
            if level.size[1] % 2:
                found.append((slice(top, bottom), slice(right - 2, right - 1)))
        return found

    def level_at(self, strip: range) -> Tensor:
        """Which level each window of a strip is of, (rows, columns) int64, or -1 between the levels."""
        if len(self.levels) == 1:
            return torch.zeros((len(strip), self.cells[1]), dtype=torch.int64)
        owner = np.full(self.cells, -1)
        for k, (level, (top, left)) in enumerate(zip(self.levels, self.corners, strict=True)):
            top, left = top // STRIDE, left // STRIDE
            owner[top : top + level.cells[0], left : left + level.cells[1]] = k
        return torch.from_numpy(owner[strip.start : strip.stop])

    def boxes(self, cells: Tensor, level: Tensor) -> Tensor:
        """The windows in the picture, (N, 4), by their rows and columns on the sheet, (N, 2), and their levels."""
        scale = torch.tensor([level.scale for level in self.levels], device=cells.device)[level][:, None]
        corner = STRIDE * cells - torch.tensor(self.corners, device=cells.device)[level]
        corner = corner.flip(1).float()
        return torch.cat((((corner + 1) / scale).floor(), ((corner + WINDOW) / scale).floor()), 1)


def levels_of(height: int, width: int, *, scale: float, factor: float) -> list[Level]:
    """From `scale` to the last level whose smaller side is no smaller than P-Net's window."""
    levels = []
    least = min(height, width) * scale
    while least >= WINDOW:
        levels.append(Level(height=height, width=width, scale=scale))
        scale, least = scale * factor, least * factor
    return levels


def may_overlap(levels: list[Level], threshold: float) -> bool:
    """Whether boxes of two levels can have an IoU above `threshold`, where those of one level cannot.

    A box is 11 / scale wide but for 1, so that the IoU is at most the square of the ratio of the widths.
    """
    side = WINDOW - 1
    ratios = ((side / one.scale + 1) / (side / other.scale - 1) for one, other in pairwise(levels))
    return any(ratio**2 > threshold for ratio in ratios)


def sheets_of(levels: Sequence[Level], least: int) -> list[Sheet]:
    """Levels of at least so many pixels alone, and the smaller ones together."""
    small = [level for level in levels if level.size[0] * level.size[1] < least]
    alone = [Sheet(levels=(level,), corners=((0, 0),), size=level.size) for level in levels[: len(levels) - len(small)]]
    if len(small) < 2:
        return alone + [Sheet(levels=(level,), corners=((0, 0),), size=level.size) for level in small]
    corners, size = _side_by_side(
        [(height + height % 2, width + width % 2) for height, width in (s.size for s in small)]
    )
    return [*alone, Sheet(levels=tuple(small), corners=tuple(corners), size=size)]


def _side_by_side(sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Corners of rectangles, the largest first, in one that is as high as the first, and its size.

    Each goes into the smallest free rectangle that holds it, or else to the right of all.
    """
    corners: list[tuple[int, int]] = []
    free: list[tuple[int, int, int, int]] = []  # height, width, row, column
    total = 0
    for height, width in sizes:
        fitting = [place for place in free if place[0] >= height and place[1] >= width]
        if fitting:
            chosen = min(fitting, key=lambda place: place[0] * place[1])
            free.remove(chosen)
        else:
            chosen = (sizes[0][0], width, 0, total)
            total += width
        high, wide, row, column = chosen
        free += [(high - height, width, row + height, column), (high, wide - width, row, column + width)]
        corners.append((row, column))
    return corners, (sizes[0][0], total)
