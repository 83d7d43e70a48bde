"""A guard behind HTTP: images in, JSON out. Needs the extra ``serve``."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv._version import __version__
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, FileError, MissingPackageError
from fastadv.data import ImageError
from fastadv.data.alignment import center_crop
from fastadv.data.images import BudgetError, ImageBudget, decode_image, to_tensor
from fastadv.detection.guard import Guard
from fastadv.detection.microbatch import Closed, MicroBatcher, Overloaded
from fastadv.detection.service_config import ServiceConfig
from fastadv.detection.service_page import POLICY, page

try:
    import python_multipart  # noqa: F401  (what forms are read with)
    import uvicorn  # noqa: F401  (the server)
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from pydantic import BaseModel, Field
    from starlette.exceptions import HTTPException as Refusal

    from fastadv.detection.access import TokenCheck, check_token
    from fastadv.detection.connections import http_server
    from fastadv.detection.service_metrics import Metrics
    from fastadv.detection.uploads import Body, BodyLimit, Upload, busy, described, images_of, in_time, read_body
except ImportError as error:
    raise MissingPackageError(
        "serving: expected fastapi, uvicorn, python-multipart and prometheus-client, got one that is "
        f"missing ({error}); pip install 'fastadv[serve]'"
    ) from error

_DECODERS = 2


class Prediction(BaseModel):
    """The class that the model's head chose."""

    index: int = Field(description="Of the class, from 0.")
    name: str | None = Field(description="Of the class, where the server was told the names.")
    confidence: float | None = Field(description="Its softmax, in [0, 1].")


class JudgedFace(BaseModel):
    """What is said of one image."""

    name: str | None = Field(description="The file name that came with it.")
    score: float | None = Field(description="The detector's logit: higher for what looks adversarial.")
    p_value: float | None = Field(
        description="Share of natural images that look at least as adversarial; null without a calibration set."
    )
    flagged: bool = Field(description="The score is at or above the threshold, or no number.")
    prediction: Prediction | None = Field(description="Null without a class head.")
    embedding: list[float] | None = Field(description="Of norm 1; only with ?embedding=true.")


class Answer(BaseModel):
    """What is said of a request."""

    model: str
    threshold: float
    faces: list[JudgedFace]


class Failure(BaseModel):
    """Why there is no answer."""

    detail: str


class _Row(NamedTuple):
    """One image's verdict, off the device."""

    flagged: bool
    score: float
    p_value: float | None
    prediction: tuple[int, float] | None
    embedding: Tensor


class Service:
    """One guard, its queue and its numbers; :func:`create_app` puts it behind HTTP."""

    def __init__(self, guard: Guard, config: ServiceConfig, classes: Sequence[str] | None = None) -> None:
        """Prepare; nothing runs before :meth:`start`.

        Raises:
            ValueError: there are classes, but not one for each logit.
        """
        logits = getattr(guard.model.head, "out_features", 0)
        if classes is not None and len(classes) != logits:
            raise ArgumentError(
                f"classes: expected {logits} names, one for each logit of the model, got {len(classes)}"
            )
        self.guard, self.config, self.size = guard, config, guard.model.input_size
        self.ready = False
        self.open = 0
        self.problem: BaseException | None = None
        self._batcher: MicroBatcher[tuple[NDArray, str | None], _Row] = MicroBatcher(
            self._judge, max_batch=config.max_batch, max_wait=config.max_wait, max_queue=config.max_queue
        )
        self.metrics = Metrics(lambda: self._batcher.waiting, guard.detector.thresholds, config.drift_window)
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

    async def judge(self, body: Body, claimed: str | None = None) -> list[tuple[str | None, _Row]]:
        """The name of each image of a body, and the verdict on it; all of them claim to show one class, or none.

        Raises:
            ImageError: one of them is no image that is taken, or they take more together than they may.
            HTTPException: as :func:`images_of`.
            Overloaded, Closed: as :meth:`MicroBatcher.submit`.
        """
        loop, limits = asyncio.get_running_loop(), self.config
        files = await loop.run_in_executor(self._decoders, images_of, body, limits.max_images)
        budget = ImageBudget(pixels=limits.max_request_pixels, parts=limits.max_parts)
        names = [name for name, _ in files]
        jobs = [loop.run_in_executor(self._decoders, self._decode, file, budget) for file in files]
        del body, files  # an exception keeps this frame
        try:
            crops = await asyncio.gather(*jobs)
        finally:
            while jobs:  # where one image is refused, nobody waits for the others
                jobs.pop().cancel()
        return list(zip(names, await self._batcher.submit([(crop, claimed) for crop in crops]), strict=True))

    async def _warm_up(self) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(None, self.guard.warm_up)
            self.ready = True
        except Exception as error:  # told by /healthz: whoever started the service then starts it again
            self.problem = error

    def _decode(self, file: Upload, budget: ImageBudget) -> NDArray:
        name, data = file
        image = decode_image(data, name or "the body", most=self.config.max_pixels, budget=budget)
        return center_crop(image, self.size)[0]

    def _judge(self, faces: Sequence[tuple[NDArray, str | None]]) -> list[_Row]:
        begin = time.perf_counter()
        crops, claimed = zip(*faces, strict=True)
        verdicts = self.guard(torch.stack([to_tensor(crop) for crop in crops]), claimed)
        flagged, scores = verdicts.flagged.tolist(), verdicts.scores.tolist()
        embeddings, found = verdicts.embeddings.cpu(), verdicts.p_values
        p_values: list[float | None] = [None] * len(crops) if found is None else found.tolist()
        predicted: list[tuple[int, float] | None] = [None] * len(crops)
        if verdicts.logits is not None:
            chance, index = verdicts.logits.softmax(1).max(1)
            predicted = list(zip(index.tolist(), chance.tolist(), strict=True))
        self.metrics.judged(verdicts, time.perf_counter() - begin)
        return [_Row(*row) for row in zip(flagged, scores, p_values, predicted, embeddings, strict=True)]


def create_app(
    guard: Guard, config: ServiceConfig | None = None, *, classes: Sequence[str] | None = None, token: str | None = None
) -> FastAPI:
    """The service as an ASGI application.

    ``POST /v1/faces`` takes one aligned face as the body, or several as parts of a form; of larger images the middle
    is resampled. ``GET /healthz`` says whether the process works, ``GET /readyz`` whether it is warm, ``GET /metrics``
    is for Prometheus, ``GET /docs`` describes all this. No image is stored or logged.

    Args:
        guard: judges.
        config: limits; None for the default ones. Those on connections are for the server: see :func:`serve`.
        classes: who each logit of the model's head is, or None.
        token: what a client must send as ``Authorization: Bearer TOKEN``, except to ``/healthz`` and ``/readyz``; None
            to answer everybody.

    Raises:
        ValueError: there is not one class for each logit, or the token is too short.
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

    # the documentation pages of FastAPI load their script from another host
    app = FastAPI(title="fastadv", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, most=limits.max_bytes, most_of_all=limits.max_buffered)
    if token is not None:
        check_token(token)
        app.add_middleware(TokenCheck, token=token)

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> JSONResponse:
        detail = "; ".join(f"{each['loc'][-1]}: {each['msg']}, got {brief(each['input'])}" for each in error.errors())
        return JSONResponse({"detail": detail}, 422)

    about = {"requestBody": described(limits.max_images)}

    @app.post("/v1/faces", openapi_extra=about, responses={422: {"model": Failure}})
    async def faces(request: Request, embedding: bool = False, claimed: str | None = None) -> Answer:
        """Say of each face whether it looks adversarial, who it is, and what its embedding is.

        With ?claimed=NAME the faces claim to show this class of the detector, such as a person of the gallery.
        """
        begin = time.perf_counter()
        status = 500
        service.open += 1
        try:
            if not service.ready:
                raise busy("warming up, or stopping")
            if service.open > limits.max_queue:
                raise busy(f"{limits.max_queue} requests are open already")
            try:
                guard.place(claimed)
            except ArgumentError as error:
                raise HTTPException(422, str(error)) from None
            body = await read_body(request, most_bytes=limits.max_bytes, seconds=limits.timeout)
            judged = await in_time(service.judge(body, claimed), limits.timeout, 503, "the answer took too long")
            status = 200
        except (Overloaded, Closed) as error:
            status = 503
            raise busy(str(error)) from error
        except ImageError as error:
            status = 413 if isinstance(error, BudgetError) else 400
            raise HTTPException(status, str(error)) from error
        except Refusal as error:
            status = error.status_code
            raise
        finally:
            service.open -= 1
            service.metrics.requests.labels(str(status)).inc()
            service.metrics.seconds.observe(time.perf_counter() - begin)
        for _, row in judged:
            service.metrics.images.labels(str(row.flagged).lower()).inc()
        assert guard.threshold is not None
        told = [_told(name, row, embedding, classes) for name, row in judged]
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
            raise busy("warming up, or stopping")
        return {"status": "ready"}

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        text = page(app.openapi(), asdict(limits))
        return Response(text, media_type="text/html", headers={"Content-Security-Policy": POLICY})

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        # in a thread: the test for drift of a large window takes as long as many answers
        loop = asyncio.get_running_loop()
        told = await loop.run_in_executor(None, generate_latest, service.metrics.registry)
        return Response(told, media_type=CONTENT_TYPE_LATEST)

    return app


def serve(
    guard: Guard,
    config: ServiceConfig | None = None,
    *,
    classes: Sequence[str] | None = None,
    token: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    started: Callable[[str], None] = lambda address: None,
) -> int:
    """Answer HTTP until SIGTERM or Ctrl-C; then requests that are open are answered, and idle connections closed.

    A second Ctrl-C does not wait for them: they are answered 503.

    Args:
        guard: judges.
        config: limits.
        classes: who each logit of the model's head is, or None.
        token: as for :func:`create_app`.
        host: an address of this machine.
        port: 0 for any free one.
        started: is told the address, once connections are taken.

    Returns:
        How many open requests were not answered: they took longer than ``drain``, or Ctrl-C came again.

    Raises:
        ValueError: the port is out of its range, or as :func:`create_app`.
        OSError: the address cannot be used.
    """
    if not 0 <= port < 1 << 16:
        raise ArgumentError(f"port: expected 0 to 65535, got {port}")
    config = config or ServiceConfig()
    app = create_app(guard, config, classes=classes, token=token)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise FileError(f"host, port: expected an address to listen on, got {host} port {port}: {error}") from error
    # asyncio sends small packets at once only where a socket says that it is TCP; each answer is 40 ms later otherwise
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=made.detach())
    server = http_server(app, config)
    # from before the address is told: a client may send the signal as soon as it knows it
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with listening:
            shown = f"[{host}]" if family == socket.AF_INET6 else host
            started(f"http://{shown}:{listening.getsockname()[1]}")
            server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return server.unanswered


def _told(name: str | None, row: _Row, embedding: bool, classes: Sequence[str] | None) -> JudgedFace:
    def number(value: float) -> float | None:  # JSON has no NaN
        return value if math.isfinite(value) else None

    vector = row.embedding.tolist() if embedding and bool(row.embedding.isfinite().all()) else None
    return JudgedFace(
        name=name,
        score=number(row.score),
        p_value=None if row.p_value is None else number(row.p_value),
        flagged=row.flagged,
        prediction=None if row.prediction is None else _predicted(*row.prediction, number, classes),
        embedding=vector,
    )


def _predicted(
    index: int, chance: float, number: Callable[[float], float | None], classes: Sequence[str] | None
) -> Prediction:
    return Prediction(index=index, name=None if classes is None else classes[index], confidence=number(chance))
