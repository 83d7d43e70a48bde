"""The pyramid that P-Net sees: its levels, and which box each of its windows is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

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

    @property
    def strips(self) -> list[range]:
        """Rows of windows that are scored at a time, so that memory does not grow with the picture."""
        rows = self.cells[0]
        step = max(1, _STRIP // (STRIDE * self.size[1]))
        return [range(begin, min(begin + step, rows)) for begin in range(0, rows, step)]

    def seen(self, strip: range) -> range:
        """The rows of pixels that a strip's windows see; below the last windows of a level one may be missing."""
        return range(STRIDE * strip.start, min(STRIDE * strip.stop + WINDOW - STRIDE, self.size[0]))


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


def boxes_of(cells: Tensor, scales: Tensor) -> Tensor:
    """P-Net's windows in the picture, (N, 4), by rows and columns, (N, 2), and the scales of their levels, (N,)."""
    corner = STRIDE * cells.flip(1).float()
    return torch.cat(((corner + 1) / scales[:, None], (corner + WINDOW) / scales[:, None]), 1).floor()
