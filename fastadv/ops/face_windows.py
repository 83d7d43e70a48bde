"""What a face detector computes beside its convolutions: summed pictures, resampled windows, pooled activations.

On a CPU one compiled call each, else PyTorch operations: the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv import _native, backends
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError


def summed_area_(picture: Tensor, table: Tensor, *, backend: str | None = None) -> None:
    """Fill the summed-area table of a picture: at (y, x) the sums of the pixels above y and left of x, modulo 2^32.

    Args:
        picture: (H, W, 3) uint8.
        table: ((H + 1) (W + 1), 4) int32, contiguous; the last number of each four is 0.
        backend: ``"reference"`` or ``"cpu"``; None for the fastest that can run.

    Raises:
        ValueError: The table has another size.
    """
    height, width = picture.shape[:2]
    if table.shape != ((height + 1) * (width + 1), 4):
        raise ArgumentError(f"table: expected {(height + 1) * (width + 1)} rows of 4, got {tuple(table.shape)}")
    if _use_native(table, "cpu_summed_area", backend):
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
        table: (pixels, 4) int32 summed-area tables of pictures: the sums of red, green and blue above and left of a
            pixel, modulo 2^32, and a number that is not read.
        windows: (N, 6) int64: where the table of a rectangle's picture begins, and the pixels of a row of it; left,
            top, right and bottom, inside of the picture, not empty.
        size: Height and width of the results.
        rows: Which of the ``size[0]`` rows are computed.
        backend: ``"reference"`` or ``"cpu"``; None for the fastest that can run.

    Returns:
        (N, 3, rows, width) float32, channels last.

    Raises:
        ValueError: The windows have another shape, or on a CPU: one is not inside of its picture.

    Source:
        Crow 1984, "Summed-area tables for texture mapping".
    """
    if windows.dim() != 2 or windows.shape[1] != 6:
        raise ArgumentError(f"windows: expected rows of 6, got shape {tuple(windows.shape)}")
    if not _use_native(table, "cpu_area_means", backend):
        return _area_means(table, windows, size, rows)
    made = torch.empty((len(windows), len(rows), size[1], 3))
    if made.numel():
        sums, own = table.contiguous(), windows.contiguous()
        chosen = (len(sums), len(own), *size, rows.start, len(rows))
        addresses = (sums.data_ptr(), own.data_ptr(), made.data_ptr())
        _native.module().cpu_area_means(*addresses, *chosen, *backends.on_cpu())
    return made.permute(0, 3, 1, 2)


def prelu_(x: Tensor, slopes: Tensor, *, backend: str | None = None) -> Tensor:
    """``prelu(x, slopes)`` without derivative; on a CPU in place where ``x`` is channels last.

    Args:
        x: (N, C, H, W) float32; lost.
        slopes: (C,) float32.
        backend: ``"reference"`` or ``"cpu"``; None for the fastest that can run.
    """
    if not _use_native(x, "cpu_prelu", backend):
        return F.prelu(x, slopes)
    last, own = x.permute(0, 2, 3, 1).contiguous(), slopes.contiguous()
    channels = len(own)
    if last.numel():
        _native.module().cpu_prelu(
            last.data_ptr(), own.data_ptr(), last.numel() // channels, channels, *backends.on_cpu()
        )
    return last.permute(0, 3, 1, 2)


def prelu_max_pool(x: Tensor, slopes: Tensor | None, size: int, *, backend: str | None = None) -> Tensor:
    """``max_pool2d(prelu(x, slopes), size, 2, ceil_mode=True)`` in one pass, without derivative.

    Args:
        x: (N, C, H, W) float32, H and W at least 2, C at most 1,024.
        slopes: (C,) float32; None: ``x`` itself is pooled.
        size: 2 or 3.
        backend: ``"reference"`` or ``"cpu"``; None for the fastest that can run.

    Returns:
        (N, C, h, w) float32, channels last; a side of n is (n + 1) // 2 for size 2, and n // 2 for size 3.

    Raises:
        ValueError: The size is another.
    """
    if size not in (2, 3):
        raise ArgumentError(f"size: expected 2 or 3, got {brief(size)}")
    if not _use_native(x, "cpu_prelu_max_pool", backend):
        return F.max_pool2d(x if slopes is None else F.prelu(x, slopes), size, 2, ceil_mode=True)
    count, channels, *sides = x.shape
    tall, wide = ((side + 3 - size) // 2 for side in sides)
    made = torch.empty((count, tall, wide, channels))
    if made.numel():
        last = x.permute(0, 2, 3, 1).contiguous()
        own = None if slopes is None else slopes.contiguous()
        address = 0 if own is None else own.data_ptr()
        shape = (count, *sides, channels, size, tall, wide)
        _native.module().cpu_prelu_max_pool(last.data_ptr(), address, made.data_ptr(), *shape, *backends.on_cpu())
    return made.permute(0, 3, 1, 2)


def _use_native(tensor: Tensor, name: str, backend: str | None) -> bool:
    if backend not in (None, "auto", "reference", "cpu"):
        raise ArgumentError(f"backend: expected 'reference', 'cpu' or None, got {brief(backend)}")
    possible = tensor.device.type == "cpu" and _native.has(name)
    if backend == "cpu" and not possible:
        raise backends.BackendUnavailable(
            f"backend: expected one that can run here, got 'cpu': {_native.PROBLEM or 'it takes CPU tensors'}"
        )
    return possible and backend != "reference"


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
