"""What several kernels share: clipping, rounding, one number per image, and the device of a launch.

Clipping is by ``tl.where``: compiled minimum and maximum drop a NaN, and the interpreter keeps it.
"""

# ruff: noqa: RET505  (Triton compiles the branches as they are written)
from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Layers of one launch: the parameters of a kernel are limited to 4 KB.
MOST_LAYERS = 48


@triton.jit
def of_layer(values, layer):
    # The element of a tuple that belongs to a layer.
    found = values[0]
    for i in tl.static_range(1, len(values)):
        found = tl.where(layer == i, values[i], found)
    return found


@triton.jit
def is_finite(value):
    return tl.abs(value) < float("inf")  # False for NaN too


@triton.jit
def rounded(value, dtype: tl.constexpr):
    # To nearest, ties to even. By hand for bfloat16, since the interpreter cuts the bits off.
    if dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        upper = tl.where(value == value, upper, 0x7FC0)
        return upper.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def clip(x, lower, upper):
    raised = tl.where(x < lower, lower, x)
    return tl.where(raised > upper, upper, raised)


@triton.jit
def clip_to_ball(x, origin, eps, lo, hi):
    ball_lower = origin - eps
    ball_upper = origin + eps
    lower = tl.where(ball_lower > lo, ball_lower, lo)
    upper = tl.where(ball_upper < hi, ball_upper, hi)
    return clip(x, lower, upper)


@triton.jit
def sign_move(x, direction, origin, alpha, eps, lo, hi):
    sign = (direction > 0).to(tl.float32) - (direction < 0).to(tl.float32)
    return clip_to_ball(x + alpha * sign, origin, eps, lo, hi)


@triton.jit
def per_image(p_each, number, image):
    if p_each is None:
        return number
    else:
        return tl.load(p_each + image)


def on_device(x: Tensor) -> object:
    """A context in which the device of ``x`` is the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def as_bytes(active: Tensor | None) -> Tensor | None:
    """The mask as uint8, on the same memory."""
    return None if active is None else active.view(torch.uint8)
