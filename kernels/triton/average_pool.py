"""The mean of every channel of feature maps in Triton: the kernel and its launcher, one launch for all maps.

Maps whose positions lie together and maps whose channels do take one each.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .common import MOST_LAYERS, of_layer, on_device

#: Channels and positions of a tile: wide in the dimension that lies together in memory.
TOGETHER = (32, 128)
APART = (16, 128)


@triton.jit(do_not_specialize=("columns", "tiles", "row"))
def average_pool_kernel(
    maps,  # of every layer (images, channels, positions)
    channels,  # likewise, and what follows
    positions,
    image_strides,
    strides,  # of positions where the channels of one lie together, else of channels
    columns,
    p_out,  # (images, row) float32
    tiles,  # of the layer with the most channels
    row,
    TOGETHER: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    layer = tl.program_id(1)
    count = of_layer(channels, layer)
    first = tl.program_id(0) % tiles * BLOCK_C
    if first >= count:
        return
    image = (tl.program_id(0) // tiles).to(tl.int64)
    c = first.to(tl.int64) + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    p = tl.arange(0, BLOCK_P).to(tl.int64)  # [BLOCK_P]
    size = of_layer(positions, layer)
    stride = of_layer(strides, layer)
    p_map = of_layer(maps, layer) + image * of_layer(image_strides, layer)
    total = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for start in range(0, size, BLOCK_P):
        mask = (c[:, None] < count) & (start + p[None, :] < size)
        if TOGETHER:
            at = c[:, None] + (start + p[None, :]) * stride
        else:
            at = c[:, None] * stride + (start + p[None, :])
        total += tl.load(p_map + at, mask=mask, other=0.0).to(tl.float32)
    mean = tl.div_rn(tl.sum(total, axis=1), tl.zeros((BLOCK_C,), tl.float32) + size)
    tl.store(p_out + image * row + of_layer(columns, layer) + c, mean, mask=c < count)


def launch(maps: list[tuple[Tensor, tuple[int, ...]]], out: Tensor, images: int, row: int) -> None:
    """Run on the current stream.

    ``maps``: each with its channels, positions and strides of image, channel and position; ``out``: ``(N, row)``.
    """
    column = 0
    kinds: dict[bool, list[tuple[Any, ...]]] = {True: [], False: []}
    for value, (channels, positions, stride_n, stride_c, stride_p) in maps:
        together = stride_c == 1
        stride = stride_p if together else stride_c
        kinds[together].append((value, channels, positions, stride_n, stride, column))
        column += channels
    with on_device(out):
        for together, layers in kinds.items():
            block_c, block_p = TOGETHER if together else APART
            for first in range(0, len(layers), MOST_LAYERS):
                each = tuple(zip(*layers[first : first + MOST_LAYERS], strict=True))
                tiles = triton.cdiv(max(each[1]), block_c)
                average_pool_kernel[(images * tiles, len(each[0]))](
                    *(*each, out, tiles, row),
                    TOGETHER=together,
                    BLOCK_C=block_c,
                    BLOCK_P=block_p,
                    enable_fp_fusion=False,
                )
