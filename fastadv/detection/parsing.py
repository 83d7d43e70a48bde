"""HTTP/1.1 by h11, and what of it the service refuses. Needs the extra ``serve``."""

from __future__ import annotations

import json
from http import HTTPStatus

import h11

NO_HTTP = "expected an HTTP/1.1 request, got something else or a head of more than 16 KiB"
BOTH_LENGTHS = "expected Content-Length or Transfer-Encoding, got both"

CHUNKS = 256  # of a body, whatever their size
CHUNK_BYTES = 64  # that the chunks of a longer body have on average, at least: each one costs 10 us


class Parser(h11.Connection):
    """A server's half of a connection; refuses ambiguous lengths, and bodies in chunks of hardly a byte.

    Attributes:
        refusal: What was wrong, for the client.
    """

    def __init__(self) -> None:
        """Begin a connection."""
        super().__init__(h11.SERVER)
        self.refusal = NO_HTTP
        self._chunks = self._bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11.

        Raises:
            RemoteProtocolError: the client sends what is not answered; `refusal` says why.
        """
        event = None
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            error.__traceback__ = None  # h11 raises it in a frame that holds it
        if event is None:
            raise self._refused(self.refusal)
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                raise self._refused(BOTH_LENGTHS)
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > CHUNKS and self._bytes < CHUNK_BYTES * (self._chunks - 1):
                raise self._refused(f"the body: expected chunks of {CHUNK_BYTES} bytes on average, got smaller ones")
        return event

    @property
    def answered(self) -> bool:
        """Whether the answer to what arrived last has begun."""
        return self.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @property
    def half(self) -> str | None:
        """What has begun to arrive: the body or the head of a request."""
        if self.their_state is h11.SEND_BODY:
            return "body"
        return "head" if self.their_state is h11.IDLE and self.trailing_data[0] else None

    def _refused(self, reason: str) -> h11.RemoteProtocolError:
        self.refusal = reason
        return h11.RemoteProtocolError(reason)


def whole_answer(status: HTTPStatus, detail: str) -> bytes:
    """An answer and its head, where there is no request that the application could answer."""
    body = json.dumps({"detail": detail}).encode()
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *(("retry-after: 1",) if status is HTTPStatus.SERVICE_UNAVAILABLE else ()),
    )
    return "\r\n".join((*lines, "", "")).encode() + body
