"""The 3 x 3 mean filter, a defence that blurs an image before it is embedded."""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops import checks, foreign, layout
from fastadv.ops._define import define_op
from fastadv.ops.reference import box_blur as reference

Array = TypeVar("Array")


def box_blur(x: Array, *, backend: str | None = None) -> Array:
    r"""Replace each pixel by the mean of itself and its eight neighbours.

    .. math:: y_{n,c,i,j} = \frac19 \sum_{a=-1}^{1} \sum_{b=-1}^{1} x_{n,c,i+a,j+b}

    Beyond the border the nearest pixel is repeated. (The source does not say what it does there. This choice keeps
    constant images and the mean of every image, and makes the filter symmetric: it is its own derivative.)
    Rows are added first, in float32, and the sum is rounded once to the type of ``x``: every backend gives the same
    bits. Differentiable any number of times.

    Args:
        x: images or maps ``(N, C, H, W)``, float32, bfloat16 or float16; contiguous or channels-last as it is, any
            other memory order is copied. A tensor, or a NumPy or CuPy array.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        A new tensor like ``x``: channels-last where ``x`` is, else contiguous.

    Raises:
        TypeError, ValueError: ``x`` has the wrong type or shape.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Mehr and Schroeder, "Six Pixels to Kevin Bacon", the low-pass filter: "a 3x3 mean filter, which averages each
        pixel value with itself and the immediate surrounding pixels".
    """
    value = foreign.borrow("x", x, written=False)
    if not checks.is_tensor(value):
        raise ArgumentTypeError(f"x is a {type(x).__name__}; expected a torch.Tensor or a NumPy or CuPy array")
    checks.strided("x", value)
    if value.dtype not in checks.GRAD_TYPES:
        raise ArgumentTypeError(f"x has dtype {value.dtype}; expected torch.float32, torch.bfloat16 or torch.float16")
    if value.dim() != 4:
        raise ArgumentError(f"x has shape {tuple(value.shape)}; expected a batch (N, C, H, W)")
    return foreign.give_back(_op(value, backend or "auto"), x)


def _fake(x: Tensor) -> Tensor:
    return layout.empty(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.backend = inputs[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    return (_op(grad, ctx.backend),)


def _reference(x: Tensor) -> Tensor:
    return layout.empty(x).copy_(reference.box_blur(x))


def rows(x: Tensor) -> tuple[int, int, int, int]:
    """Planes, rows of a plane, elements of a row, and elements between neighbours of a row."""
    images, channels, height, width = x.shape
    if layout.is_channels_last(x):
        return images, height, width * channels, channels
    return images * channels, height, width, 1


def _native_call(function: str, x: Tensor, where: tuple[int, int]) -> Tensor:
    x = layout.readable(x)
    out = layout.empty(x)
    if x.numel():
        call = getattr(_native.module(), function)
        call(x.data_ptr(), out.data_ptr(), checks.GRAD_TYPES[x.dtype], *rows(x), *where)
    return out


def _cpu(x: Tensor) -> Tensor:
    return _native_call("cpu_box_blur", x, (torch.get_num_threads(), backends.cpu_isa()))


def _cuda(x: Tensor) -> Tensor:
    with torch.cuda.device(x.device):
        return _native_call("cuda_box_blur", x, (x.device.index, torch.cuda.current_stream().cuda_stream))


def _triton(x: Tensor) -> Tensor:
    kernel = importlib.import_module("fastadv.kernels.triton.box_blur")
    x = layout.readable(x)
    out = layout.empty(x)
    if x.numel():
        kernel.launch(x, out, *rows(x))
    return out


_op = define_op(
    "box_blur(Tensor x, str backend) -> Tensor",
    {"reference": _reference, "cpu": _cpu, "cuda": _cuda, "triton": _triton},
    fake=_fake,
    setup=_setup,
    backward=_backward,
)
