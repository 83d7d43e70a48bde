"""Pooling, then distances relative to a class, in Triton: the launches of both."""

from __future__ import annotations

from torch import Tensor

from . import average_pool, relative_distances


def launch(
    maps: list[tuple[Tensor, tuple[int, ...]]],
    pooled: Tensor,
    features: list[Tensor],
    centroids: list[Tensor],
    scales: Tensor | None,
    own: Tensor,
    choose: bool,
    seen: Tensor,
    out: Tensor,
    images: int,
    count: int,
) -> None:
    """Run on the current stream. ``features`` are the columns of ``pooled``, one view for each layer."""
    average_pool.launch(maps, pooled, *pooled.shape)
    relative_distances.launch(features, centroids, scales, own, choose, seen, out, images, count)
