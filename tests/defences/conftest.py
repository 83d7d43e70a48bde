"""Small models for the defences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastadv.models import FaceModel

SIZE = (16, 16)
HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def make_model() -> Callable[..., FaceModel]:
    def make(seed: int = 0, *, head: bool = True) -> FaceModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential(
                nn.Conv2d(3, 6, 3, 2, 1),
                nn.BatchNorm2d(6),
                nn.PReLU(6),
                nn.Conv2d(6, 8, 3, 2, 1, bias=False),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(128, 10),
            )
            classes = nn.Linear(10, 4) if head else None
        model = FaceModel(
            net, input_size=SIZE, mean=HALF, std=HALF, name=f"tiny{seed}", layers=("2", "4"), head=classes
        )
        return model.eval()

    return make


@pytest.fixture
def model(make_model: Callable[..., FaceModel]) -> FaceModel:
    return make_model()


@pytest.fixture
def faces() -> Callable[..., Tensor]:
    def make(count: int, seed: int = 1) -> Tensor:
        x = torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
        return torch.round(x * 255) / 255

    return make
