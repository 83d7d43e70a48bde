"""The 3 x 3 mean filter in Triton: the kernel and its launcher, which checks and allocates nothing."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device, rounded

BLOCK = 1024


@triton.jit
def column(p_x, at, upper, lower, mask):
    # The sum of three elements above each other.
    above = tl.load(p_x + (at - upper), mask=mask, other=0.0).to(tl.float32)
    here = tl.load(p_x + at, mask=mask, other=0.0).to(tl.float32)
    below = tl.load(p_x + (at + lower), mask=mask, other=0.0).to(tl.float32)
    return (above + here) + below


@triton.jit
def box_blur_kernel(
    p_x,
    p_out,  # laid out like x
    total,
    rows,
    row,
    inner,
    WIDE: tl.constexpr,  # positions need 64 bits; dividing in 32 is faster
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = at < total
    index = at // row  # of the row, over all planes
    i = at - index * row
    here = index % rows
    upper = tl.where(here > 0, row, 0)
    lower = tl.where(here + 1 < rows, row, 0)
    left = column(p_x, at - tl.where(i >= inner, inner, 0), upper, lower, mask)
    center = column(p_x, at, upper, lower, mask)
    right = column(p_x, at + tl.where(i + inner < row, inner, 0), upper, lower, mask)
    made = tl.div_rn((left + center) + right, tl.full((BLOCK,), 9.0, tl.float32))
    tl.store(p_out + at, rounded(made, p_out.dtype.element_ty), mask=mask)


def launch(x: Tensor, out: Tensor, planes: int, rows: int, row: int, inner: int) -> None:
    """Run on the current stream. ``x`` and ``out`` lie in memory alike; see ``fastadv.ops.box_blur``."""
    total = planes * rows * row
    with on_device(x):
        box_blur_kernel[(triton.cdiv(total, BLOCK),)](
            *(x, out, total, rows, row, inner), WIDE=total + BLOCK >= 2**31, BLOCK=BLOCK, enable_fp_fusion=False
        )
