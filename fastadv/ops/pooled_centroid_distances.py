"""Distances to centroids straight from feature maps: the latency path of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from fastadv.ops import foreign, layers
from fastadv.ops.arguments import result
from fastadv.ops.centroid_distances import gradient
from fastadv.ops.declaration import Op

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
        TypeError, ValueError, RuntimeError, BackendUnavailable: as :func:`average_pool` and :func:`centroid_distances`.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """
    distances, _ = _op.call(maps, centroids, metric, backend)
    return foreign.give_back(distances, maps[0])


def _empty(maps: list[Tensor], centroids: list[Tensor], metric: str) -> tuple[Tensor, Tensor]:
    pooled = layers.empty_rows(maps)
    return pooled.new_empty((pooled.shape[0], len(maps), centroids[0].shape[0])), pooled


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    maps, centroids, ctx.metric, ctx.backend = inputs
    layers.remember_maps(ctx, maps)
    ctx.save_for_backward(*output, *centroids)


def _backward(ctx: Any, grad: Tensor, grad_pooled: Tensor) -> tuple[Any, ...]:
    distances, pooled, *centroids = ctx.saved_tensors
    features = list(pooled.split([value.shape[1] for value in centroids], dim=1))
    made = gradient(grad, distances, features, centroids, ctx.metric, ctx.backend)
    return layers.spread(ctx, made + grad_pooled), [None] * len(centroids)


_op = Op(
    "pooled_centroid_distances",
    layers.feature_maps(),
    layers.pooled(),
    layers.centroids(of="maps"),
    result(),
    make=_empty,
    results=("out", "pooled"),
    sizes=("out.shape[0]", "out.shape[2]"),
    setup=_setup,
    backward=_backward,
)
