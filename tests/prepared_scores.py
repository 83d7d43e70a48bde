"""Small detectors as `fastadv.ops.PreparedScore` takes them, and maps for them."""

from __future__ import annotations

import torch
from torch import nn

from fastadv.testing.cases import arrange

KINDS = ("linear", "mlp", "lstm")
READINGS = ("raw", "relative")
METRICS = ("l2", "cosine", "l2+cosine")
SHAPES = ((5, 4, 7), (19, 3, 3), (130, 1, 1))  # channels, height and width of the layers


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(kind, *, classes=11, hidden=20, metric="l2", biases=True, reading="raw"):
    layers, width = len(SHAPES), (5 if reading == "relative" else classes) * len(metric.split("+"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = {
            "linear": lambda: None,
            "mlp": lambda: nn.Linear(layers * width, hidden, bias=biases),
            "lstm": lambda: nn.LSTM(width, hidden, batch_first=True),
        }[kind]()
        last = nn.Linear(layers * width if kind == "linear" else hidden, 1, bias=biases)
    return {
        "centroids": [numbers(classes, shape[0], seed=i) for i, shape in enumerate(SHAPES)],
        "metric": metric,
        "mean": numbers(layers, width, seed=5),
        "scale": numbers(layers, width, seed=6).abs() + 0.5,
        "hidden": first,
        "last": last,
        "reading": reading,
    }


def batch(count, dtype=torch.float32, layout="contiguous"):
    maps = [arrange(numbers(count, *shape, seed=10 + i).to(dtype), layout) for i, shape in enumerate(SHAPES)]
    return maps, arrange(numbers(count, 3, 6, 6, seed=9).sigmoid(), layout)
