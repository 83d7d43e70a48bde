"""Means over rectangles of pictures: how MTCNN's pyramid and windows are resampled, many in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.ops.face_windows import area_means, summed_area_


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
        self._placed = torch.stack((ends - counts, width + 1), 1).to(device)
        # a pixel is four numbers, so that it is read as one of 16 bytes
        self._table = torch.empty((int(ends[-1]), 4), dtype=torch.int32, device=device)
        places = zip(pictures, self._table.split(counts.tolist()), strict=True)
        list(each(lambda place: _sum_up(*place), places))

    def windows(self, picture: Tensor, boxes: Tensor) -> Tensor:
        """Rectangles of pictures, (N, 6), as `area_means` takes them.

        Args:
            picture: (N,) int64, which picture each is of.
            boxes: (N, 4) int64: left, top, right, bottom; inside of the picture, not empty.
        """
        return torch.cat((self._placed[picture], boxes), 1)

    def resampled(self, windows: Tensor, size: tuple[int, int], rows: range | None = None) -> Tensor:
        """Rectangles of pictures at one size, each pixel the mean of the source pixels that it touches: `area_means`.

        Args:
            windows: Of `windows`.
            size: Height and width of the results.
            rows: Which of the `size[0]` rows are computed; all when None.

        Returns:
            (N, 3, rows, width) float32, channels last, `(x - 127.5) / 128`.
        """
        return area_means(self._table, windows, size, range(size[0]) if rows is None else rows)


def _sum_up(picture: NDArray[np.uint8], table: Tensor) -> None:
    summed_area_(torch.from_numpy(np.require(picture, np.uint8, ("C", "W"))), table)
