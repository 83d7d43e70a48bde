"""Means over rectangles of pictures: how MTCNN's pyramid and windows are resampled, many in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class SummedAreas:
    """The summed-area tables (Crow 1984) of 8-bit pictures of any sizes, in one tensor.

    With `T[y, x]` the sum of the pixels above y and left of x, the sum over a rectangle is
    `T[bottom, right] - T[bottom, left] - T[top, right] + T[top, left]`: four reads, whatever its size. The sums are
    kept modulo 2^32, which leaves the difference right for rectangles of up to 8.4 million pixels.
    """

    def __init__(
        self, pictures: Sequence[NDArray[np.uint8]], device: torch.device, *, each: Callable[..., Iterable[None]] = map
    ) -> None:
        """Sums up the pictures.

        Args:
            pictures: (H, W, 3) uint8 each.
            device: Where the tables are.
            each: Calls a function for each picture, as `map` does.
        """
        height, width = torch.tensor([picture.shape[:2] for picture in pictures]).unbind(1)
        counts = (height + 1) * (width + 1)
        ends = counts.cumsum(0)
        self.sizes = torch.stack((width, height), 1).to(device)
        self._first, self._stride = (ends - counts).to(device), (width + 1).to(device)
        # a pixel is four numbers, so that it is read as one of 16 bytes
        self._table = torch.zeros((int(ends[-1]), 4), dtype=torch.int32, device=device)
        places = zip(pictures, self._table.split(counts.tolist()), strict=True)
        list(each(lambda place: _sum_up(*place), places))

    def resampled(self, picture: Tensor, boxes: Tensor, size: tuple[int, int], rows: range | None = None) -> Tensor:
        """Rectangles of pictures at one size, each pixel the mean of the source pixels that it touches.

        Cell i of n covers the pixels from `floor(i L / n)` to `ceil((i + 1) L / n)` of a side of L pixels, as
        `interpolate(mode="area")` does.

        Args:
            picture: (N,) int64, which picture each is of.
            boxes: (N, 4) int64: left, top, right, bottom; inside of the picture, not empty.
            size: Height and width of the results.
            rows: Which of the `size[0]` rows are computed; all when None.

        Returns:
            (N, 3, rows, width) float32, channels last, `(x - 127.5) / 128`.
        """
        left, top, right, bottom = boxes.unbind(1)
        above, below = _edges(top, bottom, size[0], range(size[0]) if rows is None else rows)
        before, behind = _edges(left, right, size[1], range(size[1]))
        stride, first = self._stride[picture][:, None], self._first[picture][:, None]
        upper, lower, before, behind = (
            edges.to(torch.int32) for edges in (first + above * stride, first + below * stride, before, behind)
        )
        total = self._read(lower, behind)
        total -= self._read(lower, before)
        total -= self._read(upper, behind)
        total += self._read(upper, before)
        # row by row, each number with the share of its column: a row is long, a pixel is not
        shares = (1 / (128 * (behind - before))).repeat_interleave(4, dim=1)
        mean = total.float().mul_(shares[:, None]).mul_((1 / (below - above))[..., None]).sub_(127.5 / 128)
        return mean.view(*mean.shape[:2], -1, 4)[..., :3].permute(0, 3, 1, 2)

    def _read(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The sums at corners, (N, rows, 4 columns)."""
        index = (rows[:, :, None] + columns[:, None]).flatten()
        pixels = self._table.view(torch.complex128)[:, 0].index_select(0, index)
        return torch.view_as_real(pixels).view(torch.int32).view(*rows.shape, -1)


def _sum_up(picture: NDArray[np.uint8], table: Tensor) -> None:
    """Fill a table of zeros."""
    sums = table.view(picture.shape[0] + 1, picture.shape[1] + 1, 4)[..., :3]
    sums[1:, 1:] = torch.from_numpy(np.require(picture, np.uint8, ("C", "W"))).to(table.device)
    sums.cumsum_(0).cumsum_(1)


def _edges(begin: Tensor, end: Tensor, count: int, chosen: range) -> tuple[Tensor, Tensor]:
    """Where chosen ones of `count` cells between two coordinates begin and end, (N, chosen) each."""
    cells = torch.arange(chosen.start, chosen.stop, device=begin.device)
    length, begin = (end - begin)[:, None], begin[:, None]
    return begin + cells * length // count, begin + ((cells + 1) * length + count - 1) // count
