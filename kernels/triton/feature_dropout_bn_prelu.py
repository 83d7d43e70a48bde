"""Dropout, affine map and PReLU in Triton: the kernel and its launcher, which checks and allocates nothing."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, rounded
from .mask import DRAWS, keep, kept_in_order, kept_pixels
from .philox import VARYING, contiguous_tile, pixel_tile, stream, walk


@triton.jit
def fused(
    p_x,
    p_grad,
    p_out,
    start,
    place,
    mask,
    channel,
    inside,
    kept,
    factor,
    p_scale,
    p_shift,
    p_slope,
    slope,
    slope_step,
    ceiling,
    FROM_RESULT: tl.constexpr,
    RELU: tl.constexpr,
    UNTIED: tl.constexpr,
):
    at = start + place
    scale = tl.load(p_scale + channel, mask=inside, other=0.0)
    if p_slope is not None:
        negative = tl.load(p_slope + channel * slope_step, mask=inside, other=0.0)
    else:
        negative = slope
    value = tl.load(p_x + at, mask=mask, other=0.0).to(tl.float32)
    if FROM_RESULT:
        inner = value
        made = value
    else:
        if UNTIED:
            shift = tl.load(p_shift + place, mask=mask, other=0.0)
        else:
            shift = tl.load(p_shift + channel, mask=inside, other=0.0)
        inner = scale * keep(kept, value, factor) + shift
        if RELU:
            made = tl.where(inner <= 0, 0.0, inner)  # a NaN stays one
        else:
            made = tl.where(inner > 0, inner, negative * inner)
    if p_grad is not None:
        grad = tl.load(p_grad + at, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            passed = tl.where(inner <= 0, 0.0, grad)
        else:
            passed = tl.where(inner > 0, grad, negative * grad)
        if ceiling is not None:
            passed = tl.where(made >= ceiling, 0.0, passed)
        made = keep(kept, passed * scale, factor)
    elif ceiling is not None:
        made = tl.where(made > ceiling, ceiling, made)
    tl.store(p_out + at, rounded(made, p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=VARYING)
def feature_dropout_bn_prelu_kernel(
    p_x,
    p_grad,  # like x: backward; None: forward
    p_out,  # laid out like x
    p_ids,  # (images,) int64, or None: nothing is dropped
    p_seed,  # one int64, or None
    p_tick,  # (images,) or one int64, or None
    seed,
    tick,
    tick_step,
    layer,
    threshold,
    factor,
    p_scale,  # (channels,) float32
    p_shift,  # (channels,) float32, or UNTIED an image laid out like those of x
    p_slope,  # (channels,) or one float32, or None
    slope,
    slope_step,
    ceiling,  # a number, or None
    FROM_RESULT: tl.constexpr,  # p_x is what the forward pass made
    RELU: tl.constexpr,  # a select, where the slope is a number and 0
    UNTIED: tl.constexpr,
    size,
    channels,
    plane,
    chunks,
    channel_chunks,
    CHANNELS_LAST: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    if CHANNELS_LAST:
        image, first, channel, blocks, shift = pixel_tile(
            channels, plane, chunks, channel_chunks, GROUPS, CHANNELS, DRAWS
        )
        if p_ids is not None:
            key, second, id_lo, id_hi = stream(p_ids, p_seed, p_tick, seed, tick, tick_step, layer, image)
            kept = kept_pixels(blocks, shift, key, second, id_lo, id_hi, threshold, WHOLE)
        else:
            kept = blocks * 0 - 1
        for K in tl.static_range(DRAWS):
            mask = (first + K < plane) & (channel < channels)
            place = (first + K) * channels + channel
            fused(
                *(p_x, p_grad, p_out, image * size, place, mask, channel, channel < channels),
                *(((kept >> K) & 1) != 0, factor),
                *(p_scale, p_shift, p_slope, slope, slope_step, ceiling, FROM_RESULT, RELU, UNTIED),
            )
    else:
        image, place, blocks = contiguous_tile(size, chunks, BLOCK, DRAWS)
        if p_ids is not None:
            key, second, id_lo, id_hi = stream(p_ids, p_seed, p_tick, seed, tick, tick_step, layer, image)
            kept = kept_in_order(blocks, key, second, id_lo, id_hi, threshold)
        else:
            kept = place >= 0
        inside = place < size
        fused(
            *(p_x, p_grad, p_out, image * size, place, inside, place // plane, inside, kept, factor),
            *(p_scale, p_shift, p_slope, slope, slope_step, ceiling, FROM_RESULT, RELU, UNTIED),
        )


def launch(x: Tensor, grad: Tensor | None, out: Tensor, *others_and_sizes: Any) -> None:
    """Run on the current stream. The maps lie in memory alike; see ``fastadv.ops.feature_dropout_bn_prelu``."""
    *others, from_result, images, channels, plane, channels_last = others_and_sizes
    shift, slope_each, slope, _, _ = others[-5:]
    grid, shape = walk((images, channels, plane, channels_last), x, each=DRAWS.value)
    relu = slope_each is None and slope == 0
    with on_device(x):
        feature_dropout_bn_prelu_kernel[grid](
            *(x, grad, out, *others),
            **{"FROM_RESULT": from_result, "RELU": relu, "UNTIED": shift.dim() > 1},
            **shape,
            enable_fp_fusion=False,
        )
