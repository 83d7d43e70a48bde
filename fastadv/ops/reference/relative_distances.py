"""Distances relative to a class in plain PyTorch: the specification, and the backend ``reference``."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv.ops.reference.centroid_distances import blocks, measured

_INF, _NAN = float("inf"), float("nan")


def relative_distances(
    features: list[Tensor], centroids: list[Tensor], metric: str, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See :func:`fastadv.ops.relative_distances`; also the own classes ``(N,)``."""
    chosen = _nearest(features[-1], centroids[-1], metric) if own is None else own.clone()
    made = [_one_layer(f, c, chosen, metric) for f, c in zip(features, centroids, strict=True)]
    return torch.stack(made, dim=1), chosen


def _nearest(features: Tensor, centroids: Tensor, metric: str) -> Tensor:
    least = features.new_full((len(features),), _INF)
    chosen = torch.zeros_like(least, dtype=torch.int64)
    for first, distances in blocks(features, centroids, metric):
        value, at = distances.nan_to_num(_INF, _INF).min(dim=1)
        closer = value < least
        least, chosen = torch.where(closer, value, least), torch.where(closer, first + at, chosen)
    return chosen


def _one_layer(features: Tensor, centroids: Tensor, own: Tensor, metric: str) -> Tensor:
    count = len(centroids)
    rows = centroids[own.clamp(0, count - 1)].double()
    mine = measured(features.double(), rows, metric).float()
    mine = torch.where((own < 0) | (own >= count), _NAN, mine)
    least = torch.full_like(mine, _INF)
    closer, total = torch.zeros_like(own), torch.zeros_like(mine, dtype=torch.float64)
    for first, distances in blocks(features, centroids, metric):
        k = torch.arange(first, first + distances.shape[1], device=own.device)
        other = k != own[:, None]
        least = torch.minimum(least, torch.where(other, distances, _INF).amin(1))
        closer += (other & (distances < mine[:, None])).sum(1)
        total += torch.where(other, distances, 0.0).double().sum(1)
    a, m = mine.double(), least.double()
    ratio = torch.where(a == m, 0.5, a / (a + m))
    rank = torch.where(a.isnan(), _NAN, closer.double() / (count - 1))
    return torch.stack([a, m, ratio, rank, a - total / (count - 1)], dim=1).float()
