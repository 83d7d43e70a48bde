"""Pooling, then distances, in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

from torch import Tensor

from fastadv.ops.reference.average_pool import average_pool
from fastadv.ops.reference.centroid_distances import centroid_distances


def pooled_centroid_distances(maps: list[Tensor], centroids: list[Tensor], metric: str) -> tuple[Tensor, Tensor]:
    """See :func:`fastadv.ops.pooled_centroid_distances`; also the pooled features ``(N, sum C_l)``."""
    pooled = average_pool(maps)
    features = list(pooled.split([value.shape[1] for value in maps], dim=1))
    return centroid_distances(features, centroids, metric), pooled
