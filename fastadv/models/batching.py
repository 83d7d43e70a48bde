"""Fixed batch shapes: bits that do not depend on how many images there are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.models.float32_math import float32_math
from fastadv.models.modes import plain_modes


def fixed_batches(function: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """Apply `function` to chunks of exactly `size` images in float32, without gradients, TF32 or `torch.autocast`.

    A convolution may round differently for another batch size; with one fixed size an image's output has the
    same bits whatever its neighbours, its place and the number of images. The last chunk is filled up by
    repeating its last image, and the surplus is dropped.

    Args:
        function: from `(size, ...)` to `(size, ...)`, row by row independent.
        images: `(N, ...)` with N >= 1.
        size: number of images per call, >= 1.

    Returns:
        `(N, ...)`, the outputs in order.

    Raises:
        ValueError: if `size < 1`, there is no image, or `function` does not give one row per image.
    """
    if not isinstance(size, int) or size < 1:
        raise ArgumentError(f"size: expected an integer of at least 1, got {brief(size)}")
    if images.dim() == 0 or images.shape[0] == 0:
        raise ArgumentError(f"images: expected at least one image, got shape {tuple(images.shape)}")
    count = images.shape[0]
    result: Tensor | None = None
    with plain_modes(images.device), torch.no_grad(), float32_math(images.device, tf32=False):
        for start in range(0, count, size):
            chunk = images[start : start + size]
            rows = chunk.shape[0]
            if rows < size:
                filler = chunk[-1:].expand(size - rows, *chunk.shape[1:])
                chunk = torch.cat((chunk, filler))
            output = function(chunk)
            if output.dim() == 0 or output.shape[0] != size:
                raise ArgumentError(f"function: expected {size} rows, got shape {tuple(output.shape)}")
            if result is None:
                result = output.new_empty((count, *output.shape[1:]))
            result[start : start + rows] = output[:rows]
    assert result is not None  # count >= 1
    return result
