"""Depthwise convolutions of channels-last maps in Triton, with bias and activation, and the gradient to their input.

No operation of ``fastadv.ops``, since PyTorch is its other backend: the kernel and its launcher, for frozen networks.

Both directions are one kernel. A lane makes EACH x EACH neighbouring results of a channel and loads every element that
they read once, row by row. For result ``r`` of a lane, element ``a`` of that window meets row ``FIRST + ALONG a +
ACROSS r`` of the weights, if there is one; columns alike. Sums are made in float32, in an order and with a compilation
that do not depend on the number of images.
"""

# ruff: noqa: RET505  (Triton compiles the branches as they are written)
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, rounded

NONE = tl.constexpr(0)
RELU = tl.constexpr(1)
RELU6 = tl.constexpr(2)
PRELU = tl.constexpr(3)
CODES = {"none": 0, "relu": 1, "relu6": 2, "prelu": 3}

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

RESULTS = 8  # a program makes 8 x 8 of them in a block of channels

#: A kernel is compiled once for all sizes of maps.
VARYING = ("height", "width", "rows", "columns", "across", "tiles")


@triton.jit
def activated(value, negative, ACTIVATION: tl.constexpr):
    # As in PyTorch, a NaN stays one.
    if ACTIVATION == PRELU:
        value = tl.where(value > 0, value, negative * value)
    elif ACTIVATION != NONE:
        value = tl.where(value <= 0, 0.0, value)
    if ACTIVATION == RELU6:
        value = tl.where(value > 6, 6.0, value)
    return value


@triton.jit
def derived(gradient, made, negative, ACTIVATION: tl.constexpr):
    # The gradient to what the activation saw, from its result.
    if ACTIVATION == PRELU:
        return tl.where(made > 0, gradient, negative * gradient)
    elif ACTIVATION == RELU6:
        return tl.where((made <= 0) | (made >= 6), 0.0, gradient)
    else:
        return tl.where(made <= 0, 0.0, gradient)


@triton.jit
def add(
    total,
    value,
    p_weight,
    channel,
    channels,
    ROW: tl.constexpr,
    COLUMN: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
):
    # The sum with an element's part, where the weights have that row and column.
    if ROW >= 0 and ROW < KERNEL_H and COLUMN >= 0 and COLUMN < KERNEL_W:
        at = (ROW * KERNEL_W + COLUMN) * channels + channel
        return total + value * tl.load(p_weight + at, mask=channel < channels, other=0.0).to(tl.float32)
    else:
        return total


@triton.jit
def store(p_out, total, row, column, channel, rows, columns, channels, negative, ACTIVATION: tl.constexpr):
    made = activated(total, negative, ACTIVATION)
    if INTERPRETED:
        made = rounded(made, p_out.dtype.element_ty)
    else:
        made = made.to(p_out.dtype.element_ty)  # rounds to nearest too, in one instruction
    inside = (row < rows) & (column < columns) & (channel < channels)
    at = (row * columns + column) * channels + channel
    tl.store(p_out + at, made, mask=inside)


@triton.jit(do_not_specialize=VARYING)
def depthwise_conv_kernel(
    p_x,  # (images, height, width, channels)
    p_made,  # like p_x, what the activation made there: its derivative is applied to p_x; or None
    p_weight,  # (KERNEL_H, KERNEL_W, channels)
    p_bias,  # (channels,), or None
    p_slope,  # (channels,) or one number, or None
    p_out,  # (images, rows, columns, channels)
    channels,
    height,
    width,
    rows,
    columns,
    across,  # tiles side by side
    tiles,  # of an image
    slope_step,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STEP: tl.constexpr,  # from the window of a lane to that of the next one
    LOW_H: tl.constexpr,  # where the first window begins
    LOW_W: tl.constexpr,
    COUNT_H: tl.constexpr,  # rows of a window
    COUNT_W: tl.constexpr,
    FIRST_H: tl.constexpr,
    FIRST_W: tl.constexpr,
    ALONG: tl.constexpr,
    ACROSS: tl.constexpr,
    DERIVATIVE: tl.constexpr,  # the activation that made p_made
    ACTIVATION: tl.constexpr,  # of the results
    EACH: tl.constexpr,
    SIDE: tl.constexpr,  # lanes of a row and of a column
    CHANNELS: tl.constexpr,
):
    task = tl.program_id(0)
    blocks = tl.cdiv(channels, CHANNELS)
    tile = (task // blocks) % tiles
    image = (task // blocks // tiles).to(tl.int64)
    lane = tl.arange(0, SIDE * SIDE)[:, None]
    row = tile // across * SIDE + lane // SIDE  # [SIDE * SIDE, 1], of lanes
    column = tile % across * SIDE + lane % SIDE
    # A full tile, so that weights are laid out over the threads as the map's elements are.
    channel = tl.broadcast_to(task % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :], (SIDE * SIDE, CHANNELS))
    start = image * height * width * channels
    begin = tl.zeros((SIDE * SIDE, CHANNELS), tl.float32)
    negative = begin
    if p_bias is not None:
        begin += tl.load(p_bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    if p_slope is not None:
        negative += tl.load(p_slope + channel * slope_step, mask=channel < channels, other=0.0).to(tl.float32)
    t00 = begin
    t01 = begin
    t10 = begin
    t11 = begin
    for a in tl.static_range(COUNT_H):
        y = STEP * row + (LOW_H + a)
        for b in tl.static_range(COUNT_W):
            x = STEP * column + (LOW_W + b)
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (channel < channels)
            at = (y * width + x) * channels + channel
            value = tl.load(p_x + start + at, mask=inside, other=0.0).to(tl.float32)
            if p_made is not None:
                made = tl.load(p_made + start + at, mask=inside, other=0.0).to(tl.float32)
                value = derived(value, made, negative, DERIVATIVE)
            element = (value, p_weight, channel, channels)
            t00 = add(t00, *element, FIRST_H + ALONG * a, FIRST_W + ALONG * b, KERNEL_H, KERNEL_W)
            if EACH == 2:
                t01 = add(t01, *element, FIRST_H + ALONG * a, FIRST_W + ALONG * b + ACROSS, KERNEL_H, KERNEL_W)
                t10 = add(t10, *element, FIRST_H + ALONG * a + ACROSS, FIRST_W + ALONG * b, KERNEL_H, KERNEL_W)
                t11 = add(t11, *element, FIRST_H + ALONG * a + ACROSS, FIRST_W + ALONG * b + ACROSS, KERNEL_H, KERNEL_W)
    p_image = p_out + image * rows * columns * channels
    row *= EACH
    column *= EACH
    store(p_image, t00, row, column, channel, rows, columns, channels, negative, ACTIVATION)
    if EACH == 2:
        store(p_image, t01, row, column + 1, channel, rows, columns, channels, negative, ACTIVATION)
        store(p_image, t10, row + 1, column, channel, rows, columns, channels, negative, ACTIVATION)
        store(p_image, t11, row + 1, column + 1, channel, rows, columns, channels, negative, ACTIVATION)


def constants(weight: Tensor, out: Tensor, stride: int, padding: tuple[int, int], *, backward: bool) -> Any:
    """What a kernel is compiled for, from the shapes alone."""
    _, channels, rows, columns = out.shape
    kernel = tuple(weight.shape[:2])
    # Larger windows are not shared: their weights would not stay in registers. Backward, which weights a result of a
    # strided convolution meets depends on its row and column, and a lane of two by two knows those of each.
    each = 2 if max(kernel) <= 3 or (backward and stride == 2) else 1
    side = 1 if max(rows, columns) <= each else RESULTS // each
    step, along, across = (each // stride, -stride, 1) if backward else (each * stride, 1, -stride)
    made = {"STEP": step, "ALONG": along, "ACROSS": across, "EACH": each, "SIDE": side}
    for axis, k, p in zip("HW", kernel, padding, strict=True):
        low = -((k - 1 - p) // stride) if backward else -p
        count = (each - 1 + p) // stride - low + 1 if backward else (each - 1) * stride + k
        first = p - stride * low if backward else 0
        made |= {f"KERNEL_{axis}": k, f"LOW_{axis}": low, f"COUNT_{axis}": count, f"FIRST_{axis}": first}
    narrow = each == 1 < side or 0 < channels % 64 <= 32  # the former for want of registers
    return {**made, "CHANNELS": 32 if narrow else 64}


def launch(
    x: Tensor,
    made: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    slope: Tensor | None,
    out: Tensor,
    *,
    stride: int,
    padding: tuple[int, int],
    activation: str,
    backward: bool,
) -> None:
    """Run on the current stream.

    ``x``, ``made`` and ``out`` are ``(N, C, H, W)`` in channels-last order, ``weight`` is ``(KH, KW, C)``. Backward,
    ``x`` is the gradient to the result, ``made`` that result where there is an activation, and ``out`` the gradient to
    the input.
    """
    images, channels, rows, columns = out.shape
    fixed = constants(weight, out, stride, padding, backward=backward)
    across, down = (triton.cdiv(n, fixed["EACH"] * fixed["SIDE"]) for n in (columns, rows))
    size = fixed["SIDE"] ** 2 * fixed["CHANNELS"] * x.element_size()
    code = CODES[activation]
    with on_device(out):
        depthwise_conv_kernel[(images * across * down * triton.cdiv(channels, fixed["CHANNELS"]),)](
            *(x, made, weight, bias, slope, out, channels, x.shape[2], x.shape[3], rows, columns, across),
            *(across * down, int(slope is not None and slope.numel() > 1)),
            **fixed,
            DERIVATIVE=code if backward else 0,
            ACTIVATION=0 if backward else code,
            num_warps=max(1, min(8, size // 512)),  # 16 bytes a thread
        )
