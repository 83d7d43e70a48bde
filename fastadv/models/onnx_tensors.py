"""ONNX operators that become functions of tensors: arithmetic, reductions, shapes and indices."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.models.onnx_network import Ref, Sum
from fastadv.models.onnx_site import Site, Value

Convert = Callable[[Site], Any]

_MOST_CONSTANT = 2**26  # elements of a constant that is computed from smaller ones
_FLOATS, _WHOLE, _BOOL = (1, 10, 11, 16), (2, 3, 4, 5, 6, 7, 12, 13), 9  # TensorProto.DataType


# -- arithmetic --


def _operands(site: Site) -> list[Any]:
    """The inputs; beside a value that depends on the images, a constant of one element is a number."""
    values: list[Any] = site.all_values()
    if not any(isinstance(value, Ref) for value in values):
        return values
    return [v.item() if isinstance(v, Tensor) and v.numel() == 1 and v.dim() < 2 else v for v in values]


def _arithmetic(function: Callable[..., Any]) -> Convert:
    return lambda site: site.call(function, *_operands(site))


def _add(site: Site) -> Value:
    first, second = site.all_values()
    if isinstance(first, Ref) and isinstance(second, Ref):
        return site.layer(Sum(), first, second, tap=True)
    made: Value = site.call(operator.add, *_operands(site))
    return made


def _divide(site: Site) -> Value:
    values = site.all_values()
    if all(isinstance(v, Tensor) and not v.is_floating_point() for v in values):
        made: Value = site.call(torch.div, *values, rounding_mode="trunc")
    else:
        made = site.call(operator.truediv, *_operands(site))
    return made


def _each(function: Callable[[Tensor], Tensor]) -> Convert:
    return lambda site: site.call(function, site.value())


def _pairwise(function: Callable[[Tensor, Tensor], Tensor]) -> Convert:
    return lambda site: reduce(lambda a, b: site.call(function, a, b), site.all_values())


def _cast(site: Site) -> Value:
    """All floating types are one: that of the network."""
    value, kind = site.value(), int(site.attribute("to", 0))
    if isinstance(value, Tensor) and kind in (*_FLOATS, *_WHOLE, _BOOL):
        return value.float() if kind in _FLOATS else value.bool() if kind == _BOOL else value.long()
    if kind not in _FLOATS:
        raise site.refuse("a cast to a floating-point type, which has a gradient", f"the data type {kind}")
    return value


# -- reductions --


def l2_norm(x: Tensor, dim: Sequence[int], keepdim: bool) -> Tensor:
    """The Euclidean length along some axes."""
    return torch.linalg.vector_norm(x, dim=tuple(dim), keepdim=keepdim)


def sum_of_squares(x: Tensor, dim: Sequence[int], keepdim: bool) -> Tensor:
    """Its square."""
    return x.square().sum(dim=tuple(dim), keepdim=keepdim)


def _reduction(function: Callable[..., Tensor]) -> Convert:
    def convert(site: Site) -> Value:
        axes = site.integers("axes", 1)
        if not axes and site.attribute("noop_with_empty_axes", 0):
            return site.value()
        dims = tuple(axis % site.rank() for axis in axes or range(site.rank()))
        made: Value = site.call(function, site.value(), dim=dims, keepdim=bool(site.attribute("keepdims", 1)))
        return made

    return convert


def _lp_norm(site: Site) -> Value:
    p, axis = float(site.attribute("p", 2)), int(site.attribute("axis", -1))
    made: Value = site.call(F.normalize, site.value(), p=p, dim=axis)
    return made


# -- shapes --


def expand(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """A view of larger lengths; -1 keeps one."""
    return x.expand(*sizes)


def for_each_image(constant: Tensor, images: Tensor, axis: int) -> Tensor:
    """A constant of length 1 along an axis, once for each image of another value."""
    return constant.expand(*constant.shape[:axis], images.shape[axis], *constant.shape[axis + 1 :])


def _limited(site: Site, count: int) -> None:
    if count > _MOST_CONSTANT:
        raise site.refuse(f"a constant of at most {_MOST_CONSTANT:,} elements", f"{count:,}")
    site.take(count)


def _shape(site: Site) -> Value:
    return torch.tensor(site.shape()[slice(site.attribute("start", 0), site.attribute("end"))], dtype=torch.int64)


def _constant_of_shape(site: Site) -> Value:
    from onnx import numpy_helper

    sizes = [int(n) for n in site.constant(0, "lengths").tolist()]
    _limited(site, math.prod(sizes))
    given = site.attribute("value")
    value = 0.0 if given is None else numpy_helper.to_array(given).item()
    return torch.full(sizes, value, dtype=torch.float32 if isinstance(value, float) else torch.int64)


def _reshape(site: Site) -> Value:
    target = site.integers("shape", 1) or []
    if not site.attribute("allowzero", 0):
        target = [site.shape()[i] if n == 0 else n for i, n in enumerate(target)]
    return _to_shape(site, target)


def _flatten(site: Site) -> Value:
    shape, axis = site.shape(), int(site.attribute("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    return _to_shape(site, [math.prod(shape[:axis]), math.prod(shape[axis:])])


def _to_shape(site: Site, target: Sequence[int]) -> Value:
    """A value in another shape for one image; the axis with the images is left open, since the file may fix it."""
    sizes, axis = list(site.empty().reshape(tuple(target)).shape), site.image_axis()
    if axis is not None:
        before = math.prod(site.shape()[:axis])
        products = [math.prod(sizes[:k]) for k in range(len(sizes))]
        place = products.index(before) if before in products else sum(n < before for n in products) - 1
        sizes[place] = -1
    made: Value = site.call(torch.reshape, site.value(), tuple(sizes))
    return made


def _squeeze(site: Site) -> Value:
    axes = site.integers("axes", 1)
    if axes is None:
        # one image stands for any number of them
        axes = [i for i, n in enumerate(site.shape()) if n == 1 and i != site.image_axis()]
    axes = [axis % site.rank() for axis in axes]
    if site.image_axis() in axes:
        raise site.refuse("axes that keep the images apart", axes)
    made: Value = site.call(torch.squeeze, site.value(), tuple(axes))
    return made


def _unsqueeze(site: Site) -> Value:
    axes = site.integers("axes", 1) or []
    value, rank = site.value(), site.rank() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        value = site.call(torch.unsqueeze, value, axis)
    return value


def _transpose(site: Site) -> Value:
    axes = site.attribute("perm") or range(site.rank())[::-1]
    made: Value = site.call(torch.permute, site.value(), tuple(int(axis) for axis in axes))
    return made


def _expand(site: Site) -> Value:
    sizes, value = [int(n) for n in site.constant(1, "lengths").tolist()], site.value()
    if isinstance(value, Tensor):
        sizes = list(torch.broadcast_shapes(value.shape, sizes))
        _limited(site, math.prod(sizes))
        return value.expand(sizes)
    if len(sizes) != site.rank():
        raise site.refuse(f"{site.rank()} lengths", sizes)
    kept = [-1 if size in (1, length) else size for size, length in zip(sizes, site.shape(), strict=True)]
    made: Value = site.call(expand, value, tuple(kept))
    return made


def _tile(site: Site) -> Value:
    repeats = [int(n) for n in site.constant(1, "repeats").tolist()]
    _limited(site, math.prod(repeats) * math.prod(site.shape()))
    made: Value = site.call(torch.tile, site.value(), tuple(repeats))
    return made


# -- parts --


def _concat(site: Site) -> Value:
    values, axis = site.all_values(), int(site.attribute("axis", 0))
    first = next((i for i in range(len(values)) if site.image_axis(i) is not None), None)
    if first is not None:
        along = site.image_axis(first)
        values = [
            site.call(for_each_image, value, values[first], along) if site.image_axis(i) is None else value
            for i, value in enumerate(values)
        ]
    made: Value = site.call(torch.cat, values, axis)
    return made


def _split(site: Site) -> tuple[Value, ...]:
    axis, sizes = int(site.attribute("axis", 0)), site.integers("split", 1)
    if sizes is None:
        length, count = site.shape()[axis], site.outputs()
        step = -(-length // count)
        sizes = [min(step, length - k * step) for k in range(count)]
    parts = site.call(torch.split, site.value(), tuple(sizes), axis)
    if isinstance(parts, Ref):
        return tuple(site.call(operator.getitem, parts, i) for i in range(site.outputs()))
    return tuple(parts)


def _slice(site: Site) -> Value:
    starts, ends = site.integers("starts", 1) or [], site.integers("ends", 2) or []
    axes = site.integers("axes", 3)
    steps = site.integers("steps", 4) or [1] * len(starts)
    if min(steps, default=1) < 1:
        raise site.refuse("steps of at least 1", steps)
    index = [slice(None)] * site.rank()
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    made: Value = site.call(operator.getitem, site.value(), tuple(index))
    return made


def _gather(site: Site) -> Value:
    indices, axis = site.constant(1, "indices"), int(site.attribute("axis", 0))
    if indices.dim() > 1:
        raise site.refuse("one index, or a list of them", f"indices {tuple(indices.shape)}")
    if indices.dim() == 0:
        made: Value = site.call(torch.select, site.value(), axis, int(indices))
    else:
        found = torch.where(indices < 0, indices + site.shape()[axis], indices)
        made = site.call(torch.index_select, site.value(), axis, found)
    return made


def _where(site: Site) -> Value:
    made: Value = site.call(torch.where, *site.all_values())
    return made


def _einsum(site: Site) -> Value:
    made: Value = site.call(torch.einsum, site.attribute("equation", ""), *site.all_values())
    return made


# -- borders and sizes of maps --


def _pad(site: Site) -> Value:
    pads, rank = site.integers("pads", 1) or [], site.rank()
    axes = [axis % rank for axis in (site.integers("axes", 3) or range(rank))]
    if len(pads) != 2 * len(axes):
        raise site.refuse(f"{2 * len(axes)} pads", pads)
    both = {axis: (pads[k], pads[k + len(axes)]) for k, axis in enumerate(axes)}
    first = min((axis for axis in both if both[axis] != (0, 0)), default=rank)
    axis = site.image_axis()
    if axis is not None and both.get(axis, (0, 0)) != (0, 0):
        raise site.refuse("the images as they are", f"pads of their axis, {pads}")
    flat = tuple(n for axis in reversed(range(first, rank)) for n in both.get(axis, (0, 0)))
    mode = {"edge": "replicate"}.get(site.attribute("mode", "constant"), site.attribute("mode", "constant"))
    value = (site.number("value", 2) or 0.0) if mode == "constant" else None
    made: Value = site.call(F.pad, site.value(), flat, mode=mode, value=value) if flat else site.value()
    return made


def _resize(site: Site) -> Value:
    """What ``interpolate`` computes: the coordinates and roundings that PyTorch has."""
    old = site.kind == "Upsample" or site.opset < 11
    source, target = site.shape(), site.integers("sizes", 3)
    if target is None:
        given = 1 if old else 2
        scales = site.constant(given, "scales").tolist() if site.has(given) else site.attribute("scales", [])
        target = [round(length * scale) for length, scale in zip(source, scales, strict=True)]
        if any(abs(n * scale - t) > 1e-3 for n, scale, t in zip(source, scales, target, strict=True)):
            raise site.refuse("scales that give whole lengths", scales)
    if len(target) != 4 or list(source[:2]) != target[:2] or site.attribute("antialias", 0) or site.attribute("axes"):
        raise site.refuse("a map (N, C, H, W) of which H and W change, without antialias", f"{source} to {target}")
    mode = site.attribute("mode", "nearest")
    place = site.attribute("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    rounding = site.attribute("nearest_mode", "floor" if old else "round_prefer_floor")
    forms = {
        ("nearest", "asymmetric"): "nearest" if rounding == "floor" else None,
        ("nearest", "half_pixel"): "nearest-exact" if rounding == "round_prefer_floor" else None,
        **{("linear", form): "bilinear" for form in ("half_pixel", "pytorch_half_pixel", "align_corners")},
        **{("cubic", form): "bicubic" for form in ("half_pixel", "pytorch_half_pixel", "align_corners")},
    }
    form = forms.get((mode, place))
    if (
        form is None
        or float(site.attribute("cubic_coeff_a", -0.75)) != -0.75
        or (form == "nearest-exact" and any(t % s for t, s in zip(target, source, strict=True)))  # ties
        or (place == "pytorch_half_pixel" and 1 in target[2:])
    ):
        raise site.refuse("a mode of torch.nn.functional.interpolate", f"{mode}, {place}, {rounding}")
    corners = place == "align_corners" if mode != "nearest" else None
    made: Value = site.call(F.interpolate, site.value(), tuple(target[2:]), mode=form, align_corners=corners)
    return made


TENSORS: Mapping[str, Convert] = MappingProxyType(
    {
        "Add": _add,
        "Sub": _arithmetic(operator.sub),
        "Mul": _arithmetic(operator.mul),
        "Div": _divide,
        "Pow": _arithmetic(operator.pow),
        "Min": _pairwise(torch.minimum),
        "Max": _pairwise(torch.maximum),
        "Neg": _each(torch.neg),
        "Abs": _each(torch.abs),
        "Sqrt": _each(torch.sqrt),
        "Exp": _each(torch.exp),
        "Log": _each(torch.log),
        "Erf": _each(torch.erf),
        "Reciprocal": _each(torch.reciprocal),
        "Floor": _each(torch.floor),
        "Ceil": _each(torch.ceil),
        "Not": _each(torch.logical_not),
        "And": _pairwise(torch.logical_and),
        "Or": _pairwise(torch.logical_or),
        "Equal": _arithmetic(operator.eq),
        "Greater": _arithmetic(operator.gt),
        "Less": _arithmetic(operator.lt),
        "Where": _where,
        "Cast": _cast,
        "ReduceMean": _reduction(torch.mean),
        "ReduceSum": _reduction(torch.sum),
        "ReduceMax": _reduction(torch.amax),
        "ReduceMin": _reduction(torch.amin),
        "ReduceL2": _reduction(l2_norm),
        "ReduceSumSquare": _reduction(sum_of_squares),
        "LpNormalization": _lp_norm,
        "Einsum": _einsum,
        "Identity": Site.value,
        "Dropout": Site.value,
        "Shape": _shape,
        "ConstantOfShape": _constant_of_shape,
        "Reshape": _reshape,
        "Flatten": _flatten,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Transpose": _transpose,
        "Expand": _expand,
        "Tile": _tile,
        "Concat": _concat,
        "Split": _split,
        "Slice": _slice,
        "Gather": _gather,
        "Pad": _pad,
        "Resize": _resize,
        "Upsample": _resize,
    }
)
