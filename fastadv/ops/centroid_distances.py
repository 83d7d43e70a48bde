"""Distances from features to the centroids of every layer."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.ops import checks, foreign
from fastadv.ops._define import define_op
from fastadv.ops.reference import centroid_distances as reference

Array = TypeVar("Array")

METRICS = {"l2": 0, "cosine": 1}


def centroid_distances(
    features: Sequence[Array], centroids: Sequence[Any], *, metric: str = "l2", backend: str | None = None
) -> Array:
    r"""Distance of every feature to every centroid of its layer, all layers in one call.

    .. math:: d_{n,l,k} = \|f_{l,n} - c_{l,k}\|_2 \quad\text{or}\quad
              d_{n,l,k} = 1 - \cos(f_{l,n}, c_{l,k})
              = \tfrac12 \left\| \frac{f_{l,n}}{\|f_{l,n}\|} - \frac{c_{l,k}}{\|c_{l,k}\|} \right\|_2^2

    Both are computed from differences: ``d(x, x)`` is exactly 0 and nothing cancels. L2 is within 1e-5 (relative) of
    float64, cosine within 1e-5 d + 2e-7 sqrt(d) + 1e-14, for all finite vectors: where a sum of squares is below 1e-28
    or overflows float32, it is made again in float64. A vector of zeros has no direction: its cosine distance is 1 to
    everything, itself included, with a derivative of 0. Nothing of shape (N, K, C) is ever made.

    Differentiable in the features. At distance 0 the derivative of L2 is taken as 0.

    Args:
        features: one ``(N, C_l)`` float32 for each layer. Tensors, or NumPy or CuPy arrays.
        centroids: one ``(K, C_l)`` float32 for each layer, K >= 1.
        metric: ``"l2"`` or ``"cosine"``.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        ``(N, L, K)`` float32.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        RuntimeError: a centroid requires grad: there is no derivative in the centroids.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """
    lent = checks.tensors("features", foreign.borrow_each("features", features), "features (N, C)")
    for i, value in enumerate(lent):
        checks.rows(f"features[{i}]", value, torch.float32, (lent[0].shape[0] if i else None, None))
        if value.shape[1] == 0:
            raise ArgumentError(f"features[{i}] has shape {tuple(value.shape)}; expected (N, C) with C >= 1")
    against = check_centroids(foreign.borrow_each("centroids", centroids), lent, "features")
    check_metric(metric)
    return foreign.give_back(_op(lent, against, metric, backend or "auto"), features[0])


def check_centroids(centroids: Any, layers: list[Tensor], name: str) -> list[Tensor]:
    """``centroids`` as a list of tensors that fit the ``layers``, whose second sizes are the channels, or an error."""
    found = checks.tensors("centroids", centroids, "centroids (K, C)")
    if len(found) != len(layers):
        raise ArgumentError(f"centroids has {len(found)} layers; expected {len(layers)}, like {name}")
    for i, (value, layer) in enumerate(zip(found, layers, strict=True)):
        checks.rows(
            f"centroids[{i}]",
            value,
            torch.float32,
            (found[0].shape[0] if i and found[0].dim() else None, layer.shape[1]),
        )
        if value.shape[0] == 0:
            raise ArgumentError(f"centroids[{i}] has shape {tuple(value.shape)}; expected (K, C) with K >= 1")
        if value.device != layers[0].device:
            raise ArgumentError(
                f"centroids[{i}] is on {value.device}; expected {layers[0].device}, the device of {name}"
            )
        if value.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(f"centroids[{i}] requires grad, and has no derivative; pass a detached tensor")
    return found


def check_metric(metric: str) -> None:
    """Raise ValueError unless ``metric`` is known."""
    if metric not in METRICS:
        raise ArgumentError(f"metric is {brief(metric)}; expected 'l2' or 'cosine'")


def native_layers(features: list[Tensor], centroids: list[Tensor]) -> list[int]:
    """Every layer as the compiled kernels take it; rows are ``checks.row_major``."""
    numbers: list[int] = []
    for f, c in zip(features, centroids, strict=True):
        numbers += (f.data_ptr(), c.data_ptr(), f.shape[1], f.stride(0), c.stride(0))
    return numbers


def empty_scales(features: list[Tensor], centroids: list[Tensor], metric: str) -> Tensor | None:
    """Scratch for the inverse norms of the cosine distance ``(L, K + N)``; None for L2."""
    if metric == "l2":
        return None
    return features[0].new_empty((len(features), centroids[0].shape[0] + features[0].shape[0]), dtype=torch.float32)


def empty_distances(features: list[Tensor], centroids: list[Tensor], metric: str = "l2") -> Tensor:
    """A tensor for the distances ``(N, L, K)``."""
    return features[0].new_empty((features[0].shape[0], len(features), centroids[0].shape[0]), dtype=torch.float32)


def _forward(features: list[Tensor], centroids: list[Tensor], metric: str, name: str, *where: Any) -> Tensor:
    f, c = [checks.row_major(value) for value in features], [checks.row_major(value) for value in centroids]
    out, scales = empty_distances(f, c), empty_scales(f, c, metric)
    if out.numel():
        sizes = (out.shape[0], out.shape[2])
        function = getattr(_native.module(), name)
        function(native_layers(f, c), METRICS[metric], checks.address(scales), out.data_ptr(), *sizes, *where)
    return out


def _cpu(features: list[Tensor], centroids: list[Tensor], metric: str) -> Tensor:
    where = (torch.get_num_threads(), backends.cpu_isa())
    return _forward(features, centroids, metric, "cpu_centroid_distances", *where)


def _cuda(features: list[Tensor], centroids: list[Tensor], metric: str) -> Tensor:
    device = features[0].device
    with torch.cuda.device(device):
        where = (device.index, torch.cuda.current_stream().cuda_stream)
        return _forward(features, centroids, metric, "cuda_centroid_distances", *where)


def _triton(features: list[Tensor], centroids: list[Tensor], metric: str) -> Tensor:
    kernel = importlib.import_module("fastadv.kernels.triton.centroid_distances")
    f, c = [checks.row_major(value) for value in features], [checks.row_major(value) for value in centroids]
    out = empty_distances(f, c)
    if out.numel():
        kernel.launch(f, c, empty_scales(f, c, metric), out)
    return out


def gradient(
    grad: Tensor, distances: Tensor, features: list[Tensor], centroids: list[Tensor], metric: str, backend: str
) -> Tensor:
    """The gradient of all features ``(N, sum C_l)`` from that of the distances."""
    made: Tensor = _op_backward(grad, distances, features, centroids, metric, backend)
    return made


def _empty_gradient(
    grad: Tensor, distances: Tensor, features: list[Tensor], centroids: list[Tensor], metric: str
) -> Tensor:
    return grad.new_empty((grad.shape[0], sum(value.shape[1] for value in features)))


def _gradient(
    grad: Tensor,
    distances: Tensor,
    features: list[Tensor],
    centroids: list[Tensor],
    metric: str,
    name: str,
    *where: Any,
) -> Tensor:
    grad, distances = grad.contiguous(), distances.contiguous()
    f, c = [checks.row_major(value) for value in features], [checks.row_major(value) for value in centroids]
    out, scales = _empty_gradient(grad, distances, f, c, metric), empty_scales(f, c, metric)
    if out.numel():
        function = getattr(_native.module(), name)
        function(
            *(native_layers(f, c), METRICS[metric], checks.address(scales), grad.data_ptr(), distances.data_ptr()),
            *(out.data_ptr(), grad.shape[0], grad.shape[2], out.shape[1], *where),
        )
    return out


def _cpu_backward(*args: Any) -> Tensor:
    return _gradient(*args, "cpu_centroid_distances_backward", torch.get_num_threads(), backends.cpu_isa())


def _cuda_backward(grad: Tensor, *rest: Any) -> Tensor:
    with torch.cuda.device(grad.device):
        where = (grad.device.index, torch.cuda.current_stream().cuda_stream)
        return _gradient(grad, *rest, "cuda_centroid_distances_backward", *where)


def _triton_backward(
    grad: Tensor, distances: Tensor, features: list[Tensor], centroids: list[Tensor], metric: str
) -> Tensor:
    kernel = importlib.import_module("fastadv.kernels.triton.centroid_distances")
    f, c = [checks.row_major(value) for value in features], [checks.row_major(value) for value in centroids]
    out = _empty_gradient(grad, distances, f, c, metric)
    if out.numel():
        kernel.launch_backward(grad.contiguous(), distances.contiguous(), f, c, empty_scales(f, c, metric), out)
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, centroids, ctx.metric, ctx.backend = inputs
    ctx.save_for_backward(output, *features, *centroids)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    distances, *both = ctx.saved_tensors
    features, centroids = both[: len(both) // 2], both[len(both) // 2 :]
    made = gradient(grad, distances, features, centroids, ctx.metric, ctx.backend)
    parts = made.split([value.shape[1] for value in features], dim=1)
    return list(parts), [None] * len(centroids)


_op = define_op(
    "centroid_distances(Tensor[] features, Tensor[] centroids, str metric, str backend) -> Tensor",
    {"reference": reference.centroid_distances, "cpu": _cpu, "cuda": _cuda, "triton": _triton},
    fake=empty_distances,
    setup=_setup,
    backward=_backward,
)
_op_backward = define_op(
    "centroid_distances_backward(Tensor grad, Tensor distances, Tensor[] features, Tensor[] centroids, str metric,"
    " str backend) -> Tensor",
    {
        "reference": reference.centroid_distances_backward,
        "cpu": _cpu_backward,
        "cuda": _cuda_backward,
        "triton": _triton_backward,
    },
    fake=_empty_gradient,
)
