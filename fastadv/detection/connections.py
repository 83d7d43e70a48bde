"""The connections of the HTTP service: how many may be open, and how long each may take. Needs the extra ``serve``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import logging
import math
import time
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastadv.detection.service_config import ServiceConfig

_KEY = "fastadv.connection"
_GRACE = 1.0  # seconds in which the head of a request is not yet late
_LINGER = 1.0  # seconds that a refused client has to read why
_LINGERING = 32  # of them at once; further ones are cut off
_SLICE = 8192  # bytes that are parsed at once: chunks of one byte cost a millisecond for each 600 bytes
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_QUIET = 60.0  # seconds after a line on descriptors in which there is no further one

_log = logging.getLogger(__name__)


def http_server(app: ASGIApp, config: ServiceConfig) -> uvicorn.Server:
    """A server of an application within the limits on connections."""
    connections = Connections(
        app,
        most=config.connections,
        head_seconds=config.head_timeout,
        request_seconds=2 * config.timeout + config.head_timeout,  # the body, the answer, and until it is sent
    )
    settings = uvicorn.Config(
        connections,
        http=connections.protocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        log_level="error",  # what is no HTTP is the client's concern, and would fill the log
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=math.ceil(config.drain),
    )
    return uvicorn.Server(settings)


class Connections:
    """The open connections of one server; around its application, which tells where requests begin and end.

    A connection is closed `head_seconds` after it was accepted, or after its last answer, unless the head of a request
    has arrived whole, and `request_seconds` after that head, unless it is answered. A connection too many takes the
    place of the oldest that has waited for a head for more than a second; where there is none, it is answered 503.
    """

    def __init__(self, app: ASGIApp, *, most: int, head_seconds: float, request_seconds: float) -> None:
        """Wrap an application."""
        self.app, self.most = app, most
        self.head_seconds, self.request_seconds = head_seconds, request_seconds
        self.protocol: Any = functools.partial(Connection, self)
        self.lingering = 0
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, float] = {}  # since when; the oldest first
        self._told = -_QUIET

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or begin and end with the server."""
        connection = scope.get("state", {}).get(_KEY)
        if connection is None:
            asyncio.get_running_loop().set_exception_handler(self._tell)
            await self.app(scope, receive, send)
            return
        connection.request_begins()
        try:
            await self.app(scope, receive, send)
        finally:
            connection.request_ends()

    def enter(self, connection: Connection) -> bool:
        """Count a connection in, unless there are too many."""
        if len(self._open) >= self.most:
            oldest, since = next(iter(self._waiting.items()), (None, 0.0))
            if oldest is None or time.monotonic() - since < _GRACE:
                return False
            oldest.give_way()
            self.leave(oldest)
        self._open.add(connection)
        return True

    def leave(self, connection: Connection) -> None:
        """Count it out."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def waits(self, connection: Connection, waiting: bool) -> None:
        """Whether a connection is waiting for the head of a request."""
        self._waiting.pop(connection, None)
        if waiting and connection in self._open:
            self._waiting[connection] = time.monotonic()

    def _tell(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Descriptors that run out are one line, not one for each attempt: asyncio tries again after a second."""
        if "_start_serving" in context.get("message", ""):
            return  # asyncio tries to accept again after the server was stopped
        if getattr(context.get("exception"), "errno", None) not in _SHORT or "accept" not in context.get("message", ""):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._told >= _QUIET:
            self._told = time.monotonic()
            _log.error("no file descriptor is left for a new connection; lower --max-connections or raise ulimit -n")


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """One connection: HTTP/1.1 by uvicorn and h11, with deadlines, and read in slices so that others get their turn."""

    def __init__(self, table: Connections, *, app_state: dict[str, Any], **options: Any) -> None:
        """As the server makes it."""
        super().__init__(app_state={**app_state, _KEY: self}, **options)
        self._table = table
        self._buffer = bytearray(_SLICE)
        self._deadline: asyncio.TimerHandle | None = None
        self._requests = self._active = 0
        self._heard = self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as H11Protocol
        """Begin to wait for a request, or refuse."""
        if self._table.enter(self):
            super().connection_made(transport)
            self._wait()
            return
        self.transport, self._refused = transport, True
        if self._table.lingering >= _LINGERING:
            transport.abort()
            return
        # closed at once, what it sends would be answered by a reset before it has read why
        self._table.lingering += 1
        transport.write(_answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{self._table.most} connections are open already"))
        transport.write_eof()
        self._within(_LINGER)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._cancel()
        self._table.leave(self)
        if not self._refused:
            super().connection_lost(exc)
        elif self._deadline is not None:
            self._table.lingering -= 1

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where what arrives is put."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what has arrived."""
        self._heard = True
        if self._refused:
            return
        try:
            self.data_received(bytes(memoryview(self._buffer)[:nbytes]))
        except h11.LocalProtocolError:  # what is no HTTP, behind a request that is being answered
            self.transport.abort()

    def shutdown(self) -> None:
        """Close it if it is idle, else after the answer: the server is stopping."""
        with contextlib.suppress(h11.LocalProtocolError):  # it is closing already
            super().shutdown()

    def request_begins(self) -> None:
        """The head of a request has arrived."""
        self._requests += 1
        self._active += 1
        self._table.waits(self, False)
        self._within(self._table.request_seconds)

    def request_ends(self) -> None:
        """A request was answered; what is left of its body must arrive before the next head is due."""
        self._active -= 1
        if not self._active and not self.transport.is_closing():
            self._wait()

    def give_way(self) -> None:
        """Close it, which waits for a request, in favour of another."""
        self._end("the head of the request took too long to arrive")

    def _wait(self) -> None:
        self._table.waits(self, True)
        self._within(self._table.head_seconds)

    def _within(self, seconds: float) -> None:
        self._cancel()
        self._deadline = self.loop.call_later(seconds, self._late)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _late(self) -> None:
        if self._refused or self._active:
            self.transport.abort()
        else:
            self._end("the head of the request took too long to arrive")

    def _end(self, reason: str) -> None:
        if self._heard and not self._requests:  # part of a first head, which nothing has answered
            self.transport.write(_answer(HTTPStatus.REQUEST_TIMEOUT, reason))
        if self.transport.get_write_buffer_size():  # its client does not read
            self.transport.abort()
        else:
            self.transport.close()


def _answer(status: HTTPStatus, detail: str) -> bytes:
    """A whole answer, where there is no request that the application could answer."""
    body = json.dumps({"detail": detail}).encode()
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode() + body
