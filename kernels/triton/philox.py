"""Philox words for a batch in either memory order: shared by the kernels of the random operations.

The four words of a block belong to four elements that follow each other in (C, H, W) order: neighbours in a
contiguous image, four pixels of one channel in a channels-last one.
"""

# ruff: noqa: RET505  (Triton compiles the branches as they are written)
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # elements of a program, contiguous images; groups of pixels times channels, channels-last ones
CHANNELS = 64  # at most, of the latter
NUMBER_ROUNDS = tl.constexpr(10)  # see kernels/common/philox.h
MASK_ROUNDS = tl.constexpr(7)

#: Arguments that change from call to call: a kernel is compiled once for all their values.
VARYING = ("seed", "tick", "layer", "threshold")


@triton.jit
def wide(number):
    # A scalar argument as an int64 tensor, whatever it comes as.
    return tl.full((), 0, tl.int64) + number


@triton.jit
def stream(p_ids, p_seed, p_tick, seed, tick, tick_step, layer, image):
    # The key and the three words of the counter that are the same for a whole image.
    if p_seed is not None:
        key = tl.load(p_seed)
    else:
        key = wide(seed)
    if p_tick is not None:
        moment = tl.load(p_tick + image * tick_step)
    else:
        moment = wide(tick)
    ident = tl.load(p_ids + image)
    second = wide(layer) * 1048576 + moment
    low = 0xFFFFFFFF
    return key, (second & low).to(tl.uint32), (ident & low).to(tl.uint32), ((ident >> 32) & low).to(tl.uint32)


@triton.jit
def four_words(blocks, key, second, id_lo, id_hi, ROUNDS: tl.constexpr):
    c0 = (blocks & 0xFFFFFFFF).to(tl.uint32)
    zero = c0 * 0
    return tl.philox(key, c0, zero + second, zero + id_lo, zero + id_hi, n_rounds=ROUNDS)


@triton.jit
def in_order(a0, a1, a2, a3):
    return tl.interleave(tl.interleave(a0, a2), tl.interleave(a1, a3))


@triton.jit
def contiguous_tile(size, chunks, BLOCK: tl.constexpr, EACH: tl.constexpr = 4):
    # The image, the places of its elements [BLOCK] and their blocks of EACH elements [BLOCK / EACH].
    task = tl.program_id(0)
    image = (task // chunks).to(tl.int64)
    begin = (task % chunks).to(tl.int64) * BLOCK
    return image, begin + tl.arange(0, BLOCK), begin // EACH + tl.arange(0, BLOCK // EACH)


@triton.jit
def pixel_tile(
    channels, plane, chunks, channel_chunks, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, EACH: tl.constexpr = 4
):
    # The image, the first pixels of groups of EACH [GROUPS, 1], channels [1, CHANNELS], the blocks of both
    # [GROUPS, CHANNELS], and how many elements the first block has before the first pixel [1, CHANNELS].
    task = tl.program_id(0)
    per_image = chunks * channel_chunks
    image = (task // per_image).to(tl.int64)
    rest = task % per_image
    group = (rest // channel_chunks).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)[:, None]
    channel = (rest % channel_chunks).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    start = channel * plane
    return image, EACH * group, channel, start // EACH + group, (start % EACH).to(tl.int32)


@triton.jit
def pixel_value(K: tl.constexpr, WHOLE: tl.constexpr, shift, a0, a1, a2, a3, b0, b1, b2):
    # What belongs to pixel K of the group: it lies in the first block, or `shift` places further, in the second.
    if K == 0:
        if WHOLE:
            return a0
        return tl.where(shift == 0, a0, tl.where(shift == 1, a1, tl.where(shift == 2, a2, a3)))
    elif K == 1:
        if WHOLE:
            return a1
        return tl.where(shift == 0, a1, tl.where(shift == 1, a2, tl.where(shift == 2, a3, b0)))
    elif K == 2:
        if WHOLE:
            return a2
        return tl.where(shift == 0, a2, tl.where(shift == 1, a3, tl.where(shift == 2, b0, b1)))
    else:
        if WHOLE:
            return a3
        return tl.where(shift == 0, a3, tl.where(shift == 1, b0, tl.where(shift == 2, b1, b2)))


def walk(sizes: tuple[int, int, int, int], x: Tensor, *, each: int = 4) -> tuple[tuple[int], dict[str, int | bool]]:
    """Grid and shape arguments of a kernel with ``each`` elements to a block, for (images, channels, plane, last)."""
    images, channels, plane, channels_last = sizes
    size = x.numel() // images
    shape: dict[str, int | bool] = {"size": size, "channels": channels, "plane": plane, "WHOLE": plane % each == 0}
    tile = min(CHANNELS, triton.next_power_of_2(channels)) if channels_last else CHANNELS
    groups = BLOCK // tile
    shape |= {"CHANNELS_LAST": bool(channels_last), "BLOCK": BLOCK, "GROUPS": groups, "CHANNELS": tile}
    if not channels_last:
        chunks = -(-size // BLOCK)
        return (images * chunks,), {**shape, "chunks": chunks, "channel_chunks": 1}
    chunks, channel_chunks = -(-plane // (each * groups)), -(-channels // tile)
    return (images * chunks * channel_chunks,), {**shape, "chunks": chunks, "channel_chunks": channel_chunks}
