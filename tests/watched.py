"""Small detectors, and a small network under one: for tests of attacks that see both."""

from typing import Any

import torch
from torch import nn

from fastadv.detection import Architecture, Detector, LayerTap, Network, Representatives, Trajectory, centroids
from fastadv.models import FaceModel

LAYERS = ("0", "2")
HALF = (0.5, 0.5, 0.5)


def make_model(head: bool = True) -> FaceModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
        )
        classes = nn.Linear(10, 4) if head else None
    return FaceModel(net, input_size=(16, 16), mean=HALF, std=HALF, name="tiny", layers=LAYERS, head=classes).eval()


def faces(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def make_detector(model: FaceModel, kind: str, metric: str = "l2") -> Detector:
    tapped = LayerTap(model=model)(faces(24))
    found = [([value.detach() for value in tapped.values], torch.arange(24) % 4)]
    representatives = centroids(found, layers=LAYERS, classes=tuple("abcd"), model="tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = Network(Architecture(kind=kind, layers=2, width=4, hidden=8, dropout=0.0))
    network.scale.fill_(0.05)
    trajectory = Trajectory(representatives=representatives, metric=metric)
    return Detector(trajectory=trajectory, network=network.eval().requires_grad_(False))


def relative_of(representatives: Representatives, kind: str = "mlp", metric: str = "l2", **fields: Any) -> Detector:
    """A relative detector with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = Network(Architecture(kind=kind, layers=len(representatives.layers), width=5, hidden=6))
    network.mean.fill_(0.3)
    network.scale.fill_(0.7)
    trajectory = Trajectory(representatives=representatives, metric=metric, reading="relative", **fields)
    return Detector(trajectory=trajectory, network=network.eval().requires_grad_(False))
