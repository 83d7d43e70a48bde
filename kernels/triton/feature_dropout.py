"""Feature dropout in Triton: the kernel and its launcher, which checks and allocates nothing."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .philox import VARYING, contiguous_tile, four_words, in_order, pixel_tile, stream, walk, wide
from .sign_step import on_device, rounded

DRAWS = tl.constexpr(8)  # 16-bit draws of a block


@triton.jit
def two_bits(word, threshold, WORD: tl.constexpr):
    # Whether elements 2 * WORD and 2 * WORD + 1 of a block are kept, as bits of those numbers.
    low = ((word & 0xFFFF) >= threshold).to(tl.int32)
    high = ((word >> 16) >= threshold).to(tl.int32)
    return (low | (high << 1)) << (2 * WORD)


@triton.jit
def kept_byte(blocks, key, second, id_lo, id_hi, threshold):
    # Which of the eight elements of a block are kept: bit k for element k.
    a0, a1, a2, a3 = four_words(blocks, key, second, id_lo, id_hi)
    least = wide(threshold).to(tl.uint32)
    first = two_bits(a0, least, 0) | two_bits(a1, least, 1)
    return first | two_bits(a2, least, 2) | two_bits(a3, least, 3)


@triton.jit
def kept_pixels(blocks, shift, key, second, id_lo, id_hi, threshold, WHOLE: tl.constexpr):
    # The same for the pixels of a group, whose first block has `shift` elements before them.
    kept = kept_byte(blocks, key, second, id_lo, id_hi, threshold)
    if not WHOLE:
        kept = (kept | (kept_byte(blocks + 1, key, second, id_lo, id_hi, threshold) << 8)) >> shift
    return kept


@triton.jit
def kept_in_order(blocks, key, second, id_lo, id_hi, threshold):
    # Whether each of the elements of neighbouring blocks is kept.
    a0, a1, a2, a3 = four_words(blocks, key, second, id_lo, id_hi)
    words = in_order(a0, a1, a2, a3)
    return tl.interleave(words & 0xFFFF, words >> 16) >= wide(threshold).to(tl.uint32)


@triton.jit
def keep(kept, value, factor):
    return tl.where(kept, value * factor, 0.0)


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


def launch(
    x: Tensor, out: Tensor, sizes: tuple[int, int, int, int], key: tuple[Any, ...], threshold: int, factor: float
) -> None:
    """Run on the current stream. ``x`` and ``out`` lie in memory alike; see ``fastadv.ops.feature_dropout``."""
    grid, shape = walk(sizes, x, each=DRAWS.value)
    with on_device(x):
        feature_dropout_kernel[grid](x, out, *key, threshold, factor, **shape, enable_fp_fusion=False)
