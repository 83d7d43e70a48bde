"""The sign step in Triton: the kernel and its launcher, which checks and allocates nothing."""

# ruff: noqa: SIM102  (Triton compiles the branches as they are written)
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import as_bytes, is_finite, on_device, per_image, sign_move

BLOCK = 1024


@triton.jit
def add_counts(p_stats, image, g, finite, mask):
    bad = tl.sum((mask & (finite == 0)).to(tl.int32), axis=0)
    zero = tl.sum((mask & (g == 0)).to(tl.int32), axis=0)
    tl.atomic_add(p_stats + 2 * image, bad.to(tl.int64), sem="relaxed")
    tl.atomic_add(p_stats + 2 * image + 1, zero.to(tl.int64), sem="relaxed")


@triton.jit
def sign_step_kernel(
    p_x,  # (images, size) float32, written
    p_grad,  # (images, size)
    p_origin,  # (images, size) float32
    p_alpha,  # (images,) float32 or None
    p_eps,  # (images,) float32 or None
    p_active,  # (images,) uint8 or None
    p_stats,  # (images, 2) int64 or None, added to
    alpha,
    eps,
    lo,
    hi,
    size,
    chunks,
    BLOCK: tl.constexpr,
):
    task = tl.program_id(0)
    image = (task // chunks).to(tl.int64)
    if p_active is not None:
        if tl.load(p_active + image) == 0:
            return
    i = (task % chunks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = i < size
    at = image * size + i
    g = tl.load(p_grad + at, mask=mask, other=1.0).to(tl.float32)
    x = tl.load(p_x + at, mask=mask, other=0.0)
    origin = tl.load(p_origin + at, mask=mask, other=0.0)
    finite = is_finite(g)
    rate = per_image(p_alpha, alpha, image)
    radius = per_image(p_eps, eps, image)
    moved = sign_move(x, g, origin, rate, radius, lo, hi)
    tl.store(p_x + at, tl.where(finite, moved, x), mask=mask)
    if p_stats is not None:
        add_counts(p_stats, image, g, finite, mask)


def launch(
    x: Tensor,
    grad: Tensor,
    origin: Tensor,
    alpha_each: Tensor | None,
    alpha: float,
    eps_each: Tensor | None,
    eps: float,
    active: Tensor | None,
    stats: Tensor | None,
    lo: float,
    hi: float,
    images: int,
    size: int,
) -> None:
    """Run on the current stream. All batches lie in memory alike; see ``fastadv.ops.sign_step_``."""
    chunks = -(-size // BLOCK)
    with on_device(x):
        sign_step_kernel[(images * chunks,)](
            *(x, grad, origin, alpha_each, eps_each, as_bytes(active), stats, alpha, eps, lo, hi, size, chunks),
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )
