"""Average pooling of several feature maps at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from fastadv.ops import foreign, layers
from fastadv.ops.arguments import result
from fastadv.ops.declaration import Op

Array = TypeVar("Array")


def average_pool(maps: Sequence[Array], *, backend: str | None = None) -> tuple[Array, ...]:
    r"""Mean of every channel of every map, all maps in one call.

    .. math:: y_{l,n,c} = \frac{1}{H_l W_l} \sum_{h,w} x_{l,n,c,h,w}

    Sums are made in float32 over at most 512 elements at a time, and those are added in float64, so that a mean is
    within 4e-6 of the mean magnitude of its channel (triton: H W / 128 additions in float32, within 1e-5 up to
    256 x 256). The order of the sums depends on shape and strides only: runs repeat their bits. Differentiable in
    every map: the gradient is spread evenly, in the type and the memory order of the map.

    Args:
        maps: feature maps ``(N, C_l, H_l, W_l)``, all of one of float32, bfloat16 or float16; contiguous or
            channels-last, as they are; other memory orders are copied. Tensors, or NumPy or CuPy arrays.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        One ``(N, C_l)`` float32 for each map: views of one tensor ``(N, sum C_l)``.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """
    given: Sequence[Any] = maps
    packed = _op.call(given, backend)
    each = packed.split([value.shape[1] for value in given], dim=1)
    return tuple(foreign.give_back(value, given[0]) for value in each)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    layers.remember_maps(ctx, inputs[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor | None]]:
    return (layers.spread(ctx, grad),)


_op = Op(
    "average_pool",
    layers.feature_maps(),
    result(),
    make=layers.empty_rows,
    sizes=("*out.shape",),
    setup=_setup,
    backward=_backward,
)
