"""A tiny network to tap, labelled features, representatives of them; real faces and weights where they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from given_data import data_folder
from torch import Tensor, nn

from fastadv.detection import Architecture, Detector, Network, Representatives, Trajectory, centroids
from fastadv.detection.guard import Guard
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
    return data_folder("lfw", "weights")


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


@pytest.fixture
def guard(tiny: FaceModel, representatives: Representatives) -> Guard:
    """A detector with random weights behind a head of nine classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = Network(Architecture(kind="mlp", layers=3, width=4, hidden=6)).eval().requires_grad_(False)
        tiny.head = nn.Linear(3, 9).eval()
    trajectory = Trajectory(representatives=representatives)
    return Guard(model=tiny, detector=Detector(trajectory=trajectory, network=network), threshold=0.0)


async def ask(app, method, path, body=b"", kind=None, *, declare=True, chunk=1 << 16, headers=()):
    """One request, as an ASGI server would hand it over."""
    path, _, query = path.partition("?")
    headers = [*headers, (b"content-type", kind.encode())] if kind else list(headers)
    if declare:
        headers.append((b"content-length", str(len(body)).encode()))
    parts = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]
    sent = []

    async def receive():
        await asyncio.sleep(0)
        if not parts:
            await asyncio.Event().wait()
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http"}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": headers}
    await app({**scope, "client": ("test", 1), "server": ("test", 80), "root_path": ""}, receive, send)
    text = b"".join(m.get("body", b"") for m in sent).decode()
    about = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], json.loads(text) if about["content-type"] == "application/json" else text


async def ready(app):
    for _ in range(2000):
        if (await ask(app, "GET", "/readyz"))[0] == 200:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("never ready")


def during(guard, work, *, token=None, **limits):
    """What ``work(app)`` gives while the service runs."""

    from fastadv.detection.service import ServiceConfig, create_app

    async def main():
        app = create_app(guard, ServiceConfig(**{"max_wait": 0.001, **limits}), token=token)
        async with app.router.lifespan_context(app):
            await ready(app)
            return await work(app)

    return asyncio.run(main())


@pytest.fixture
def asgi() -> SimpleNamespace:
    """The service as an application, without a socket: ``ask`` it, wait until it is ``ready``, ``during`` a test."""
    return SimpleNamespace(ask=ask, ready=ready, during=during)
