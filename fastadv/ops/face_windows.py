"""What a face detector computes beside its convolutions: summed pictures, resampled windows, pooled activations.

On a CPU one compiled call each, else PyTorch operations: the same bits. Without derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv import _native, backends
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.ops import checks, native_only

_CHANNELS = 1024  # at most: a row of pixels is pooled in parts of 4,096 numbers


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


def prelu_(x: Tensor, slopes: Tensor, *, backend: str | None = None) -> Tensor:
    """``prelu(x, slopes)``; on a CPU in place where ``x`` is channels last.

    Args:
        x: (N, C, H, W) float32; lost.
        slopes: (C,) float32.
        backend: ``"reference"`` or ``"cpu"``; None for the fastest that can run.

    Raises:
        TypeError, ValueError: An argument has another type or shape.
        RuntimeError: An argument requires grad.
        BackendUnavailable: The backend that was named cannot run here.
    """
    _check_activations("prelu_", x, slopes)
    if not native_only.chosen("cpu_prelu", "prelu_", (x, slopes), backend):
        return _prelu(x, slopes)
    last, own = x.permute(0, 2, 3, 1).contiguous(), slopes.contiguous()
    channels = len(own)
    if last.numel():
        _native.module().cpu_prelu(
            last.data_ptr(), own.data_ptr(), last.numel() // channels, channels, *backends.on_cpu()
        )
    return last.permute(0, 3, 1, 2)


def prelu_max_pool(x: Tensor, slopes: Tensor | None, size: int, *, backend: str | None = None) -> Tensor:
    """``max_pool2d(prelu(x, slopes), size, 2, ceil_mode=True)`` in one pass.

    Args:
        x: (N, C, H, W) float32, H and W at least 2, C at most 1,024.
        slopes: (C,) float32; None: ``x`` itself is pooled.
        size: 2 or 3.
        backend: ``"reference"`` or ``"cpu"``; None for the fastest that can run.

    Returns:
        (N, C, h, w) float32; a side of n becomes (n + 1) // 2 for size 2, and n // 2 for size 3.

    Raises:
        TypeError, ValueError: An argument has another type, shape or value.
        RuntimeError: An argument requires grad.
        BackendUnavailable: The backend that was named cannot run here.
    """
    if size not in (2, 3):
        raise ArgumentError(f"size: expected 2 or 3, got {brief(size)}")
    _check_activations("prelu_max_pool", x, slopes)
    if min(x.shape[2:]) < 2:
        raise ArgumentError(f"x: expected sides of at least 2, got shape {tuple(x.shape)}")
    given = (x,) if slopes is None else (x, slopes)
    if not native_only.chosen("cpu_prelu_max_pool", "prelu_max_pool", given, backend):
        return _pool(x if slopes is None else _prelu(x, slopes), size)
    count, channels, *sides = x.shape
    tall, wide = ((side + 3 - size) // 2 for side in sides)
    made = torch.empty((count, tall, wide, channels), dtype=torch.float32, device=x.device)
    if made.numel():
        last = x.permute(0, 2, 3, 1).contiguous()
        own = None if slopes is None else slopes.contiguous()
        address = 0 if own is None else own.data_ptr()
        shape = (count, *sides, channels, size, tall, wide)
        _native.module().cpu_prelu_max_pool(last.data_ptr(), address, made.data_ptr(), *shape, *backends.on_cpu())
    return made.permute(0, 3, 1, 2)


def _check_activations(op: str, x: Tensor, slopes: Tensor | None) -> None:
    checks.tensor_of("x", x, checks.FLOAT)
    if x.dim() != 4 or not 1 <= x.shape[1] <= _CHANNELS:
        raise ArgumentError(f"x: expected shape (N, C, H, W), 1 <= C <= {_CHANNELS}, got {tuple(x.shape)}")
    if slopes is not None:
        checks.tensor_of("slopes", slopes, checks.FLOAT)
        checks.on_device("slopes", slopes, x)
        if slopes.shape != x.shape[1:2]:
            raise ArgumentError(f"slopes: expected one for each of {x.shape[1]} channels, got {tuple(slopes.shape)}")
    if torch.is_grad_enabled():
        checks.refuse_gradients(op, (), (("x", x), ("slopes", slopes)))


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


def _prelu(x: Tensor, slopes: Tensor) -> Tensor:
    """`prelu`, which is slow with few channels in channels-last layout: here a row of pixels has one slope a value."""
    rows = x.permute(0, 2, 3, 1).reshape(x.shape[0] * x.shape[2], x.shape[3] * x.shape[1])
    made = F.prelu(rows, slopes.repeat(x.shape[3])) if rows.numel() else rows
    return made.view(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)


def _pool(x: Tensor, size: int) -> Tensor:
    """`max_pool2d(x, size, 2, ceil_mode=True)` for 2 and 3, in a third of the time on a CPU, which keeps no indices.

    The maximum of each pair, and for 3 of the value behind it, along one dimension and then along the other.
    """
    for dim in (2, 3):
        count = x.shape[dim]
        pairs = torch.maximum(_every_other(x, dim, 0, count // 2), _every_other(x, dim, 1, count // 2))
        if size == 3:
            behind = (count - 1) // 2
            part = pairs.narrow(dim, 0, behind)
            torch.maximum(part, _every_other(x, dim, 2, behind), out=part)
        elif count % 2:
            pairs = torch.cat((pairs, x.narrow(dim, count - 1, 1)), dim)
        x = pairs
    return x


def _every_other(x: Tensor, dim: int, first: int, count: int) -> Tensor:
    chosen = slice(first, first + 2 * count - 1, 2)
    return x[:, :, chosen] if dim == 2 else x[..., chosen]
