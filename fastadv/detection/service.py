"""An HTTP service of a guard: it takes images and returns JSON. Needs the extra ``serve``."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastadv._version import __version__
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, FileError, MissingPackageError, UnavailableError
from fastadv.core.numbers import finite
from fastadv.data import ImageError
from fastadv.data.images import BudgetError
from fastadv.detection.guard import Guard
from fastadv.detection.service_config import ServiceConfig
from fastadv.detection.service_page import POLICY, page
from fastadv.models.memory import is_out_of_memory

try:
    import python_multipart  # noqa: F401  (what forms are read with)
    import uvicorn  # noqa: F401  (the server)
    from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from fastapi.security import HTTPBearer
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    from fastadv.detection.access import TokenCheck, check_token
    from fastadv.detection.connections import http_server
    from fastadv.detection.service_schema import Answer, JudgedFace, Prediction, Status, failures, request_body
    from fastadv.detection.service_work import Row, Service
    from fastadv.detection.uploads import BodyLimit, Refused, busy, in_time, read_body
except ImportError as error:
    raise MissingPackageError(
        "serving: expected fastapi, uvicorn, python-multipart and prometheus-client, got one that is "
        f"missing ({error}); pip install 'fastadv[serve]'"
    ) from error


_SWITCH = 0.0005  # seconds


class StuckError(UnavailableError):
    """The service has stopped, except for a thread whose forward pass does not end."""


def create_app(
    guard: Guard, config: ServiceConfig | None = None, *, classes: Sequence[str] | None = None, token: str | None = None
) -> FastAPI:
    """The service as an ASGI application.

    ``POST /v1/faces`` takes one aligned face as the body, or several as parts of a form. An image of another size than
    the network's is cropped to its central square and resampled. ``GET /healthz`` reports whether the process works,
    ``GET /readyz`` whether it is ready for images; ``GET /metrics`` is for Prometheus; ``GET /docs`` describes the API.
    No image is stored or logged.

    Args:
        guard: network, detector and threshold.
        config: limits; None for the default ones. Those on connections hold for the server only: see :func:`serve`.
        classes: name of each logit of the model's head, or None.
        token: what a client must send as ``Authorization: Bearer TOKEN``, except to ``/healthz`` and ``/readyz``; None
            to answer every client.

    Raises:
        ValueError: the number of classes is not that of the logits, or the token is not accepted.
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

    # the documentation pages of FastAPI load their script from another host; a redirect would name the Host that the
    # client sent
    app = FastAPI(
        title="fastadv",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=failures(limits),
    )
    app.state.service = service
    app.add_middleware(BodyLimit, most=limits.max_bytes, most_of_all=limits.max_buffered)
    if token is not None:
        check_token(token)
        app.add_middleware(TokenCheck, token=token, refuse=service.metrics.refuse)
    # the check is made before the application; this describes it
    secured: dict[str, Any] = {} if token is None else {"dependencies": [Depends(HTTPBearer(auto_error=False))]}

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "internal error; the server's log has the reason"}, 500)

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> JSONResponse:
        detail = "; ".join(f"{each['loc'][-1]}: {each['msg']}, got {brief(each['input'])}" for each in error.errors())
        return JSONResponse({"detail": detail}, 422)

    @app.post(
        "/v1/faces",
        openapi_extra={"requestBody": request_body(limits)},
        responses=failures(limits, faces=True, token=token is not None),
        **secured,
    )
    async def faces(
        request: Request,
        embedding: Annotated[bool, Query(description="Whether to answer with the embedding.")] = False,
        claimed: Annotated[str | None, Query(description="A class of the detector.")] = None,
    ) -> Answer:
        """Return the detector's score, the class and, on request, the embedding of each face.

        With ?claimed=NAME the faces claim to show this class of the detector, such as a person of the gallery.
        """
        begin = time.perf_counter()
        status = 500
        try:
            service.check_open()
            try:
                guard.place(claimed)
            except ArgumentError as error:
                raise HTTPException(422, str(error)) from None
            body = await read_body(request, most_bytes=limits.max_bytes, seconds=limits.timeout)
            with service.admitted():
                work = service.judge(body, claimed)
                del body  # the work frees it once it is decoded
                judged = await in_time(
                    work, limits.timeout, busy("answer_timeout", "the answer took too long"), client=request
                )
            status = 200
        except ImageError as error:
            status = 413 if isinstance(error, BudgetError) else 400
            raise HTTPException(status, str(error)) from error
        except HTTPException as error:
            status = error.status_code
            if isinstance(error, Refused):
                service.metrics.refuse(error.limit)
            raise
        except asyncio.CancelledError:  # the server stops
            status = 503
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            status = 503
            service.metrics.refuse("memory")
            raise busy("memory", "not enough memory") from None
        finally:
            service.metrics.requests.labels(str(status)).inc()
            service.metrics.seconds.observe(time.perf_counter() - begin)
        for _, row in judged:
            service.metrics.images.labels(str(row.flagged).lower()).inc()
        assert guard.threshold is not None
        told = [_told(name, row, embedding, classes) for name, row in judged]
        return Answer(model=guard.model.name, threshold=guard.threshold, faces=told)

    @app.get("/healthz")
    async def health() -> Status:
        """Whether the process works."""
        if not service.alive:
            raise busy("not_ready", f"not working: {service.problem or 'stopped, or forward passes fail'}")
        return Status(status="ok")

    @app.get("/readyz")
    async def readiness() -> Status:
        """Whether the service is ready for images."""
        if not service.ready:
            raise busy("not_ready", "warming up, or stopping")
        return Status(status="ready")

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        shown = page(app.openapi(), asdict(limits))
        return Response(shown, media_type="text/html", headers={"Content-Security-Policy": POLICY})

    text = {"type": "string"}

    @app.get(
        "/metrics",
        response_class=Response,
        responses={**failures(limits, token=token is not None), 200: {"content": {"text/plain": {"schema": text}}}},
        **secured,
    )
    async def metrics() -> Response:
        """Counters, gauges and histograms for Prometheus."""
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
    """Answer HTTP until SIGTERM or Ctrl-C; then answer the open requests, and close idle connections.

    At a second Ctrl-C the open requests are answered 503.

    Args:
        guard: network, detector and threshold.
        config: limits.
        classes: name of each logit of the model's head, or None.
        token: as for :func:`create_app`.
        host: an address of this machine.
        port: 0 to 65535; 0 for any free one.
        started: called with the address, once connections are accepted.

    Returns:
        Number of open requests that were not answered, because they took longer than ``drain`` or Ctrl-C came again.

    Raises:
        ValueError: the port is out of its range, or as :func:`create_app`.
        OSError: the address cannot be used.
        UnavailableError: the first forward pass failed.
        StuckError: the last forward pass did not end.
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
    service: Service = app.state.service
    server = http_server(app, config, service.metrics.refuse)
    service.on_problem = lambda: setattr(server, "should_exit", True)
    # from before the address is told: a client may send the signal as soon as it knows it
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    # a forward pass waits so long for the interpreter, after each operation, while the other thread refuses requests
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    try:
        with listening:
            shown = f"[{host}]" if family == socket.AF_INET6 else host
            started(f"http://{shown}:{listening.getsockname()[1]}")
            server.run(sockets=[listening])
    finally:
        sys.setswitchinterval(interval)
        for number, handler in before.items():
            signal.signal(number, handler)
    if service.problem is not None:
        raise UnavailableError(
            f"model: expected a network that runs, got {type(service.problem).__name__}: {service.problem}"
        ) from service.problem
    if server.stuck:
        raise StuckError("stop: expected the last forward pass to end, got none that did")
    return server.unanswered


def _told(name: str | None, row: Row, embedding: bool, classes: Sequence[str] | None) -> JudgedFace:
    vector = row.embedding.tolist() if embedding and bool(row.embedding.isfinite().all()) else None
    return JudgedFace(
        name=name,
        score=finite(row.score),  # JSON has no NaN
        p_value=finite(row.p_value),
        flagged=row.flagged,
        prediction=None if row.prediction is None else _predicted(*row.prediction, classes),
        embedding=vector,
    )


def _predicted(index: int, chance: float, classes: Sequence[str] | None) -> Prediction:
    return Prediction(index=index, name=None if classes is None else classes[index], confidence=finite(chance))
