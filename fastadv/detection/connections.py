"""The connections of the HTTP service: how many may be open, and how long each may take. Needs the extra ``serve``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastadv.detection.parsing import Parser, whole_answer
from fastadv.detection.service_config import ServiceConfig
from fastadv.detection.uploads import CUT_OFF

_KEY = "fastadv.connection"
_GRACE = 1.0  # seconds in which the head of a request is not yet late
_LINGER = 1.0  # seconds that a refused client has to read why
_LINGERING = 32  # of them at once; further ones are cut off
_SLICE = 8192  # bytes that are parsed at once
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_CLOSING = 10.0  # seconds that the application has to end after its last request: a forward pass and two images
_PROBE = 0.1  # seconds until a client that sends nothing more is first asked whether it still reads
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_POLL = 0.02  # seconds between two looks at what is still open when the server stops
_QUIET = 60.0  # seconds after a line on descriptors in which there is no further one

_CUT_HEAD = "the head of the request ended before it was whole"

_log = logging.getLogger(__name__)


def http_server(app: ASGIApp, config: ServiceConfig, refuse: Callable[[str], None] = lambda limit: None) -> Server:
    """A server of an application within the limits on connections; `refuse` counts what they refuse."""
    connections = Connections(
        app,
        most=config.connections,
        head_seconds=config.head_timeout,
        request_seconds=2 * config.timeout + config.head_timeout,  # the body, the answer, and until it is sent
        refuse=refuse,
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
    )
    return Server(settings, connections, config.drain)


class Server(uvicorn.Server):
    """A server that stops without a reset, a traceback or a wrong word about what was open.

    Attributes:
        unanswered: After the stop: how many open requests were not answered.
        stuck: After the stop: the application did not end in time.
    """

    def __init__(self, settings: uvicorn.Config, table: Connections, drain: float) -> None:
        """Prepare."""
        super().__init__(settings)
        self._table, self._drain = table, drain
        self.unanswered = 0
        self.stuck = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: who runs a server gives signals to `handle_exit`, also before it runs."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, wait for what is open, and cancel what takes too long or is not waited for."""
        state, table = self.server_state, self._table
        for server in self.servers:
            server.close()
        for each in sockets or []:
            each.close()
        for connection in list(state.connections):
            connection.shutdown()
        await asyncio.sleep(_POLL)
        end = time.monotonic() + self._drain
        while (state.connections or state.tasks) and not self.force_exit and time.monotonic() < end:
            await asyncio.sleep(_POLL)
        for task in list(state.tasks):
            task.cancel()
        end = time.monotonic() + _LINGER
        while (state.tasks or table.lingering) and time.monotonic() < end:
            await asyncio.sleep(_POLL)
        unsent = {each for each in state.connections if each.transport.get_write_buffer_size()}
        self.unanswered = len(table.cut | unsent)
        table.cut.clear()
        try:
            await asyncio.wait_for(self.lifespan.shutdown(), _CLOSING)
        except asyncio.TimeoutError:
            self.stuck = self.lifespan.shutdown_failed = True  # it is cancelled with the loop, without a traceback


class Connections:
    """The open connections of one server; around its application, which tells where requests begin and end.

    A connection is closed `head_seconds` after it was accepted, or after its last answer, unless the head of a request
    has arrived whole, and `request_seconds` after that head, unless it is answered. A connection too many takes the
    place of the oldest that has waited for a head for more than a second; where there is none, it is answered 503.
    """

    def __init__(
        self, app: ASGIApp, *, most: int, head_seconds: float, request_seconds: float, refuse: Callable[[str], None]
    ) -> None:
        """Wrap an application."""
        self.app, self.most, self.refuse = app, most, refuse
        self.head_seconds, self.request_seconds = head_seconds, request_seconds
        self.protocol: Any = functools.partial(Connection, self)
        self.lingering = 0
        self.cut: set[Connection] = set()  # whose request a stop did not wait for, or whose answer took too long then
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

        async def last(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and connection.stopping:
                headers = [each for each in message.get("headers", ()) if each[0] != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        connection.request_begins()
        try:
            await self.app(scope, receive, last)
        except asyncio.CancelledError:  # the server stops, and does not wait for this one
            self.refuse("stopping")
            self.cut.add(connection)
            connection.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "stopping")
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


class _Transport:
    """A transport that is closed in another way."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None], closing: Callable[[], bool]) -> None:
        self._transport = transport
        self.close, self.is_closing = close, closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """One connection: HTTP/1.1 by uvicorn and h11, with deadlines, and read in slices so that others get their turn."""

    conn: Parser

    def __init__(self, table: Connections, *, app_state: dict[str, Any], **options: Any) -> None:
        """As the server makes it."""
        super().__init__(app_state={**app_state, _KEY: self}, **options)
        self.conn = Parser()
        self._table = table
        self._buffer = bytearray(_SLICE)
        self._deadline: asyncio.TimerHandle | None = None
        self._probe: asyncio.TimerHandle | None = None
        self._active = 0
        self._lingers = self._half_closed = self.stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as H11Protocol
        """Begin to wait for a request, or refuse."""
        self._real = transport
        if self._table.enter(self):
            super().connection_made(_Transport(transport, self._close, self._closing))  # type: ignore[arg-type]
            self._wait()
            return
        self.transport = transport
        self._table.refuse("connections")
        if self._table.lingering >= _LINGERING:
            transport.abort()
            return
        reason = f"{self._table.most} connections are open already"
        transport.write(whole_answer(HTTPStatus.SERVICE_UNAVAILABLE, reason))
        self._linger()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; nothing that a request still holds leads to its buffers or back to it."""
        self._cancel()
        if self._probe is not None:
            self._probe.cancel()
        self._table.leave(self)
        if self._lingers:
            self._table.lingering -= 1
        self.transport = self._real
        if self.flow is not None:
            super().connection_lost(exc)
            self._unset_keepalive_if_required()
        self.app_state.clear()
        self.cycle = self.flow = self.scope = None  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where what arrives is put."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what has arrived."""
        if self._lingers:
            return
        try:
            self.data_received(bytes(memoryview(self._buffer)[:nbytes]))
        except h11.LocalProtocolError:  # what is no HTTP, behind a request that is being answered
            self._real.abort()

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio.BufferedProtocol
        """The client sends nothing more: what it has sent whole is answered, and what is cut off refused."""
        self._half_closed = True
        if self._lingers or self.flow is None:
            return False
        half = self.conn.half
        if half and not self.conn.answered:
            self.refuse(HTTPStatus.BAD_REQUEST, CUT_OFF if half == "body" else _CUT_HEAD)
            return False
        self._probe = self.loop.call_later(_PROBE, self._still_reads, _PROBE)
        return self._answering()

    def _still_reads(self, seconds: float) -> None:
        """Find out whether a client that sends nothing more has closed the connection, or its half only.

        One that reads skips this answer (RFC 9110, 15.2). The system of one that has closed replies with a reset,
        which the next write finds.
        """
        if self._answering() and not self.cycle.response_started and self.scope["http_version"] == "1.1":
            self._real.write(_CONTINUE)
            self._probe = self.loop.call_later(seconds, self._still_reads, min(1.0, 2 * seconds))

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._table.refuse("not_http")
        self.refuse(HTTPStatus.BAD_REQUEST, self.conn.refusal)

    def refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer in the application's place, if it has not begun to, and close."""
        if self.flow is None or self._lingers:
            return
        if self._answering():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.answered:
            self._real.abort()
        else:
            self._real.write(whole_answer(status, detail))
            self._close()

    def shutdown(self) -> None:
        """Close it if it is idle, else after the answer: the server is stopping."""
        self.stopping = True
        with contextlib.suppress(h11.LocalProtocolError):  # it is closing already
            super().shutdown()

    def request_begins(self) -> None:
        """The head of a request has arrived."""
        self._active += 1
        if not self.transport.is_closing():
            self._table.waits(self, False)
            self._within(self._table.request_seconds)

    def request_ends(self) -> None:
        """A request was answered; what is left of its body must arrive before the next head is due."""
        self._active -= 1
        if self._active or self.transport.is_closing() or self._answering():
            return
        if self._half_closed:
            self._close()
        else:
            self._wait()

    def give_way(self) -> None:
        """Close it, which waits for a request, in favour of another."""
        self._end()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._table.waits(self, True)
        self._within(self._table.head_seconds)

    def _within(self, seconds: float) -> None:
        self._cancel()
        self._deadline = self.loop.call_later(seconds, self._late)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        if self._lingers:
            self._real.abort()
        elif self._active:
            self._give_up()
        else:
            self._end()

    def _end(self) -> None:
        if self._lingers:
            return
        if self.conn.half == "head":
            self._table.refuse("head_timeout")
            self._real.write(
                whole_answer(HTTPStatus.REQUEST_TIMEOUT, "the head of the request took too long to arrive")
            )
        if self._real.get_write_buffer_size():  # its client does not read
            self._give_up()
        else:
            self._close()

    def _give_up(self) -> None:
        self._table.refuse("unread_answer")
        if self.stopping:
            self._table.cut.add(self)
        self._real.abort()

    def _closing(self) -> bool:
        return self._lingers or self._real.is_closing()

    def _close(self) -> None:
        """Close; what is not read yet would make that a reset, and the client might lose its answer."""
        if self._lingers:
            return
        unread = self.flow.read_paused or self.conn.half or self.conn.trailing_data[0]
        if not unread or self._half_closed or self._table.lingering >= _LINGERING:
            self._real.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Say that this was all, and discard for a moment what the client still sends."""
        self._lingers = True
        self._table.lingering += 1
        self._table.leave(self)
        with contextlib.suppress(OSError):  # the client is gone
            self._real.write_eof()
        if self.flow is not None:
            self.flow.resume_reading()
        self._within(_LINGER)
