"""A guard behind HTTP: images in, JSON out. Needs the extra ``serve``."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv._version import __version__
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, FileError, MissingPackageError
from fastadv.data import ImageError
from fastadv.data.alignment import center_crop
from fastadv.data.images import MAX_PIXELS, decode_image, read_size, to_tensor
from fastadv.detection.guard import Guard
from fastadv.detection.microbatch import Closed, MicroBatcher, Overloaded

try:
    import python_multipart  # noqa: F401  (what Starlette reads forms with)
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from pydantic import BaseModel, Field
    from starlette.exceptions import HTTPException as Refusal

    from fastadv.detection.uploads import BodyLimit, Upload, described, in_time, read_images
except ImportError as error:
    raise MissingPackageError(
        f"serving needs fastapi, uvicorn, python-multipart and prometheus-client ({error}): "
        "pip install 'fastadv[serve]'"
    ) from error

_DECODERS = 2
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """What a service may do.

    Attributes:
        max_batch: images in one forward pass, at most.
        max_wait: seconds that an image may wait for others to share a pass with.
        max_queue: images that may wait for a pass, and requests that may be open; more are told to come again (503).
        max_images: in one request.
        max_bytes: of a request's body.
        max_pixels: of one image.
        timeout: seconds that a request may take to arrive, and then to be answered.
        drain: seconds that open requests have to end when the service is stopped.

    Raises:
        ValueError: a field is out of its range.
    """

    max_batch: int = 16
    max_wait: float = 0.005
    max_queue: int = 256
    max_images: int = 32
    max_bytes: int = 8 * 2**20
    max_pixels: int = 16_000_000
    timeout: float = 10.0
    drain: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_images", "max_bytes", "max_pixels"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ArgumentError(f"{name} is {brief(value)}; expected an integer >= 1")
        if self.max_pixels > MAX_PIXELS:
            raise ArgumentError(f"max_pixels is {self.max_pixels}; expected at most {MAX_PIXELS}")
        if self.max_images > self.max_queue:
            raise ArgumentError(f"max_images is {self.max_images}; expected at most max_queue, {self.max_queue}")
        if not 0 <= self.max_wait <= 60:
            raise ArgumentError(f"max_wait is {self.max_wait}; expected seconds in [0, 60]")
        for name in ("timeout", "drain"):
            if not 0 < getattr(self, name) <= 3600:
                raise ArgumentError(f"{name} is {getattr(self, name)}; expected seconds in (0, 3600]")


class Prediction(BaseModel):
    """The class that the model's head chose."""

    index: int = Field(description="Of the class, from 0.")
    name: str | None = Field(description="Of the class, where the server was told the names.")
    confidence: float | None = Field(description="Its softmax, in [0, 1].")


class JudgedFace(BaseModel):
    """What is said of one image."""

    name: str | None = Field(description="The file name that came with it.")
    adversarial: bool = Field(description="The score is at or above the threshold, or no number.")
    score: float | None = Field(description="The detector's logit: higher for what looks adversarial.")
    authenticity: float | None = Field(description="sigmoid(-score), in [0, 1]; no calibrated chance.")
    prediction: Prediction | None = Field(description="Null without a class head.")
    embedding: list[float] | None = Field(description="Of norm 1; only with ?embedding=true.")


class Answer(BaseModel):
    """What is said of a request."""

    model: str
    threshold: float
    faces: list[JudgedFace]


class _Row(NamedTuple):
    """One image's verdict, off the device."""

    flagged: bool
    score: float
    authenticity: float
    prediction: tuple[int, float] | None
    embedding: Tensor


class _Metrics:
    """What Prometheus reads; a registry of its own, so that two services in one process do not meet."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = kept = CollectorRegistry()
        self.requests = Counter("fastadv_requests", "Requests for verdicts.", ["status"], registry=kept)
        self.images = Counter("fastadv_images", "Images that were judged.", ["verdict"], registry=kept)
        self.seconds = Histogram(
            "fastadv_request_seconds", "From the head of a request to its answer.", buckets=_SECONDS, registry=kept
        )
        self.model = Histogram("fastadv_model_seconds", "Of one forward pass.", buckets=_SECONDS, registry=kept)
        self.batch = Histogram(
            "fastadv_batch_images", "Images in one forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=kept
        )
        queue = Gauge("fastadv_queue_images", "Images that wait for a forward pass.", registry=kept)
        queue.set_function(waiting)


class Service:
    """One guard, its queue and its numbers; :func:`create_app` puts it behind HTTP."""

    def __init__(self, guard: Guard, config: ServiceConfig, classes: Sequence[str] | None = None) -> None:
        """Prepare; nothing runs before :meth:`start`.

        Raises:
            ValueError: the model's images are not square: there is no way to crop to them; or there are classes, but
                not one for each logit.
        """
        height, width = guard.model.input_size
        if height != width:
            raise ArgumentError(f"guard has a model for images of {height}x{width}; expected square ones")
        logits = getattr(guard.model.head, "out_features", 0)
        if classes is not None and len(classes) != logits:
            raise ArgumentError(f"classes has {len(classes)} names; expected {logits}, one for each logit of the model")
        self.guard, self.config, self.size = guard, config, height
        self.ready = False
        self.open = 0
        self.problem: BaseException | None = None
        self._batcher: MicroBatcher[NDArray, _Row] = MicroBatcher(
            self._judge, max_batch=config.max_batch, max_wait=config.max_wait, max_queue=config.max_queue
        )
        self.metrics = _Metrics(lambda: self._batcher.waiting)
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="fastadv-decode")
        self._warming: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether requests are being answered, or will be soon."""
        return self._batcher.alive and self.problem is None

    def start(self) -> None:
        """Begin: warm up, then be ready."""
        self._batcher.start()
        self._warming = asyncio.get_running_loop().create_task(self._warm_up())

    async def close(self) -> None:
        """Answer what is open, then stop."""
        self.ready = False
        if self._warming is not None:
            await self._warming
        await self._batcher.close()
        self._decoders.shutdown()

    async def judge(self, files: Sequence[Upload]) -> list[_Row]:
        """Verdicts on image files.

        Raises:
            ImageError: one of them is no image that is taken.
            Overloaded, Closed: as :meth:`MicroBatcher.submit`.
        """
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._decoders, self._decode, name or "the body", data) for name, data in files]
        return await self._batcher.submit(await asyncio.gather(*jobs))

    async def _warm_up(self) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(None, self.guard.warm_up)
            self.ready = True
        except Exception as error:  # told by /healthz: whoever started the service then starts it again
            self.problem = error

    def _decode(self, name: str, data: bytes) -> NDArray:
        read_size(io.BytesIO(data), name, most=self.config.max_pixels)
        return center_crop(decode_image(data, name), self.size)[0]

    def _judge(self, crops: Sequence[NDArray]) -> list[_Row]:
        begin = time.perf_counter()
        verdicts = self.guard(torch.stack([to_tensor(crop) for crop in crops]))
        flagged, scores = verdicts.flagged.tolist(), verdicts.scores.tolist()
        authenticity, embeddings = verdicts.authenticity.tolist(), verdicts.embeddings.cpu()
        predicted: list[tuple[int, float] | None] = [None] * len(crops)
        if verdicts.logits is not None:
            chance, index = verdicts.logits.softmax(1).max(1)
            predicted = list(zip(index.tolist(), chance.tolist(), strict=True))
        self.metrics.model.observe(time.perf_counter() - begin)
        self.metrics.batch.observe(len(crops))
        return [_Row(*row) for row in zip(flagged, scores, authenticity, predicted, embeddings, strict=True)]


def create_app(guard: Guard, config: ServiceConfig | None = None, *, classes: Sequence[str] | None = None) -> FastAPI:
    """The service as an ASGI application.

    ``POST /v1/faces`` takes one aligned face as the body, or several as parts of a form; larger images are cropped to
    their central square and resampled. ``GET /healthz`` says whether the process works, ``GET /readyz`` whether it is
    warm, ``GET /metrics`` is for Prometheus, ``GET /docs`` describes all this.

    Args:
        guard: judges.
        config: limits; None for the default ones.
        classes: who each logit of the model's head is, or None.

    Raises:
        ValueError: the model takes images that are not square, or there is not one class for each logit.
    """
    service = Service(guard, config or ServiceConfig(), classes)
    limits = service.config

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(title="fastadv", version=__version__, lifespan=lifespan)
    app.add_middleware(BodyLimit, most=limits.max_bytes)

    @app.post("/v1/faces", openapi_extra={"requestBody": described(limits.max_images)})
    async def faces(request: Request, embedding: bool = False) -> Answer:
        """Say of each face whether it looks adversarial, who it is, and what its embedding is."""
        begin = time.perf_counter()
        status = 500
        service.open += 1
        try:
            if not service.ready:
                raise _busy("warming up, or stopping")
            if service.open > limits.max_queue:
                raise _busy(f"{limits.max_queue} requests are open already")
            files = await read_images(
                request, most_bytes=limits.max_bytes, most_images=limits.max_images, seconds=limits.timeout
            )
            rows = await in_time(service.judge(files), limits.timeout, 503, "the answer took too long")
            status = 200
        except (ImageError, Overloaded, Closed) as error:
            refused = HTTPException(400, str(error)) if isinstance(error, ImageError) else _busy(str(error))
            status = refused.status_code
            raise refused from error
        except Refusal as error:
            status = error.status_code
            raise
        finally:
            service.open -= 1
            service.metrics.requests.labels(str(status)).inc()
            service.metrics.seconds.observe(time.perf_counter() - begin)
        for row in rows:
            service.metrics.images.labels("adversarial" if row.flagged else "natural").inc()
        assert guard.threshold is not None
        told = [_told(name, row, embedding, classes) for (name, _), row in zip(files, rows, strict=True)]
        return Answer(model=guard.model.name, threshold=guard.threshold, faces=told)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Whether the process works."""
        if not service.alive:
            raise HTTPException(503, f"not working: {service.problem or 'stopped'}")
        return {"status": "ok"}

    @app.get("/readyz")
    async def readiness() -> dict[str, str]:
        """Whether requests will be answered at once."""
        if not service.ready:
            raise _busy("warming up, or stopping")
        return {"status": "ready"}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def serve(
    guard: Guard,
    config: ServiceConfig | None = None,
    *,
    classes: Sequence[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Answer HTTP until SIGTERM or Ctrl-C; requests that are open are then answered before it returns.

    Args:
        guard: judges.
        config: limits.
        classes: who each logit of the model's head is, or None.
        host: an address of this machine.
        port: 0 for any free one.
        started: is told the address, once connections are taken.

    Raises:
        ValueError: the port is out of its range, or as :func:`create_app`.
        OSError: the address cannot be used.
    """
    if not 0 <= port < 1 << 16:
        raise ArgumentError(f"port is {port}; expected 0 to 65535")
    config = config or ServiceConfig()
    app = create_app(guard, config, classes=classes)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise FileError(f"cannot listen on {host} port {port}: {error}") from error
    # asyncio sends small packets at once only where a socket says that it is TCP; each answer is 40 ms later otherwise
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=made.detach())
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=math.ceil(config.drain),
    )
    # uvicorn raises the signal again when it has stopped; a stop that was asked for is no failure
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with listening:
            shown = f"[{host}]" if family == socket.AF_INET6 else host
            started(f"http://{shown}:{listening.getsockname()[1]}")
            uvicorn.Server(settings).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told(name: str | None, row: _Row, embedding: bool, classes: Sequence[str] | None) -> JudgedFace:
    def number(value: float) -> float | None:  # JSON has no NaN
        return value if math.isfinite(value) else None

    vector = row.embedding.tolist() if embedding and bool(row.embedding.isfinite().all()) else None
    return JudgedFace(
        name=name,
        adversarial=row.flagged,
        score=number(row.score),
        authenticity=number(row.authenticity),
        prediction=None if row.prediction is None else _predicted(*row.prediction, number, classes),
        embedding=vector,
    )


def _predicted(
    index: int, chance: float, number: Callable[[float], float | None], classes: Sequence[str] | None
) -> Prediction:
    return Prediction(index=index, name=None if classes is None else classes[index], confidence=number(chance))


def _busy(reason: str) -> HTTPException:
    return HTTPException(503, reason, headers={"Retry-After": "1"})


def _ignore(number: int, frame: Any) -> None:
    """A handler that lets the program go on."""
