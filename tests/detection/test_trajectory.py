"""Trajectories against NumPy in float64, from pooled values and from maps, and their derivative."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastadv.detection import LayerTap, Trajectory, centroids
from fastadv.testing.tolerances import assert_same_bits

METRICS = ["l2", "cosine"]


def by_numpy(values, vectors, metric):
    layers = []
    for value, vector in zip(values, vectors, strict=True):
        f, c = value.detach().numpy().astype(np.float64), vector.numpy().astype(np.float64)
        if metric == "cosine":
            norms = np.linalg.norm(f, axis=1)[:, None] * np.linalg.norm(c, axis=1)[None]
            layers.append(1 - (f @ c.T) / norms)
        else:
            layers.append(np.linalg.norm(f[:, None] - c[None], axis=2))
    return torch.from_numpy(np.stack(layers, axis=1))


@pytest.mark.parametrize("metric", METRICS)
def test_distances_in_float64(representatives, labelled, metric):
    values, _ = labelled(9, seed=4)
    trajectory = Trajectory(representatives=representatives, metric=metric)
    made = trajectory(values)
    assert made.shape == (9, *trajectory.shape) == (9, 3, 4)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), by_numpy(values, representatives.vectors, metric), rtol=1e-5, atol=1e-7)


def test_a_representative_is_at_distance_zero_of_itself(representatives):
    made = Trajectory(representatives=representatives)(list(representatives.vectors))
    assert not made.diagonal(dim1=0, dim2=2).any()
    assert (made + torch.eye(4)[:, None] > 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_maps_give_what_pooled_values_give(tiny, faces, metric):
    x = faces(6)
    with torch.no_grad():
        pooled = LayerTap(model=tiny)(x).values
        maps = LayerTap(model=tiny, keep_maps=True)(x).values
    made = centroids([(pooled, torch.arange(6) % 2)], layers=tiny.layers, classes=("a", "b"), model="tiny")
    trajectory = Trajectory(representatives=made, metric=metric)
    torch.testing.assert_close(trajectory(maps), trajectory(pooled))


@pytest.mark.parametrize("metric", METRICS)
def test_the_derivative_in_float64(representatives, labelled, metric):
    values = [v.requires_grad_(True) for v in labelled(5, seed=4)[0]]
    weight = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    made = torch.autograd.grad(
        (Trajectory(representatives=representatives, metric=metric)(values) * weight).sum(), values
    )
    wide = [v.detach().double().requires_grad_(True) for v in values]
    total = torch.zeros((), dtype=torch.float64)
    for i, (f, c) in enumerate(zip(wide, representatives.vectors, strict=True)):
        c = c.double()
        if metric == "l2":
            d = (f[:, None] - c[None]).norm(dim=2)
        else:
            d = 1 - torch.nn.functional.cosine_similarity(f[:, None], c[None], dim=2)
        total = total + (d * weight[:, i].double()).sum()
    for one, other in zip(made, torch.autograd.grad(total, wide), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


def test_an_image_alone_or_among_others(representatives, labelled):
    values, _ = labelled(8, seed=4)
    trajectory = Trajectory(representatives=representatives)
    alone = torch.cat([trajectory([v[i : i + 1] for v in values]) for i in range(8)])
    assert_same_bits(trajectory(values), alone)


def test_mistakes(representatives, labelled):
    with pytest.raises(TypeError, match="representatives: expected Representatives, got list"):
        Trajectory(representatives=[])
    with pytest.raises(ValueError, match=r"metric: expected 'l2', 'cosine' or 'l2\+cosine', got 'l1'"):
        Trajectory(representatives=representatives, metric="l1")
    trajectory = Trajectory(representatives=representatives)
    values, _ = labelled(3)
    with pytest.raises(ValueError, match="centroids: expected 2 layers, like features, got 3"):
        trajectory(values[:2])
    with pytest.raises(ValueError, match=r"features: expected a sequence of one or more features \(N, C\), got none"):
        trajectory([])
    with pytest.raises(ValueError, match=r"centroids\[0\]: expected shape \(any, 7\), got \(4, 5\)"):
        trajectory([values[1], values[1], values[2]])
    with pytest.raises(TypeError, match=r"features\[0\]: expected .*, got int"):
        trajectory([1, 2, 3])


def test_moving(representatives, labelled):
    trajectory = Trajectory(representatives=representatives, metric="cosine", backend="reference")
    moved = trajectory.to("cpu")
    assert (moved.metric, moved.backend) == ("cosine", "reference")
    assert_same_bits(moved(labelled(3)[0]), trajectory(labelled(3)[0]))


@pytest.mark.gpu
def test_on_a_device(representatives, labelled):
    values, _ = labelled(9, seed=4)
    trajectory = Trajectory(representatives=representatives)
    made = trajectory.to("cuda")([v.cuda() for v in values])
    torch.testing.assert_close(made.cpu(), trajectory(values))
