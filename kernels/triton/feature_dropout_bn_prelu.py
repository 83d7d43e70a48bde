"""Dropout, affine map and PReLU in Triton: the kernel and its launcher, which checks and allocates nothing."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .feature_dropout import keep
from .philox import VARYING, contiguous_tile, four_words, in_order, pixel_tile, pixel_value, stream, walk
from .sign_step import on_device, rounded


@triton.jit
def fused(
    p_x, p_grad, p_out, at, mask, channel, inside, word, threshold, factor, p_scale, p_shift, p_slope, slope, slope_step
):
    scale = tl.load(p_scale + channel, mask=inside, other=0.0)
    shift = tl.load(p_shift + channel, mask=inside, other=0.0)
    if p_slope is not None:
        negative = tl.load(p_slope + channel * slope_step, mask=inside, other=0.0)
    else:
        negative = slope
    value = keep(word, threshold, tl.load(p_x + at, mask=mask, other=0.0).to(tl.float32), factor)
    made = scale * value + shift
    if p_grad is not None:
        grad = tl.load(p_grad + at, mask=mask, other=0.0).to(tl.float32)
        made = keep(word, threshold, tl.where(made > 0, grad, negative * grad) * scale, factor)
    else:
        made = tl.where(made > 0, made, negative * made)
    tl.store(p_out + at, rounded(made, p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=VARYING)
def feature_dropout_bn_prelu_kernel(
    p_x,
    p_grad,  # like x: backward; None: forward
    p_out,  # laid out like x
    p_ids,  # (images,) int64
    p_seed,  # one int64, or None
    p_tick,  # (images,) or one int64, or None
    seed,
    tick,
    tick_step,
    layer,
    threshold,
    factor,
    p_scale,  # (channels,) float32
    p_shift,  # (channels,) float32
    p_slope,  # (channels,) or one float32, or None
    slope,
    slope_step,
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
        image, first, channel, blocks, shift = pixel_tile(channels, plane, chunks, channel_chunks, GROUPS, CHANNELS)
        key, second, id_lo, id_hi = stream(p_ids, p_seed, p_tick, seed, tick, tick_step, layer, image)
        a0, a1, a2, a3 = four_words(blocks, key, second, id_lo, id_hi)
        b0, b1, b2, _ = a0, a1, a2, a3
        if not WHOLE:
            b0, b1, b2, _ = four_words(blocks + 1, key, second, id_lo, id_hi)
        for K in tl.static_range(4):
            mask = (first + K < plane) & (channel < channels)
            at = (image * plane + first + K) * channels + channel
            word = pixel_value(K, WHOLE, shift, a0, a1, a2, a3, b0, b1, b2)
            fused(
                *(p_x, p_grad, p_out, at, mask, channel, channel < channels, word, threshold, factor),
                *(p_scale, p_shift, p_slope, slope, slope_step),
            )
    else:
        image, place, blocks = contiguous_tile(size, chunks, BLOCK)
        key, second, id_lo, id_hi = stream(p_ids, p_seed, p_tick, seed, tick, tick_step, layer, image)
        a0, a1, a2, a3 = four_words(blocks, key, second, id_lo, id_hi)
        word = in_order(a0, a1, a2, a3)
        inside = place < size
        fused(
            *(p_x, p_grad, p_out, image * size + place, inside, place // plane, inside, word, threshold, factor),
            *(p_scale, p_shift, p_slope, slope, slope_step),
        )


def launch(
    x: Tensor,
    grad: Tensor | None,
    out: Tensor,
    sizes: tuple[int, int, int, int],
    key: tuple[Any, ...],
    threshold: int,
    factor: float,
    scale: Tensor,
    shift: Tensor,
    slope_each: Tensor | None,
    slope: float,
    slope_step: int,
) -> None:
    """Run on the current stream. The maps lie in memory alike; see ``fastadv.ops.feature_dropout_bn_prelu``."""
    grid, shape = walk(sizes, x)
    with on_device(x):
        feature_dropout_bn_prelu_kernel[grid](
            *(x, grad, out, *key, threshold, factor, scale, shift, slope_each, slope, slope_step),
            **shape,
            enable_fp_fusion=False,
        )
