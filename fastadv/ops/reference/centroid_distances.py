"""Distances to centroids in plain PyTorch: the specification, and the backend ``reference``.

In float64 and rounded once: the value that the others approach.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_ELEMENTS = 1 << 22  # of a temporary


def inverse_norm(vectors: Tensor) -> Tensor:
    """1 / norm of every row of float64 ``(..., 1)``; 0 of a row of zeros, NaN of one that is not finite."""
    squares = vectors.square().sum(-1, keepdim=True)
    scale = torch.where(squares.isinf(), torch.full_like(squares, float("nan")), squares.rsqrt())
    return torch.where(squares == 0, torch.zeros_like(squares), scale)


def measured(f: Tensor, c: Tensor, metric: str) -> Tensor:
    """The distances between the rows of two float64 tensors that broadcast."""
    if metric == "l2":
        return (f - c).square().sum(-1).sqrt()
    f_scale, c_scale = inverse_norm(f), inverse_norm(c)
    halved = 0.5 * (f * f_scale - c * c_scale).square().sum(-1)
    none = ((f_scale == 0) | (c_scale == 0))[..., 0]
    return torch.where(none, torch.ones_like(halved), halved)


def blocks(features: Tensor, centroids: Tensor, metric: str) -> Iterator[tuple[int, Tensor]]:
    """The float32 distances of one layer to some centroids after the others, and the index of the first of them."""
    f = features.double()[:, None]
    for part in _parts(features, centroids):
        yield part.start, measured(f, centroids[part].double(), metric).float()


def _parts(features: Tensor, centroids: Tensor) -> list[slice]:
    step = max(1, _ELEMENTS // max(1, features.numel()))
    return [slice(k, k + step) for k in range(0, centroids.shape[0], step)]


def _one_layer(features: Tensor, centroids: Tensor, metric: str) -> Tensor:
    return torch.cat([made for _, made in blocks(features, centroids, metric)], dim=1)


def centroid_distances(features: list[Tensor], centroids: list[Tensor], metric: str) -> Tensor:
    """See :func:`fastadv.ops.centroid_distances`."""
    return torch.stack([_one_layer(f, c, metric) for f, c in zip(features, centroids, strict=True)], dim=1)


def _one_gradient(grad: Tensor, distances: Tensor, features: Tensor, centroids: Tensor, metric: str) -> Tensor:
    f, g, d = features.double(), grad.double(), distances.double()
    total = torch.zeros_like(f)
    if metric == "l2":
        weight = torch.where(d == 0, torch.zeros_like(g), g / d)
        for part in _parts(features, centroids):
            difference = f[:, None] - centroids[part].double()[None]
            total += (weight[:, part, None] * difference).sum(1)
        return total.float()
    f_scale = inverse_norm(f)
    unit = f * f_scale
    for part in _parts(features, centroids):
        c = centroids[part].double()
        c_scale = inverse_norm(c)
        weight = torch.where((c_scale == 0).T, torch.zeros_like(g[:, part]), g[:, part])
        difference = unit[:, None] - (c * c_scale)[None]
        total += (weight[..., None] * difference).sum(1) - (weight * d[:, part]).sum(1, keepdim=True) * unit
    return (total * f_scale).float()


def centroid_distances_backward(
    grad: Tensor, distances: Tensor, features: list[Tensor], centroids: list[Tensor], metric: str
) -> Tensor:
    """The gradient of every feature, the layers' channels one after the other ``(N, sum C_l)``."""
    layers = zip(features, centroids, strict=True)
    made = [_one_gradient(grad[:, i], distances[:, i], f, c, metric) for i, (f, c) in enumerate(layers)]
    return torch.cat(made, dim=1)
