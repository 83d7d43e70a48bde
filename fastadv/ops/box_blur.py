"""The 3 x 3 mean filter, a defence that blurs an image before it is embedded."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from fastadv.ops import foreign, layout
from fastadv.ops.arguments import Argument, feature_map, result
from fastadv.ops.declaration import Op

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
    return foreign.give_back(_op.call(x, backend), x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.backend = inputs[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    return (_op.dispatch(grad, ctx.backend),)


def _rows(x: Tensor) -> tuple[int, int, int, int]:
    """Planes, rows of a plane, elements of a row, and elements between neighbours of a row."""
    images, channels, height, width = x.shape
    if layout.is_channels_last(x):
        return images, height, width * channels, channels
    return images * channels, height, width, 1


_op = Op(
    "box_blur",
    feature_map("x", "(N, C, H, W)", least=4, most=4),
    result(code_of="x"),
    Argument(kind="rows", native=("*rows(x)",), launch=("*rows(x)",), uses={"rows": _rows}),
    make=layout.empty,
    setup=_setup,
    backward=_backward,
)
