"""Feature dropout in Triton: the kernel and its launcher, which checks and allocates nothing."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, rounded
from .mask import DRAWS, keep, kept_in_order, kept_pixels
from .philox import VARYING, contiguous_tile, pixel_tile, stream, walk


@triton.jit
def drop(p_x, p_out, at, mask, kept, factor):
    value = tl.load(p_x + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_out + at, rounded(keep(kept, value, factor), p_out.dtype.element_ty), mask=mask)


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
        image, first, channel, blocks, shift = pixel_tile(
            channels, plane, chunks, channel_chunks, GROUPS, CHANNELS, DRAWS
        )
        key, second, id_lo, id_hi = stream(p_ids, p_seed, p_tick, seed, tick, tick_step, layer, image)
        kept = kept_pixels(blocks, shift, key, second, id_lo, id_hi, threshold, WHOLE)
        for K in tl.static_range(DRAWS):
            mask = (first + K < plane) & (channel < channels)
            at = (image * plane + first + K) * channels + channel
            drop(p_x, p_out, at, mask, ((kept >> K) & 1) != 0, factor)
    else:
        image, place, blocks = contiguous_tile(size, chunks, BLOCK, DRAWS)
        key, second, id_lo, id_hi = stream(p_ids, p_seed, p_tick, seed, tick, tick_step, layer, image)
        kept = kept_in_order(blocks, key, second, id_lo, id_hi, threshold)
        drop(p_x, p_out, image * size + place, place < size, kept, factor)


def launch(x: Tensor, out: Tensor, *key_rate_and_sizes: Any) -> None:
    """Run on the current stream. ``x`` and ``out`` lie in memory alike; see ``fastadv.ops.feature_dropout``."""
    *key_and_rate, images, channels, plane, channels_last = key_rate_and_sizes
    grid, shape = walk((images, channels, plane, channels_last), x, each=DRAWS.value)
    with on_device(x):
        feature_dropout_kernel[grid](x, out, *key_and_rate, **shape, enable_fp_fusion=False)
