"""The mean of every channel of feature maps in Triton: the kernel and its launcher, one launch for each map."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device

#: Channels and positions of a tile: wide in the dimension that lies together in memory.
TOGETHER = (64, 32)
APART = (16, 128)


@triton.jit
def average_pool_kernel(
    p_map,  # (images, channels, positions), any strides
    p_out,  # (images, row) float32
    channels,
    positions,
    stride_n,
    stride_c,
    stride_p,
    row,
    column,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    task = tl.program_id(0)
    tiles = tl.cdiv(channels, BLOCK_C)
    image = (task // tiles).to(tl.int64)
    c = (task % tiles).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    p = tl.arange(0, BLOCK_P).to(tl.int64)  # [BLOCK_P]
    total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    p_channel = p_map + image * stride_n + c[:, None] * stride_c
    for start in range(0, positions, BLOCK_P):
        mask = (c[:, None] < channels) & (start + p[None, :] < positions)
        total += tl.load(p_channel + (start + p[None, :]) * stride_p, mask=mask, other=0.0).to(tl.float32)
    mean = tl.div_rn(tl.sum(total, axis=1), tl.zeros((BLOCK_C,), tl.float32) + positions)
    tl.store(p_out + image * row + column + c, mean, mask=c < channels)


def launch(maps: list[tuple[Tensor, tuple[int, ...]]], out: Tensor, images: int, row: int) -> None:
    """Run on the current stream.

    ``maps``: each with its channels, positions and strides of image, channel and position; ``out``: ``(N, row)``.
    """
    column = 0
    with on_device(out):
        for value, (channels, positions, stride_n, stride_c, stride_p) in maps:
            block_c, block_p = TOGETHER if stride_c == 1 else APART
            average_pool_kernel[(images * triton.cdiv(channels, block_c),)](
                *(value, out, channels, positions, stride_n, stride_c, stride_p, row, column),
                BLOCK_C=block_c,
                BLOCK_P=block_p,
                enable_fp_fusion=False,
            )
            column += channels
