"""The momentum step in Triton: the passes and their launcher, which checks and allocates nothing.

No fused multiply-add, and divisions rounded to nearest: the same bits as the other backends.
"""

# ruff: noqa: RET505, SIM102, SIM109  (Triton compiles the branches as they are written)
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import as_bytes, clip, is_finite, on_device, per_image, sign_move

BLOCK = 1024
CHUNK = 2048
MOST_CHUNKS = 256

REDUCE = tl.constexpr(0)
SIGN = tl.constexpr(1)
VELOCITY = tl.constexpr(2)
MOVE = tl.constexpr(3)
PROJECT = tl.constexpr(4)


@triton.jit
def fold(p_sums, image, chunks, CHUNKS: tl.constexpr):
    # The sum of one image's partial sums, always in the same order.
    index = tl.arange(0, CHUNKS)
    return tl.sum(tl.load(p_sums + image * chunks + index, mask=index < chunks, other=0.0), axis=0)


@triton.jit
def norm_term(value, NORM: tl.constexpr):
    wide = value.to(tl.float64)
    if NORM == 0:
        return tl.where(wide < 0, -wide, wide)  # the interpreter has no float64 tl.abs
    else:
        return wide * wide


@triton.jit
def finish_norm(total, NORM: tl.constexpr):
    if NORM == 0:
        return total.to(tl.float32)
    else:
        return tl.sqrt(total).to(tl.float32)


@triton.jit
def momentum_kernel(
    p_x,  # (images, size) float32
    p_grad,  # (images, size)
    p_origin,  # (images, size) float32
    p_velocity,  # (images, size) float32
    p_alpha,  # (images,) float32 or None
    p_eps,  # (images,) float32 or None
    p_active,  # (images,) uint8 or None
    p_stats,  # (images, 2) int64 or None, added to
    p_read,  # (images, chunks) float64: sums of the pass before
    p_write,  # (images, chunks) float64: sums of this pass
    alpha,
    eps,
    mu,
    lo,
    hi,
    size,
    chunk,
    chunks,
    PASS: tl.constexpr,
    NORM: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    task = tl.program_id(0).to(tl.int64)
    image = task // chunks
    if p_active is not None:
        if tl.load(p_active + image) == 0:
            return
    norm = 0.0  # of the gradient, of the velocity, or the distance from the origin
    if PASS == SIGN or PASS == VELOCITY:
        norm = finish_norm(fold(p_read, image, chunks, CHUNKS), NORM)
    if PASS == MOVE or PASS == PROJECT:
        norm = finish_norm(fold(p_read, image, chunks, CHUNKS), 1)
    safe = tl.where(norm > 0, norm, 1.0)
    rate = per_image(p_alpha, alpha, image)
    radius = per_image(p_eps, eps, image)
    begin = (task % chunks) * chunk
    total = tl.zeros((BLOCK,), tl.float64)
    bad = tl.zeros((BLOCK,), tl.int32)
    zero = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, chunk, BLOCK):
        inside = start + tl.arange(0, BLOCK)  # [BLOCK]
        mask = (inside < chunk) & (begin + inside < size)
        at = image * size + begin + inside
        if PASS != PROJECT:
            g = tl.load(p_grad + at, mask=mask, other=0.0).to(tl.float32)
            finite = is_finite(g)
        if PASS == REDUCE:
            total += norm_term(tl.where(finite, g, 0.0), NORM)
            bad += (mask & (finite == 0)).to(tl.int32)
            zero += (mask & (g == 0)).to(tl.int32)
        if PASS == SIGN or PASS == VELOCITY:
            old = tl.load(p_velocity + at, mask=mask, other=0.0)
            term = tl.where(finite, tl.where(norm > 0, tl.div_rn(g, safe), 0.0), 0.0)
            velocity = mu * old + term
            tl.store(p_velocity + at, velocity, mask=mask)
        if PASS == VELOCITY:
            total += tl.where(mask, norm_term(velocity, 1), 0.0)
        if PASS == SIGN:
            x = tl.load(p_x + at, mask=mask, other=0.0)
            origin = tl.load(p_origin + at, mask=mask, other=0.0)
            moved = sign_move(x, velocity, origin, rate, radius, lo, hi)
            tl.store(p_x + at, tl.where(finite, moved, x), mask=mask)
        if PASS == MOVE:
            x = tl.load(p_x + at, mask=mask, other=0.0)
            origin = tl.load(p_origin + at, mask=mask, other=0.0)
            velocity = tl.load(p_velocity + at, mask=mask, other=0.0)
            moved = x + rate * tl.div_rn(velocity, safe)
            x = tl.where(finite, tl.where(norm > 0, moved, x), x)
            tl.store(p_x + at, x, mask=mask)
            total += tl.where(mask, norm_term(x - origin, 1), 0.0)
        if PASS == PROJECT:
            x = tl.load(p_x + at, mask=mask, other=0.0)
            origin = tl.load(p_origin + at, mask=mask, other=0.0)
            scaled = origin + (x - origin) * tl.div_rn(radius, safe)
            tl.store(p_x + at, clip(tl.where(norm > radius, scaled, x), lo, hi), mask=mask)
    if PASS == REDUCE or PASS == VELOCITY or PASS == MOVE:
        tl.store(p_write + task, tl.sum(total, axis=0))
    if PASS == REDUCE and p_stats is not None:
        tl.atomic_add(p_stats + 2 * image, tl.sum(bad, axis=0).to(tl.int64), sem="relaxed")
        tl.atomic_add(p_stats + 2 * image + 1, tl.sum(zero, axis=0).to(tl.int64), sem="relaxed")


def launch(
    x: Tensor,
    grad: Tensor,
    origin: Tensor,
    velocity: Tensor,
    alpha_each: Tensor | None,
    alpha: float,
    eps_each: Tensor | None,
    eps: float,
    mu: float,
    norm: int,
    step: int,
    active: Tensor | None,
    stats: Tensor | None,
    workspace: Tensor,
    lo: float,
    hi: float,
    images: int,
    size: int,
) -> None:
    """Run on the current stream. All batches lie in memory alike; see ``fastadv.ops.momentum_step_``."""
    chunks = max(1, min(MOST_CHUNKS, -(-size // CHUNK)))
    chunk = (-(-size // chunks) + 15) // 16 * 16  # so that loads are of 16 bytes
    chunks = -(-size // chunk)
    regions = workspace.view(-1)[: 2 * images * chunks].view(2, images * chunks)
    # Two regions take turns: a pass reads the sums of the one before while it writes its own.
    passes = (REDUCE, SIGN) if step == 0 else (REDUCE, VELOCITY, MOVE, PROJECT)
    with on_device(x):
        for turn, which in enumerate(passes):
            momentum_kernel[(images * chunks,)](
                *(x, grad, origin, velocity, alpha_each, eps_each, as_bytes(active), stats),
                *(regions[1 - turn % 2], regions[turn % 2], alpha, eps, mu, lo, hi, size, chunk, chunks),
                PASS=which.value,
                NORM=norm,
                CHUNKS=triton.next_power_of_2(chunks),
                BLOCK=BLOCK,
                enable_fp_fusion=False,
            )
