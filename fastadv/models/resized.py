"""A network on crops of another size than its own: it resizes them itself, and its gradient reaches their pixels."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.models.dataflow import Whole
from fastadv.models.face_model import FaceModel, check_face_model

_SLACK = 1e-6  # pixels


def resized(model: FaceModel, size: tuple[int, int]) -> FaceModel:
    """A network that takes crops of another size; a network of this size comes back as it is.

    The longer sides of both show the same length, about one centre, as ``data.alignment.template`` has it: of a crop of
    160×160, a network of 112×112 sees all, and one of 112×96 the middle. The resampling is ``Resize``, on the
    normalised values, where a mean of pixels is the same mean.

    Args:
        model: A plain ``FaceModel``, in any mode; its parts are shared.
        size: Height and width of the crops.

    Returns:
        A network of the same name, with the resize as the first layer of its backbone: whatever prepares, masks or
        differentiates a backbone takes it along. Taps have ``network.`` before their names.

    Raises:
        TypeError: ``model`` is no plain ``FaceModel``.
        ValueError: The crops do not hold what the network sees.
    """
    check_face_model(model)
    if model.input_size == size:
        return model
    if type(model) is not FaceModel:
        raise ArgumentTypeError(
            f"model: expected a plain FaceModel, got {type(model).__name__}; resize the network inside it"
        )
    scale = max(size) / max(model.input_size)  # pixels of the crop in one of the network
    starts = [(crop - scale * own) / 2 for crop, own in zip(size, model.input_size, strict=True)]
    if min(starts) < -_SLACK:
        raise ArgumentError(
            f"size: expected crops that hold the {model.input_size[0]} x {model.input_size[1]} pixels of "
            f"{model.name!r} at their scale, got {size[0]} x {size[1]}"
        )
    down, across = starts
    points = None if model.template is None else [(scale * x + across, scale * y + down) for x, y in model.template]
    made = model.replace(input_size=size, template=points, layers=())
    resize = Resize(size, model.input_size, scale=scale)
    made.backbone = nn.Sequential(OrderedDict(resize=resize, network=model.backbone))
    made.layers = tuple(f"network.{layer}" for layer in model.layers)
    made.training = made.backbone.training = resize.training = model.training
    return made


class Resize(Whole):
    r"""Bilinear resampling of images, with a low-pass filter where it reduces: :math:`y = A x B^\top` in each channel.

    .. math:: A_{oi} \propto \max\Bigl(0,\; 1 - \frac{|i + 1/2 - c_o|}{\max(1, s)}\Bigr), \quad
              c_o = \frac{H - s h}{2} + s\,(o + 1/2), \quad \textstyle\sum_i A_{oi} = 1

    for ``H`` rows that become ``h``, each ``s`` as high; ``B`` likewise for the columns. It is what ``PIL``'s bilinear
    ``resize`` of a box computes, and ``torch.nn.functional.interpolate(antialias=True)`` where all is shown. The
    backward pass collects for every pixel what it gave, rather than scattering, tap by tap: an image's values and
    gradient have the same bits in any slot and batch, on a GPU too. It computes in float32 at least.

    Args:
        size: Height and width of the images.
        onto: Those of the result.
        scale: ``s``, rows and columns of an image in one of the result.
    """

    def __init__(self, size: tuple[int, int], onto: tuple[int, int], *, scale: float) -> None:
        super().__init__()
        self.size, self.onto, self.scale = size, onto, scale
        self._matrices = [_matrix(n, m, scale) for n, m in zip(size, onto, strict=True)]
        self._made: dict[tuple[torch.device, torch.dtype], tuple[_Axis, _Axis]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The images ``(N, C, h, w)`` of ``(N, C, H, W)``, in their type and layout."""
        kind = (x.device, torch.promote_types(x.dtype, torch.float32))
        if kind not in self._made:
            down, across = (_Axis.of(matrix, *kind) for matrix in self._matrices)
            self._made[kind] = (down, across)
        made: Tensor = _Resized.apply(x, *self._made[kind])
        return made

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.size} -> {self.onto}, scale={self.scale:g}"


def _matrix(count: int, onto: int, scale: float) -> NDArray[np.float64]:
    """``A``, ``(onto, count)``."""
    centres = (count - scale * onto) / 2 + scale * (np.arange(onto) + 0.5)
    weights = np.maximum(0, 1 - np.abs(np.arange(count) + 0.5 - centres[:, None]) / max(1.0, scale))
    return np.asarray(weights / weights.sum(1, keepdims=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Taps:
    """A matrix of few neighbouring entries in each row: their columns and values, ``(K, rows)``."""

    columns: Tensor
    values: Tensor

    @staticmethod
    def of(matrix: NDArray[np.float64], device: torch.device, dtype: torch.dtype) -> _Taps:
        there = matrix != 0
        count, steps = there.sum(1), np.arange(there.sum(1).max())[:, None]
        columns = np.minimum(there.argmax(1) + steps, matrix.shape[1] - 1)
        values = np.where(steps < count, matrix[np.arange(len(matrix)), columns], 0)
        return _Taps(
            columns=torch.tensor(columns, dtype=torch.int64, device=device),
            values=torch.tensor(values, dtype=dtype, device=device),
        )

    def applied(self, x: Tensor, dim: int) -> Tensor:
        """The product along an axis; products and sums are rounded one by one."""
        total: Tensor | None = None
        for columns, values in zip(self.columns, self.values, strict=True):
            part = x.index_select(dim, columns) * values.view([-1 if k == dim else 1 for k in range(4)])
            total = part if total is None else total.add_(part)
        assert total is not None
        return total


@dataclass(frozen=True, kw_only=True, eq=False)
class _Axis:
    """A matrix and its transpose."""

    forward: _Taps
    backward: _Taps

    @staticmethod
    def of(matrix: NDArray[np.float64], device: torch.device, dtype: torch.dtype) -> _Axis:
        return _Axis(forward=_Taps.of(matrix, device, dtype), backward=_Taps.of(matrix.T, device, dtype))


class _Resized(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, down: _Axis, across: _Axis) -> Tensor:
        ctx.axes = (down, across)
        return _like(x, across.forward.applied(down.forward.applied(x, 2), 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        down, across = ctx.axes
        return _like(gradient, down.backward.applied(across.backward.applied(gradient, 3), 2)), None, None


def _like(x: Tensor, made: Tensor) -> Tensor:
    """A result in the type and layout of what it is made of."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return made.to(x.dtype).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
