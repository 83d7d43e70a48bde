"""Feature dropout in Triton: the kernel and its launcher, which checks and allocates nothing."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .philox import VARYING, contiguous_tile, four_words, in_order, pixel_tile, pixel_value, stream, walk
from .sign_step import on_device, rounded


@triton.jit
def keep(word, threshold, value, factor):
    return tl.where(word >= tl.to_tensor(threshold).to(tl.uint32), value * factor, 0.0)


@triton.jit
def drop(p_x, p_out, at, mask, word, threshold, factor):
    value = tl.load(p_x + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_out + at, rounded(keep(word, threshold, value, factor), p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=VARYING)
def feature_dropout_kernel(
    p_x,
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
            drop(p_x, p_out, at, mask, word, threshold, factor)
    else:
        image, place, blocks = contiguous_tile(size, chunks, BLOCK)
        key, second, id_lo, id_hi = stream(p_ids, p_seed, p_tick, seed, tick, tick_step, layer, image)
        a0, a1, a2, a3 = four_words(blocks, key, second, id_lo, id_hi)
        drop(p_x, p_out, image * size + place, place < size, in_order(a0, a1, a2, a3), threshold, factor)


def launch(
    x: Tensor, out: Tensor, sizes: tuple[int, int, int, int], key: tuple[Any, ...], threshold: int, factor: float
) -> None:
    """Run on the current stream. ``x`` and ``out`` lie in memory alike; see ``fastadv.ops.feature_dropout``."""
    grid, shape = walk(sizes, x)
    with on_device(x):
        feature_dropout_kernel[grid](x, out, *key, threshold, factor, **shape, enable_fp_fusion=False)
