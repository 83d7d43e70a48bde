"""What a client sends to the service: a head and a body in HTTP, a form, images."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastadv.data.images import ImageBudget, ImageError, decode_image
from fastadv.detection import Architecture, Detector, Guard, Network, Trajectory, centroids
from fastadv.models import FaceModel

from .images import PNG
from .judge import Target

_EDGE = b"edge"


class RefusedError(Exception):
    """An answer of 400 to 499, or 503."""


def _guard() -> Guard:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        model = FaceModel(
            backbone, input_size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, name="m", layers=("0", "3")
        ).eval()
        model.head = nn.Linear(3, 4).eval()
        batch = [torch.randn(8, 4), torch.randn(8, 3)], torch.arange(8) % 4
        found = centroids([batch], layers=("0", "3"), classes=("w", "x", "y", "z"), model="m")
        network = Network(Architecture(kind="mlp", layers=2, width=4, hidden=3)).eval().requires_grad_(False)
    return Guard(
        model=model, detector=Detector(trajectory=Trajectory(representatives=found), network=network), threshold=0.0
    )


class _Running:
    """The service, started once for the inputs of a process."""

    def __init__(self) -> None:
        from fastadv.detection.service import ServiceConfig, create_app

        self.loop = asyncio.new_event_loop()
        config = ServiceConfig(max_wait=0.0, max_images=4, max_pixels=1 << 16, max_request_pixels=1 << 18, timeout=20.0)
        self.app = create_app(_guard(), config)
        self.life = self.app.router.lifespan_context(self.app)  # kept: it would end the service
        self.loop.run_until_complete(self.life.__aenter__())
        while self.ask("GET", "/readyz", b"", []) != 200:
            self.loop.run_until_complete(asyncio.sleep(0.01))

    def ask(self, method: str, target: str, body: bytes, headers: list[tuple[bytes, bytes]]) -> int:
        """The status of the answer."""
        return self.loop.run_until_complete(self._asked(method, target, body, headers))

    async def _asked(self, method: str, target: str, body: bytes, headers: list[tuple[bytes, bytes]]) -> int:
        path, _, query = target.partition("?")
        given, sent = [body], []

        async def receive() -> dict[str, Any]:
            if given:
                return {"type": "http.request", "body": given.pop(), "more_body": False}
            return await asyncio.Future()  # the client waits; were it gone, its work would be dropped

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http"}
        scope |= {"path": path, "raw_path": path.encode(), "query_string": query.encode("latin-1"), "headers": headers}
        await self.app({**scope, "client": ("a", 1), "server": ("b", 2), "root_path": ""}, receive, send)
        return int(sent[0]["status"])


_running: list[_Running] = []


def _request(data: bytes, folder: Path) -> None:
    """A whole connection: its requests, one after the other, go to the application."""
    import h11

    from fastadv.detection.parsing import Parser

    if not _running:
        _running.append(_Running())
    parser = Parser()
    try:
        parser.receive_data(data)
        request, body = None, b""
        while not isinstance(event := parser.next_event(), (type, h11.ConnectionClosed)):  # needs more, or has ended
            if isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                break
    except h11.RemoteProtocolError as error:
        raise RefusedError from error
    if request is None:
        raise RefusedError
    headers = [(bytes(name).lower(), bytes(value)) for name, value in request.headers]
    status = _running[0].ask(request.method.decode(), request.target.decode("latin-1"), body, headers)
    if 400 <= status < 500 or status == 503:
        raise RefusedError
    assert status == 200, f"status {status}"


def _form(data: bytes, folder: Path) -> None:
    from fastadv.detection.uploads import Body, images_of

    budget = ImageBudget(pixels=1 << 18, parts=4096)
    for name, image in images_of(Body(data, _EDGE), 4):
        decode_image(image, name or "x", most=1 << 16, budget=budget)


def part(data: bytes, head: str = 'form-data; name="images"; filename="a.png"') -> bytes:
    """A part of a form."""
    return (
        b"--" + _EDGE + f"\r\nContent-Disposition: {head}\r\nContent-Type: image/png\r\n\r\n".encode() + data + b"\r\n"
    )


_FORM = part(PNG) + part(PNG, 'form-data; name="b"; filename="b \\" c.png"') + b"--edge--\r\n"


def post(body: bytes, kind: str = "image/png", target: str = "/v1/faces", more: str = "") -> bytes:
    """A request."""
    head = f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def _requests() -> list[bytes]:
    chunked = b"POST /v1/faces HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [
        post(PNG),
        post(_FORM, "multipart/form-data; boundary=edge", "/v1/faces?embedding=true"),
        post(PNG, target="/v1/faces?claimed=x"),
        chunked + b"%x\r\n" % len(PNG) + PNG + b"\r\n0\r\n\r\n",
        *(
            f"GET {place} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
            for place in ("/healthz", "/metrics", "/docs", "/openapi.json")
        ),
    ]


def _hostile_requests() -> list[bytes]:
    kinds = (
        "multipart/form-data; boundary=" + "a" * 5000,
        "multipart/form-data; boundary*=utf-8''%ff",
        "image/" + ";a=b" * 2000,
    )
    return [
        *(
            post(_FORM, kind)
            for kind in (*kinds, 'multipart/form-data; boundary="', "multipart/form-data; boundary=\xff")
        ),
        post(PNG, more="Expect: 100-continue\r\nContent-Length: " + "9" * 5000 + "\r\n"),
        b"POST /v1/faces HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\nExpect: 100-continue\r\n\r\n",
        post(PNG, target="/v1/faces?claimed=" + "%ff" * 2000 + "&embedding=2"),
        post(PNG, target="/v1/faces?embedding=" + "%00"),
        b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 2000 + b"\r\n",
    ]


def _targets() -> list[Target]:
    from fastapi import HTTPException

    return [
        Target(
            name="form",
            seeds=lambda: [_FORM, part(PNG) + b"--edge--"],
            hostile=lambda: [
                part(PNG) * 40 + b"--edge--",
                part(PNG, "form-data; name=a; filename*=utf-8''a.png") + b"--edge--",
                part(PNG, "form-data" + "; a=b" * 700) + b"--edge--",
                b"--edge\r\n" + b"\r\n" * 50_000,
                b"\r\n--edg" * 30_000,
            ],
            read=_form,
            errors=(HTTPException, ImageError),
            tokens=(b"--edge", b"--edge--\r\n", b"filename=", b"filename*=", b"Content-Type: ", b"\r\n\r\n", b"name="),
            weight=3,
        ),
        Target(
            name="request",
            seeds=_requests,
            hostile=_hostile_requests,
            read=_request,
            errors=(RefusedError,),
            tokens=(
                b"Content-Length: ",
                b"Transfer-Encoding: chunked",
                b"Expect: 100-continue",
                b"HTTP/1.1",
                b"\r\n\r\n",
            ),
            weight=0.3,
            examples=20,
            guided=False,
        ),
    ]


TARGETS = (
    _targets() if all(importlib.util.find_spec(each) for each in ("fastapi", "uvicorn", "prometheus_client")) else []
)
