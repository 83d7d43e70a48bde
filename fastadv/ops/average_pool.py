"""Average pooling of several feature maps at once."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.ops import checks, foreign
from fastadv.ops._define import define_op
from fastadv.ops.reference import average_pool as reference

Array = TypeVar("Array")

#: Channels, positions, and strides of image, channel and position.
Described = tuple[Tensor, tuple[int, ...]]


def average_pool(maps: Sequence[Array], *, backend: str | None = None) -> tuple[Array, ...]:
    r"""Mean of every channel of every map, all maps in one call.

    .. math:: y_{l,n,c} = \frac{1}{H_l W_l} \sum_{h,w} x_{l,n,c,h,w}

    Sums are made in float32 over at most 512 elements at a time, and those are added in float64, so that a mean is
    within 4e-6 of the mean magnitude of its channel (triton: H W / 32 additions in float32, within 1e-5 up to
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
    lent = check_maps(foreign.borrow_each("maps", maps))
    packed = _op(lent, backend or "auto")
    each = packed.split([value.shape[1] for value in lent], dim=1)
    return tuple(foreign.give_back(value, maps[0]) for value in each)


def check_maps(maps: Any) -> list[Tensor]:
    """``maps`` as a list of tensors, or an error."""
    found = checks.tensors("maps", maps, "feature maps (N, C, H, W)")
    first = found[0]
    for i, value in enumerate(found):
        if value.dtype not in checks.GRAD_TYPES:
            raise ArgumentTypeError(
                f"maps[{i}] has dtype {value.dtype}; expected torch.float32, torch.bfloat16 or torch.float16"
            )
        if value.dtype != first.dtype:
            raise ArgumentTypeError(f"maps[{i}] has dtype {value.dtype}; expected {first.dtype}, the dtype of maps[0]")
        if value.dim() != 4 or 0 in value.shape[1:]:
            raise ArgumentError(f"maps[{i}] has shape {tuple(value.shape)}; expected (N, C, H, W) with C, H, W >= 1")
        if value.shape[0] != first.shape[0]:
            raise ArgumentError(f"maps[{i}] has {value.shape[0]} images; expected {first.shape[0]}, like maps[0]")
    return found


def described(value: Tensor) -> Described:
    """A map as kernels read it, and its channels, positions and strides.

    The positions of a channel lie together, or the channels of a position do; a map of another memory order is copied.
    """
    _, channels, height, width = value.shape
    of_image, of_channel, of_row, of_column = value.stride()
    positions = height * width
    together = height == 1 or width == 1 or of_row == width * of_column
    of_position = of_row if width == 1 else of_column
    if positions == 1:
        of_position = 1
    elif channels == 1:
        of_channel = 1
    if together and (of_position == 1 or (of_channel == 1 and of_position > 0)):
        return value, (channels, positions, of_image, of_channel, of_position)
    return value.contiguous(), (channels, positions, channels * positions, positions, 1)


def native_maps(maps: list[Described]) -> list[int]:
    """Every map as the compiled kernels take it."""
    return [number for value, sizes in maps for number in (value.data_ptr(), *sizes)]


def empty_rows(maps: list[Tensor]) -> Tensor:
    """A tensor for the means ``(N, sum C_l)``."""
    return maps[0].new_empty((maps[0].shape[0], sum(value.shape[1] for value in maps)), dtype=torch.float32)


def _reference(maps: list[Tensor]) -> Tensor:
    return reference.average_pool(maps)


def _cpu(maps: list[Tensor]) -> Tensor:
    keep = [described(value) for value in maps]
    out = empty_rows(maps)
    if out.numel():
        _native.module().cpu_average_pool(
            *(native_maps(keep), checks.GRAD_TYPES[maps[0].dtype], out.data_ptr(), *out.shape),
            *(torch.get_num_threads(), backends.cpu_isa()),
        )
    return out


def _cuda(maps: list[Tensor]) -> Tensor:
    with torch.cuda.device(maps[0].device):
        keep = [described(value) for value in maps]
        out = empty_rows(maps)
        if out.numel():
            _native.module().cuda_average_pool(
                *(native_maps(keep), checks.GRAD_TYPES[maps[0].dtype], out.data_ptr(), *out.shape),
                *(out.device.index, torch.cuda.current_stream().cuda_stream),
            )
        return out


def _triton(maps: list[Tensor]) -> Tensor:
    kernel = importlib.import_module("fastadv.kernels.triton.average_pool")
    out = empty_rows(maps)
    if out.numel():
        kernel.launch([described(value) for value in maps], out)
    return out


def remember_maps(ctx: Any, maps: list[Tensor]) -> None:
    """What :func:`spread` needs to know of the maps: not their values."""
    ctx.maps = [(value.shape, value.dtype, _is_channels_last(value)) for value in maps]


def _is_channels_last(value: Tensor) -> bool:
    return value.shape[1] > 1 and value.stride(1) == 1 and not value.is_contiguous()


def spread(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """The gradient of every map that needs one, from that of the means ``(N, sum C_l)``."""
    made: list[Tensor | None] = []
    columns = grad.split([shape[1] for shape, _, _ in ctx.maps], dim=1)
    for part, (shape, dtype, channels_last), needed in zip(columns, ctx.maps, ctx.needs_input_grad[0], strict=True):
        if not needed:
            made.append(None)
            continue
        value = (part / (shape[2] * shape[3])).to(dtype)[:, :, None, None].expand(shape)
        order = torch.channels_last if channels_last else torch.contiguous_format
        made.append(value.contiguous(memory_format=order))
    return made


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    remember_maps(ctx, inputs[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor | None]]:
    return (spread(ctx, grad),)


_op = define_op(
    "average_pool(Tensor[] maps, str backend) -> Tensor",
    {"reference": _reference, "cpu": _cpu, "cuda": _cuda, "triton": _triton},
    fake=empty_rows,
    setup=_setup,
    backward=_backward,
)
