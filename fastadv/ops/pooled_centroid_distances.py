"""Distances to centroids straight from feature maps: the latency path of a detector."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv import _native, backends
from fastadv.ops import checks, foreign
from fastadv.ops._define import define_op
from fastadv.ops.average_pool import check_maps, described, empty_rows, native_maps, remember_maps, spread
from fastadv.ops.centroid_distances import (
    METRICS,
    check_centroids,
    check_metric,
    empty_distances,
    empty_scales,
    gradient,
    native_layers,
)
from fastadv.ops.reference import pooled_centroid_distances as reference

Array = TypeVar("Array")


def pooled_centroid_distances(
    maps: Sequence[Array], centroids: Sequence[Any], *, metric: str = "l2", backend: str | None = None
) -> Array:
    r"""Average-pool every map and measure its distance to every centroid of its layer, in one call.

    .. math:: d_{n,l,k} = D\left(\frac{1}{H_l W_l} \sum_{h,w} x_{l,n,:,h,w},\ c_{l,k}\right)

    The same numbers as :func:`average_pool` followed by :func:`centroid_distances`; see there for accuracy, for zero
    vectors and for the derivatives, which this has too: in every map.

    Args:
        maps: feature maps ``(N, C_l, H_l, W_l)`` as :func:`average_pool` takes them.
        centroids: one ``(K, C_l)`` float32 for each map, K >= 1.
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
    lent = check_maps(foreign.borrow_each("maps", maps))
    against = check_centroids(foreign.borrow_each("centroids", centroids), lent, "maps")
    check_metric(metric)
    distances, _ = _op(lent, against, metric, backend or "auto")
    return foreign.give_back(distances, maps[0])


def _features(pooled: Tensor, maps: list[Tensor]) -> list[Tensor]:
    return list(pooled.split([value.shape[1] for value in maps], dim=1))


def _reference(maps: list[Tensor], centroids: list[Tensor], metric: str) -> tuple[Tensor, Tensor]:
    return reference.pooled_centroid_distances(maps, centroids, metric)


def _compiled(
    maps: list[Tensor], centroids: list[Tensor], metric: str, name: str, *where: Any
) -> tuple[Tensor, Tensor]:
    keep, c = [described(value) for value in maps], [checks.row_major(value) for value in centroids]
    pooled = empty_rows(maps)
    f = _features(pooled, maps)
    out, scales = empty_distances(f, c), empty_scales(f, c, metric)
    if out.numel():
        getattr(_native.module(), name)(
            *(native_maps(keep), checks.GRAD_TYPES[maps[0].dtype], pooled.data_ptr(), pooled.shape[1]),
            *(native_layers(f, c), METRICS[metric], checks.address(scales), out.data_ptr()),
            *(out.shape[0], out.shape[2], *where),
        )
    return out, pooled


def _cpu(maps: list[Tensor], centroids: list[Tensor], metric: str) -> tuple[Tensor, Tensor]:
    where = (torch.get_num_threads(), backends.cpu_isa())
    return _compiled(maps, centroids, metric, "cpu_pooled_centroid_distances", *where)


def _cuda(maps: list[Tensor], centroids: list[Tensor], metric: str) -> tuple[Tensor, Tensor]:
    device = maps[0].device
    with torch.cuda.device(device):
        where = (device.index, torch.cuda.current_stream().cuda_stream)
        return _compiled(maps, centroids, metric, "cuda_pooled_centroid_distances", *where)


def _triton(maps: list[Tensor], centroids: list[Tensor], metric: str) -> tuple[Tensor, Tensor]:
    kernel = importlib.import_module("fastadv.kernels.triton.pooled_centroid_distances")
    c = [checks.row_major(value) for value in centroids]
    pooled = empty_rows(maps)
    f = _features(pooled, maps)
    out = empty_distances(f, c)
    if out.numel():
        kernel.launch([described(value) for value in maps], pooled, f, c, empty_scales(f, c, metric), out)
    return out, pooled


def _fake(maps: list[Tensor], centroids: list[Tensor], metric: str) -> tuple[Tensor, Tensor]:
    pooled = empty_rows(maps)
    return empty_distances(_features(pooled, maps), centroids), pooled


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    maps, centroids, ctx.metric, ctx.backend = inputs
    remember_maps(ctx, maps)
    ctx.save_for_backward(*output, *centroids)


def _backward(ctx: Any, grad: Tensor, grad_pooled: Tensor) -> tuple[Any, ...]:
    distances, pooled, *centroids = ctx.saved_tensors
    features = list(pooled.split([value.shape[1] for value in centroids], dim=1))
    made = gradient(grad, distances, features, centroids, ctx.metric, ctx.backend)
    return spread(ctx, made + grad_pooled), [None] * len(centroids)


_op = define_op(
    "pooled_centroid_distances(Tensor[] maps, Tensor[] centroids, str metric, str backend) -> (Tensor, Tensor)",
    {"reference": _reference, "cpu": _cpu, "cuda": _cuda, "triton": _triton},
    fake=_fake,
    setup=_setup,
    backward=_backward,
)
