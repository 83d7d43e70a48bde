"""Distances relative to one class straight from feature maps: the latency path of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from fastadv.ops import foreign, layers
from fastadv.ops.arguments import result
from fastadv.ops.declaration import Op
from fastadv.ops.relative_distances import gradient

Array = TypeVar("Array")


def pooled_relative_distances(
    maps: Sequence[Array],
    centroids: Sequence[Any],
    own: Any = None,
    *,
    metric: str = "l2",
    backend: str | None = None,
) -> Array:
    """Average-pool every map and read its distances relative to one class, in one call.

    The same numbers as :func:`average_pool` followed by :func:`relative_distances`; see there for the numbers, for
    memory and for the derivatives, which this has too: in every map.

    Args:
        maps: feature maps ``(N, C_l, H_l, W_l)`` as :func:`average_pool` takes them.
        centroids: one ``(K, C_l)`` float32 for each map, K >= 2.
        own: ``(N,)`` int64 in [0, K), or None for the nearest class at the last map.
        metric: ``"l2"`` or ``"cosine"``.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        ``(N, L, 5)`` float32.

    Raises:
        TypeError, ValueError, RuntimeError, BackendUnavailable: as :func:`average_pool` and :func:`relative_distances`.
    """
    found, *_ = _op.call(maps, centroids, metric, own, backend)
    return foreign.give_back(found, maps[0])


def _empty(
    maps: list[Tensor], centroids: list[Tensor], metric: str, own: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return (*layers.empty_reading(maps, centroids, metric, own), layers.empty_rows(maps))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    maps, centroids, ctx.metric, _, ctx.backend = inputs
    layers.remember_maps(ctx, maps)
    ctx.save_for_backward(*output, *centroids)


def _backward(ctx: Any, grad: Tensor, _: Any, grad_pooled: Tensor) -> tuple[Any, ...]:
    found, own, pooled, *centroids = ctx.saved_tensors
    features = list(pooled.split([value.shape[1] for value in centroids], dim=1))
    made = gradient(grad, found, own, features, centroids, ctx.metric, ctx.backend)
    return layers.spread(ctx, made + grad_pooled), [None] * len(centroids)


_op = Op(
    "pooled_relative_distances",
    layers.feature_maps(),
    layers.pooled(),
    layers.centroids(of="maps"),
    layers.own_class(of="maps"),
    result(),
    make=_empty,
    results=("out", "chosen", "pooled"),
    sizes=("out.shape[0]", "centroids[0].shape[0]"),
    setup=_setup,
    backward=_backward,
)
