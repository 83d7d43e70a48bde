"""A tiny network to tap, labelled features, representatives of them; real faces and weights where they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastadv.detection import Representatives, centroids
from fastadv.models import FaceModel

LAYERS = ("conv", "block", "dense")
WIDTHS = (5, 7, 3)
CLASSES = ("ada", "bob", "cyd", "dan")


class Tiny(nn.Module):
    """A convolution, a block and a linear layer that can be tapped; `odd` gives no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, 2, 1)
        self.norm = nn.BatchNorm2d(5)
        self.block = nn.Sequential(nn.Conv2d(5, 7, 3, 2, 1), nn.PReLU(7))
        self.dense = nn.Linear(7, 3)
        self.twice = nn.ReLU()
        self.never = nn.ReLU()
        self.tokens = nn.Flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.block(self.norm(self.conv(x)))))
        return self.dense(self.tokens(x).mean(2))


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = Path(os.environ.get("FASTADV_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (root / "lfw").is_dir() or not (root / "weights").is_dir():
        pytest.skip(f"no faces and weights at {root}; set FASTADV_DATA")
    return root


def make_tiny() -> FaceModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        backbone = Tiny()
    half = (0.5, 0.5, 0.5)
    return FaceModel(backbone, input_size=(16, 16), mean=half, std=half, name="tiny", layers=LAYERS).eval()


@pytest.fixture
def tiny() -> FaceModel:
    return make_tiny()


@pytest.fixture(scope="session")
def faces() -> Callable[..., Tensor]:
    def make(count: int, seed: int = 0) -> Tensor:
        return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def labelled() -> Callable[..., tuple[list[Tensor], Tensor]]:
    """Values of three layers around a mean for each class, and labels, class by class."""

    def make(count: int, seed: int = 0, widths: Sequence[int] = WIDTHS) -> tuple[list[Tensor], Tensor]:
        generator = torch.Generator().manual_seed(seed)
        labels = (torch.arange(count) * len(CLASSES) // count).to(torch.int64)
        middles = [torch.randn(len(CLASSES), w, generator=torch.Generator().manual_seed(w)) * 3 for w in widths]
        return [m[labels] + torch.randn(count, m.shape[1], generator=generator) for m in middles], labels

    return make


@pytest.fixture(scope="session")
def representatives(labelled: Callable[..., tuple[list[Tensor], Tensor]]) -> Representatives:
    return centroids([labelled(60)], layers=LAYERS, classes=CLASSES, model="tiny", provenance={"data": "made up"})


def _damaged(data: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "truncated": data[: len(data) // 2],
        "header only": data[:8],
        "huge header": (1 << 62).to_bytes(8, "little") + data[8:],
        "noise": bytes(range(256)) * 40,
    }


@pytest.fixture(params=["empty", "truncated", "header only", "huge header", "noise"])
def damaged(request: pytest.FixtureRequest) -> Callable[[bytes], bytes]:
    """A file's bytes, broken in one of several ways."""
    return lambda data: _damaged(data)[request.param]
