"""ONNX operators that become layers of torch: those with weights, pooling, activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.models.onnx_network import Sum
from fastadv.models.onnx_site import Site, Value

Convert = Callable[[Site], Value | tuple[Value, ...]]


def filled(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """A module of the device "meta" with its parameters and buffers.

    Raises:
        ValueError: a tensor of another shape, or with numbers that are not finite.
    """
    for name, value in tensors.items():
        if value is None:
            continue
        place = module.get_parameter(name) if name in module._parameters else module.get_buffer(name)
        if place.shape != value.shape:
            raise ValueError(f"{name} of shape {tuple(value.shape)} in place of {tuple(place.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{name} with NaN or infinity")
        setattr(module, name, nn.Parameter(value.contiguous()) if isinstance(place, nn.Parameter) else value)
    return module


# -- windows --


@dataclass(frozen=True, kw_only=True)
class _Window:
    """What slides over a map; ``padding`` is on both sides, once what is not the same on both was added before."""

    source: Value
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    added: bool


def _pair(site: Site, name: str) -> tuple[int, int]:
    values = site.attribute(name, [1, 1])
    if len(values) != 2 or min(values) < 1:
        raise site.refuse(f"two positive {name}", list(values))
    return (int(values[0]), int(values[1]))


def _window(site: Site, kernel: tuple[int, ...], fill: float = 0.0, *, most: tuple[int, int] | None = None) -> _Window:
    """The window of an operator on a map.

    Args:
        site: the operator.
        kernel: height and width of the window.
        fill: what lies outside of the map.
        most: of the padding, where torch takes no more; what is more is added before.
    """
    if site.rank() != 4 or len(kernel) != 2:
        raise site.refuse("a map (N, C, H, W) and a window (H, W)", f"{site.rank()} and {len(kernel)} axes")
    stride, dilation = _pair(site, "strides"), _pair(site, "dilations")
    top, left, bottom, right = _pads(site, kernel, stride, dilation)
    source, padding = site.value(), (top, left)
    added = (top, left) != (bottom, right) or (most is not None and (top > most[0] or left > most[1]))
    if added:
        source, padding = site.call(F.pad, source, (left, right, top, bottom), mode="constant", value=fill), (0, 0)
    return _Window(
        source=source,
        kernel=(kernel[0], kernel[1]),
        stride=stride,
        dilation=dilation,
        padding=padding,
        added=added,
    )


def _pads(site: Site, kernel: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int]) -> list[int]:
    """At the top, left, bottom and right."""
    rule = site.attribute("auto_pad", "NOTSET")
    if rule in ("NOTSET", "VALID"):
        pads = [int(n) for n in site.attribute("pads", [0] * 4)] if rule == "NOTSET" else [0] * 4
        if len(pads) != 4 or min(pads) < 0:
            raise site.refuse("four pads of at least 0", pads)
        return pads
    begins, ends = [], []
    for length, k, s, d in zip(site.shape()[2:], kernel, stride, dilation, strict=True):
        total = max((math.ceil(length / s) - 1) * s + (k - 1) * d + 1 - length, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if rule == "SAME_UPPER" else large)
        ends.append(large if rule == "SAME_UPPER" else small)
    return [*begins, *ends]


def _conv(site: Site) -> Value:
    weight = site.constant(1, "weights")
    groups = int(site.attribute("group", 1))
    window = _window(site, tuple(weight.shape[2:]))
    bias = site.constant(2, "biases") if site.has(2) else None
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        window.kernel,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    return site.layer(filled(layer, weight=weight, bias=bias), window.source)


def _max_pool(site: Site) -> Value:
    kernel = _pair(site, "kernel_shape")
    window = _window(site, kernel, -math.inf, most=(kernel[0] // 2, kernel[1] // 2))
    ceil = bool(site.attribute("ceil_mode", 0))
    return site.layer(
        nn.MaxPool2d(kernel, window.stride, window.padding, window.dilation, ceil_mode=ceil), window.source
    )


def _average_pool(site: Site) -> Value:
    kernel = _pair(site, "kernel_shape")
    window = _window(site, kernel, most=(kernel[0] // 2, kernel[1] // 2))
    counted = bool(site.attribute("count_include_pad", 0))
    if window.dilation != (1, 1) or (window.added and not counted):
        raise site.refuse("a window without dilation, and the same padding on both sides", "another")
    layer = nn.AvgPool2d(
        kernel,
        window.stride,
        window.padding,
        ceil_mode=bool(site.attribute("ceil_mode", 0)),
        count_include_pad=counted,
    )
    return site.layer(layer, window.source)


def _global_average(site: Site) -> Value:
    return site.layer(nn.AdaptiveAvgPool2d(1)) if site.rank() == 4 else _over_map(site, torch.mean)


def _global_maximum(site: Site) -> Value:
    return site.layer(nn.AdaptiveMaxPool2d(1)) if site.rank() == 4 else _over_map(site, torch.amax)


def _over_map(site: Site, function: Callable[..., Tensor]) -> Value:
    made: Value = site.call(function, site.value(), dim=tuple(range(2, site.rank())), keepdim=True)
    return made


# -- normalisation --


def _batch_norm(site: Site) -> Value:
    if site.attribute("training_mode", 0):
        raise site.refuse("fixed statistics", "training_mode=1; export the network in evaluation mode")
    scale, shift, mean, variance = (site.constant(i, "statistics") for i in range(1, 5))
    kind = nn.BatchNorm2d if site.rank() == 4 else nn.BatchNorm1d
    layer = kind(scale.numel(), eps=float(site.attribute("epsilon", 1e-5)), device="meta")
    counted = torch.tensor(0, device="cpu")
    return site.layer(
        filled(layer, weight=scale, bias=shift, running_mean=mean, running_var=variance, num_batches_tracked=counted)
    )


def _layer_norm(site: Site) -> Value:
    axis = int(site.attribute("axis", -1)) % site.rank()
    weight, bias = site.constant(1, "weights"), site.constant(2, "biases") if site.has(2) else None
    shape = site.shape()[axis:]
    layer = nn.LayerNorm(
        shape, eps=float(site.attribute("epsilon", 1e-5)), bias=bias is not None, device="meta", dtype=torch.float32
    )
    return site.layer(filled(layer, weight=weight, bias=bias))


# -- products --


def _gemm(site: Site) -> Value:
    weight = site.constant(1, "weights")
    if site.attribute("transA", 0):
        raise site.refuse("images on the first axis", "transA=1")
    weight = (weight if site.attribute("transB", 0) else weight.T) * float(site.attribute("alpha", 1.0))
    bias = site.constant(2, "biases") * float(site.attribute("beta", 1.0)) if site.has(2) else None
    if bias is not None:
        bias = bias.flatten().expand(weight.shape[0]).clone()
    return _linear(site, weight, bias)


def _matmul(site: Site) -> Value:
    second = site.value(1)
    if isinstance(second, Tensor) and second.dim() == 2 and not isinstance(site.value(), Tensor):
        return _linear(site, second.T, None)
    made: Value = site.call(torch.matmul, site.value(), second)
    return made


def _linear(site: Site, weight: Tensor, bias: Tensor | None) -> Value:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return site.layer(filled(layer, weight=weight, bias=bias))


# -- activations --


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """``x`` where it is positive, else ``slope * x``."""
    return torch.where(x > 0, x, slope * x)


def _prelu(site: Site) -> Value:
    slope = site.constant(1, "slopes")
    rank = site.rank()
    aligned = (1,) * (rank - slope.dim()) + tuple(slope.shape)
    if slope.numel() == 1 or (rank > 1 and all(n == 1 for axis, n in enumerate(aligned) if axis != 1)):
        return site.layer(filled(nn.PReLU(slope.numel(), device="meta"), weight=slope.flatten()), tap=True)
    made: Value = site.call(prelu, site.value(), slope)
    return made


def _clip(site: Site) -> Value:
    low, high = site.number("min", 1), site.number("max", 2)
    if (low, high) == (0.0, 6.0):
        return site.layer(nn.ReLU6(), tap=True)
    if low is None and high is None:
        return site.value()
    made: Value = site.call(torch.clamp, site.value(), min=low, max=high)
    return made


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """``clip(alpha x + beta, 0, 1)``."""
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _hard_sigmoid(site: Site) -> Value:
    alpha, beta = float(site.attribute("alpha", 0.2)), float(site.attribute("beta", 0.5))
    made: Value = site.call(hard_sigmoid, site.value(), alpha=alpha, beta=beta)
    return made


def _softmax(site: Site) -> Value:
    axis = int(site.attribute("axis", -1 if site.opset >= 13 else 1)) % site.rank()
    if site.opset < 13 and axis != site.rank() - 1:
        raise site.refuse("the last axis before opset 13", f"axis {axis}")
    return site.layer(nn.Softmax(dim=axis))


def _swish(site: Site) -> Value:
    if float(site.attribute("alpha", 1.0)) != 1.0:
        raise site.refuse("alpha=1", site.attribute("alpha"))
    return site.layer(nn.SiLU(), tap=True)


def _activation(make: Callable[[Site], nn.Module]) -> Convert:
    return lambda site: site.layer(make(site), tap=True)


# -- sums and what does nothing --


def _sum(site: Site) -> Value:
    total, *rest = site.all_values()
    for value in rest:
        total = site.layer(Sum(), total, value, tap=True)
    return total


LAYERS: Mapping[str, Convert] = MappingProxyType(
    {
        "Conv": _conv,
        "Gemm": _gemm,
        "MatMul": _matmul,
        "BatchNormalization": _batch_norm,
        "LayerNormalization": _layer_norm,
        "MaxPool": _max_pool,
        "AveragePool": _average_pool,
        "GlobalAveragePool": _global_average,
        "GlobalMaxPool": _global_maximum,
        "PRelu": _prelu,
        "Clip": _clip,
        "HardSigmoid": _hard_sigmoid,
        "Softmax": _softmax,
        "Swish": _swish,
        "Sum": _sum,
        "Relu": _activation(lambda site: nn.ReLU()),
        "LeakyRelu": _activation(lambda site: nn.LeakyReLU(float(site.attribute("alpha", 0.01)))),
        "Elu": _activation(lambda site: nn.ELU(float(site.attribute("alpha", 1.0)))),
        "HardSwish": _activation(lambda site: nn.Hardswish()),
        "Gelu": _activation(lambda site: nn.GELU(approximate=site.attribute("approximate", "none"))),
        "Mish": _activation(lambda site: nn.Mish()),
        "Softplus": _activation(lambda site: nn.Softplus()),
        "Sigmoid": lambda site: site.layer(nn.Sigmoid()),
        "Tanh": lambda site: site.layer(nn.Tanh()),
    }
)
