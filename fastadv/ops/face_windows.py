"""What a face detector computes beside its networks: summed pictures and resampled windows.

On a CPU one compiled call each, else PyTorch operations: the same bits. Without derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.core.errors import ArgumentError
from fastadv.ops import checks, native_only


def summed_area_(picture: Tensor, table: Tensor, *, backend: str | None = None) -> None:
    """Fill the summed-area table of a picture: at (y, x) the sums of the pixels above y and left of x, modulo 2^32.

    Args:
        picture: (H, W, 3) uint8.
        table: ((H + 1) (W + 1), 4) int32, contiguous; the last number of each four becomes 0.
        backend: ``"reference"`` or ``"cpu"``; None for the fastest that can run.

    Raises:
        TypeError, ValueError: An argument has another type or shape.
        BackendUnavailable: The backend that was named cannot run here.
    """
    checks.tensor_of("picture", picture, (torch.uint8,))
    checks.tensor_of("table", table, (torch.int32,))
    if picture.dim() != 3 or picture.shape[2] != 3:
        raise ArgumentError(f"picture: expected shape (H, W, 3), got {tuple(picture.shape)}")
    height, width = picture.shape[:2]
    if table.shape != ((height + 1) * (width + 1), 4) or not table.is_contiguous():
        raise ArgumentError(
            f"table: expected {(height + 1) * (width + 1)} contiguous rows of 4, got {tuple(table.shape)}"
        )
    if native_only.chosen("cpu_summed_area", "summed_area_", (table, picture), backend):
        own = picture.contiguous()
        _native.module().cpu_summed_area(own.data_ptr(), table.data_ptr(), height, width, *backends.on_cpu())
        return
    sums = table.zero_().view(height + 1, width + 1, 4)[..., :3]
    sums[1:, 1:] = picture.to(table.device)
    sums.cumsum_(0).cumsum_(1)


def area_means(
    table: Tensor, windows: Tensor, size: tuple[int, int], rows: range, *, backend: str | None = None
) -> Tensor:
    """Rectangles of pictures at one size: each cell the mean of the pixels that it touches, ``(x - 127.5) / 128``.

    Cell i of n covers the pixels from ``floor(i L / n)`` to ``ceil((i + 1) L / n)`` of a side of L pixels, as
    ``torch.nn.functional.interpolate(mode="area")`` does.

    Args:
        table: (pixels, 4) int32 summed-area tables of pictures, one behind the other: see ``summed_area_``.
        windows: (N, 6) int64: where the table of a rectangle's picture begins, and the pixels of a row of it; left,
            top, right and bottom, inside of the picture, not empty.
        size: Height and width of the results.
        rows: Which of the ``size[0]`` rows are computed.
        backend: ``"reference"`` or ``"cpu"``; None for the fastest that can run.

    Returns:
        (N, 3, rows, width) float32, channels last.

    Raises:
        TypeError, ValueError: An argument has another type or shape, or on a CPU: a window is not inside of its
            picture.
        BackendUnavailable: The backend that was named cannot run here.

    Source:
        Crow 1984, "Summed-area tables for texture mapping".
    """
    checks.rows("table", table, torch.int32, (None, 4))
    checks.rows("windows", windows, torch.int64, (None, 6))
    checks.on_device("windows", windows, table, "table")
    if min(size) < 1 or not 0 <= rows.start <= rows.stop <= size[0] or rows.step != 1:
        raise ArgumentError(f"rows: expected some of the rows of a size of at least 1, got {rows} of {size}")
    if not native_only.chosen("cpu_area_means", "area_means", (table, windows), backend):
        return _area_means(table, windows, size, rows)
    made = torch.empty((len(windows), len(rows), size[1], 3), dtype=torch.float32, device=table.device)
    if made.numel():
        sums, own = table.contiguous(), windows.contiguous()
        chosen = (len(sums), len(own), *size, rows.start, len(rows))
        addresses = (sums.data_ptr(), own.data_ptr(), made.data_ptr())
        _native.module().cpu_area_means(*addresses, *chosen, *backends.on_cpu())
    return made.permute(0, 3, 1, 2)


def _area_means(table: Tensor, windows: Tensor, size: tuple[int, int], rows: range) -> Tensor:
    left, top, right, bottom = windows[:, 2:].unbind(1)
    above, below = _edges(top, bottom, size[0], rows)
    before, behind = _edges(left, right, size[1], range(size[1]))
    first, stride = windows[:, :1], windows[:, 1:2]
    upper, lower, before, behind = (
        edges.to(torch.int32) for edges in (first + above * stride, first + below * stride, before, behind)
    )
    total = _read(table, lower, behind)
    total -= _read(table, lower, before)
    total -= _read(table, upper, behind)
    total += _read(table, upper, before)
    # row by row, each number with the share of its column: a row is long, a pixel is not
    shares = (1 / (128 * (behind - before))).repeat_interleave(4, dim=1)
    mean = total.float().mul_(shares[:, None]).mul_((1 / (below - above))[..., None]).sub_(127.5 / 128)
    return mean.view(*mean.shape[:2], -1, 4)[..., :3].permute(0, 3, 1, 2)


def _read(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The sums at corners, (N, rows, 4 columns)."""
    index = (rows[:, :, None] + columns[:, None]).flatten()
    # a pixel is four numbers, so that it is read as one of 16 bytes
    pixels = table.view(torch.complex128)[:, 0].index_select(0, index)
    return torch.view_as_real(pixels).view(torch.int32).view(*rows.shape, -1)


def _edges(begin: Tensor, end: Tensor, count: int, chosen: range) -> tuple[Tensor, Tensor]:
    """Where chosen ones of `count` cells between two coordinates begin and end, (N, chosen) each."""
    cells = torch.arange(chosen.start, chosen.stop, device=begin.device)
    length, begin = (end - begin)[:, None], begin[:, None]
    return begin + cells * length // count, begin + ((cells + 1) * length + count - 1) // count
