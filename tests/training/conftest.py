"""A tiny network and a handful of tiny faces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastadv.data import SyntheticFaces, write_png
from fastadv.models import FaceModel

HALF = (0.5, 0.5, 0.5)


def make_tiny(seed: int = 0, *, size: int = 32, dropout: float = 0.0) -> FaceModel:
    """A few thousand weights, with batch norm (a state beside the weights) and, if wanted, dropout (random state)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(64, 8),
        )
    return FaceModel(backbone, input_size=(size, size), mean=HALF, std=HALF, name="tiny")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., FaceModel]:
    return make_tiny


@pytest.fixture(scope="session")
def faces() -> SyntheticFaces:
    return SyntheticFaces(identities=6, per_identity=6, seed=1, size=32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two people with three images each, 112 x 112."""
    root = tmp_path / "faces"
    generator = np.random.default_rng(0)
    for person in ("ada", "bob"):
        (root / person).mkdir(parents=True)
        for k in range(3):
            write_png(root / person / f"{k}.png", generator.integers(0, 256, (112, 112, 3), dtype=np.uint8))
    return root
