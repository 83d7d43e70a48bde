"""Clipped noise in Triton: the kernel and its launcher, which checks and allocates nothing.

Sums, products and square roots only, rounded to nearest and never fused: the same bits as the C++ and CUDA kernels.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .common import clip, on_device, per_image
from .philox import (
    NUMBER_ROUNDS,
    VARYING,
    contiguous_tile,
    four_words,
    in_order,
    pixel_tile,
    pixel_value,
    stream,
    walk,
)


@triton.jit
def uniform_noise(word):
    return 2.0 * ((word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-8) - 1.0


@triton.jit
def minus_log(n):
    # -ln(n * 2^-24) for n in [1, 2^24]; kernels/common/add_noise.h says the same.
    bits = n.to(tl.float32).to(tl.int32, bitcast=True) - 0x3F3504F3
    exponent = ((bits >> 23) - 24).to(tl.float32)
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    total = f * -0.07622111588716507 + 0.12904690206050873
    total = total * f - 0.13242974877357483
    total = total * f + 0.14181779325008392
    total = total * f - 0.16609077155590057
    total = total * f + 0.20001976191997528
    total = total * f - 0.25001582503318787
    total = total * f + 0.33333325386047363
    total = total * f - 0.49999988079071045
    return exponent * -0.69314718246459961 - (f * f * total + f)


@triton.jit
def normal_pair(first, second):
    radius = tl.sqrt_rn(2.0 * minus_log((first >> 8).to(tl.int32) + 1))
    turn = (second >> 8).to(tl.int32)
    quarter = (turn + 2097152) >> 22
    y = (turn - (quarter << 22)).to(tl.float32) * 3.7450703e-7
    z = y * y
    sine = y + y * z * (-0.16666655242443085 + z * (0.008332177996635437 + z * -0.0001951729936990887))
    cosine = 1.0 + z * (-0.5 + z * (0.04166662320494652 + z * (-0.0013886763481423259 + z * 2.4390450562350452e-05)))
    swapped = (quarter & 1) != 0
    across = tl.where(swapped, sine, cosine)
    along = tl.where(swapped, cosine, sine)
    across = tl.where(((quarter + 1) & 2) != 0, -across, across)
    return radius * across, radius * tl.where((quarter & 2) != 0, -along, along)


@triton.jit
def four_noises(blocks, key, second, id_lo, id_hi, GAUSSIAN: tl.constexpr):
    a0, a1, a2, a3 = four_words(blocks, key, second, id_lo, id_hi, NUMBER_ROUNDS)
    if GAUSSIAN:
        n0, n1 = normal_pair(a0, a1)
        n2, n3 = normal_pair(a2, a3)
        return n0, n1, n2, n3
    else:  # noqa: RET505
        return uniform_noise(a0), uniform_noise(a1), uniform_noise(a2), uniform_noise(a3)


@triton.jit
def add(p_x, p_origin, at, mask, noise, size, lo, hi):
    base = tl.load(p_origin + at, mask=mask, other=0.0)
    tl.store(p_x + at, clip(base + size * noise, lo, hi), mask=mask)


@triton.jit(do_not_specialize=VARYING)
def add_noise_kernel(
    p_x,  # written
    p_origin,  # laid out like x; may be x
    p_ids,  # (images,) int64
    p_seed,  # one int64, or None
    p_tick,  # (images,) or one int64, or None
    seed,
    tick,
    tick_step,
    layer,
    p_scale,  # (images,) float32 or None
    scale,
    lo,
    hi,
    GAUSSIAN: tl.constexpr,
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
        a0, a1, a2, a3 = four_noises(blocks, key, second, id_lo, id_hi, GAUSSIAN)
        b0, b1, b2, _ = a0, a1, a2, a3
        if not WHOLE:
            b0, b1, b2, _ = four_noises(blocks + 1, key, second, id_lo, id_hi, GAUSSIAN)
        amount = per_image(p_scale, scale, image)
        for K in tl.static_range(4):
            mask = (first + K < plane) & (channel < channels)
            at = (image * plane + first + K) * channels + channel
            noise = pixel_value(K, WHOLE, shift, a0, a1, a2, a3, b0, b1, b2)
            add(p_x, p_origin, at, mask, noise, amount, lo, hi)
    else:
        image, place, blocks = contiguous_tile(size, chunks, BLOCK)
        key, second, id_lo, id_hi = stream(p_ids, p_seed, p_tick, seed, tick, tick_step, layer, image)
        a0, a1, a2, a3 = four_noises(blocks, key, second, id_lo, id_hi, GAUSSIAN)
        noise = in_order(a0, a1, a2, a3)
        amount = per_image(p_scale, scale, image)
        add(p_x, p_origin, image * size + place, place < size, noise, amount, lo, hi)


def launch(
    x: Tensor,
    origin: Tensor,
    scale_each: Tensor | None,
    scale: float,
    lo: float,
    hi: float,
    kind: int,
    *key_and_sizes: Any,
) -> None:
    """Run on the current stream. ``x`` and ``origin`` lie in memory alike; see ``fastadv.ops.add_noise_``."""
    *key, images, channels, plane, channels_last = key_and_sizes
    grid, shape = walk((images, channels, plane, channels_last), x)
    with on_device(x):
        add_noise_kernel[grid](
            *(x, origin, *key, scale_each, scale, lo, hi), GAUSSIAN=kind == 1, **shape, enable_fp_fusion=False
        )
