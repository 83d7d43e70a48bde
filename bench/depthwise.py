"""Depthwise convolutions on a GPU: our kernel against cuDNN and the memory's bandwidth, and what a tick gains.

Predicted before any measurement: MobileFaceNet's tick in bf16 becomes 2.5 times as fast.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure import copy_bandwidth, timed
from bench.ops import GateError
from fastadv.models import FaceModel, load, prepare
from fastadv.models.float32_math import float32_math
from fastadv.models.fused_depthwise import FusedDepthwiseConv2d
from fastadv.models.hooks import hooked

BATCH = 64
_COLD_BYTES = 512 * 2**20  # rotate over this much data, so that the L2 cache is never warm
# PyTorch may round to bfloat16 before it adds the bias, which changes the mask of values near 0.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}


def plain(layer: FusedDepthwiseConv2d) -> nn.Module:
    """The same layer in PyTorch: its convolution, in cuDNN, and the activation."""
    made = nn.Conv2d(
        *(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding),  # type: ignore[arg-type]
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    made.weight, made.bias = layer.weight, layer.bias
    return made if layer.activation is None else nn.Sequential(made, layer.activation)


def run(*, device: str, quick: bool) -> list[Mapping[str, Any]]:
    """Every depthwise layer of MobileFaceNet in both directions, and its whole tick; each is right before it is timed.

    Raises:
        GateError: A result differs from PyTorch's.
    """
    seconds = 0.05 if quick else 0.15
    limit = copy_bandwidth(device, seconds=seconds)
    model = load("mobilefacenet", random_weights_seed=0, device=device)
    rows: list[Mapping[str, Any]] = []
    with float32_math(torch.device(device), tf32=False):  # as in the engine
        for precision in ("fp32", "bf16"):
            ready = prepare(model, precision=precision)
            for (layer, shape), count in _layers(ready, device).items():
                rows += _layer(layer, shape, count, device=device, seconds=seconds, limit=limit)
            rows += _tick(ready, device=device, seconds=seconds)
    return rows


def _layers(model: FaceModel, device: str) -> dict[tuple[FusedDepthwiseConv2d, tuple[int, ...]], int]:
    """One layer of each kind with the shape that it reads, and how many there are."""
    seen: dict[Any, tuple[FusedDepthwiseConv2d, tuple[int, ...]]] = {}
    counts: Counter[Any] = Counter()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(module, FusedDepthwiseConv2d)
        kind = (tuple(inputs[0].shape), module.kernel_size, module.stride, type(module.activation))
        seen.setdefault(kind, (module, (BATCH, *kind[0][1:])))
        counts[kind] += 1

    found = [(m, note) for m in model.modules() if isinstance(m, FusedDepthwiseConv2d)]
    with torch.no_grad(), hooked(found):
        model(torch.rand(1, *model.image_shape, device=device))
    return {seen[kind]: count for kind, count in counts.items()}


def _layer(
    layer: FusedDepthwiseConv2d,
    shape: tuple[int, ...],
    count: int,
    *,
    device: str,
    seconds: float,
    limit: float,
) -> list[Mapping[str, Any]]:
    """Forward and backward: the bytes are those of the input and the result, backward with the mask's result too."""
    dtype = layer.weight.dtype
    calls = {"torch": plain(layer), "triton": layer}
    with torch.no_grad():
        made = layer(_random(shape, dtype, device))
    sizes = {"forward": made.nbytes, "backward": made.nbytes * (1 if layer.activation is None else 2)}
    name = " x ".join(map(str, shape)) + f", {layer.kernel_size[0]} x {layer.kernel_size[1]}"
    rows: list[Mapping[str, Any]] = []
    for direction, size in sizes.items():
        moved = size + shape[0] * shape[1] * shape[2] * shape[3] * made.element_size()
        sets = max(2, min(64, _COLD_BYTES // moved))
        given = [(_random(shape, dtype, device), _random(tuple(made.shape), dtype, device)) for _ in range(sets)]
        ready = {k: [_ready(call, x, g, direction) for x, g in given] for k, call in calls.items()}
        _gate(f"{name} {direction}", ready["triton"][0](), ready["torch"][0](), _TOLERANCE[dtype])
        times = {k: timed(each, device, seconds=seconds).median for k, each in ready.items()}
        rows += [
            {
                "what": f"{name}, stride {layer.stride[0]}, {direction}",
                "in_network": count,
                "type": str(dtype).removeprefix("torch."),
                "backend": k,
                "ms": 1e3 * spent,
                "GB_per_s": moved / spent / 1e9,
                "share_of_copy": moved / spent / limit,
                "times_torch": times["torch"] / spent,
            }
            for k, spent in times.items()
        ]
    return rows


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)


def _ready(call: nn.Module, x: Tensor, gradient: Tensor, direction: str) -> Callable[[], Tensor]:
    if direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return call(x)

        return forward
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        made = call(leaf)
    return lambda: torch.autograd.grad(made, leaf, gradient, retain_graph=True)[0]


def _gate(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    if not error <= tolerance:
        raise GateError(f"{what}: relative error {error:.3g}, at most {tolerance:g} is allowed")


def _tick(ready: FaceModel, *, device: str, seconds: float) -> list[Mapping[str, Any]]:
    """Forward and backward pass of the whole network to the images, with our kernel and with cuDNN."""
    other = copy.deepcopy(ready)
    for name, module in list(other.backbone.named_modules()):
        if isinstance(module, FusedDepthwiseConv2d):
            other.backbone.set_submodule(name, plain(module))
    images = _random((BATCH, *ready.image_shape), torch.float32, device).sigmoid_().requires_grad_()

    def tick(model: FaceModel) -> Tensor:
        return torch.autograd.grad(model(images)[:, 0].sum(), images)[0]

    times = {
        name: timed([partial(tick, model)], device, seconds=seconds).median
        for name, model in (("torch", other), ("triton", ready))
    }
    return [
        {
            "what": f"{ready.name}, {ready.precision}, one tick of {BATCH} images",
            "backend": name,
            "ms": 1e3 * spent,
            "times_torch": times["torch"] / spent,
        }
        for name, spent in times.items()
    ]
