"""Pooling, then distances relative to a class, in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

from torch import Tensor

from fastadv.ops.reference.average_pool import average_pool
from fastadv.ops.reference.relative_distances import relative_distances


def pooled_relative_distances(
    maps: list[Tensor], centroids: list[Tensor], metric: str, own: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`fastadv.ops.pooled_relative_distances`; also the own classes and the pooled features."""
    pooled = average_pool(maps)
    features = list(pooled.split([value.shape[1] for value in maps], dim=1))
    made, chosen = relative_distances(features, centroids, metric, own)
    return made, chosen, pooled
