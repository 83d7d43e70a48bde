"""Image files out of HTTP requests: types, sizes and time are limited before anything is decoded."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Awaitable, Iterator, MutableMapping
from typing import Any, NamedTuple, TypeVar

from fastapi import HTTPException, Request
from python_multipart.multipart import parse_options_header
from starlette.types import ASGIApp, Receive, Scope, Send

from fastadv.core.brief import brief
from fastadv.data.formats import HEAD, READ_FORMATS, readable, sniff

CUT_OFF = "the body ended before it was whole"

FORM = "multipart/form-data"
BYTES = "application/octet-stream"
GONE = 499  # what proxies count a request as whose client closed the connection; nobody receives it

_TYPES = f"an image type such as image/jpeg, or {BYTES}"
_PART_HEAD = 4096  # bytes of a part's headers
_ENCODED_NAME = re.compile(r";\s*filename\*", re.IGNORECASE)
_NEWLINES = re.compile(rb"[\r\n]*")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)", re.DOTALL)

T = TypeVar("T")

#: The name of an image, if it came with one, and its file.
Upload = tuple[str | None, bytes]


class Body(NamedTuple):
    """What a request brought: a file, or a form where it has a boundary."""

    data: bytes
    boundary: bytes | None


class Refused(HTTPException):
    """An answer that a limit gives, and not an image.

    Attributes:
        limit: Which, as the metrics name it.
    """

    def __init__(self, limit: str, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        """Refuse."""
        super().__init__(status, detail, headers)
        self.limit = limit


class BodyLimit:
    """Keeps no more than a number of bytes of a body (413), and of all bodies at once (503), whatever is declared.

    The answer is given at once. What still arrives is thrown away by the server, so that a client that sends its body
    whole reads the answer and no reset, until the next request's head is due.
    """

    def __init__(self, app: ASGIApp, most: int, most_of_all: int) -> None:
        """Put the limit around an application."""
        self.app, self.most, self.most_of_all = app, most, most_of_all
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        seen = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            size = len(message.get("body", b""))
            seen += size
            self._held += size
            if seen > self.most or self._held > self.most_of_all:
                message.clear()  # the exception keeps this frame
            if seen > self.most:
                raise too_large(self.most)
            if self._held > self.most_of_all:
                raise busy("buffered_bytes", f"the requests that are open hold {self.most_of_all} bytes already")
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self._held -= seen


async def read_body(request: Request, *, most_bytes: int, seconds: float) -> Body:
    """The body of a request that may hold images.

    Raises:
        HTTPException: 400 for a body that is not whole, two types, or a form without a boundary, 408 where it took too
            long to arrive, 413 for one that is too large, 415 for a type that no image and no form has.
    """
    given = request.headers.getlist("content-type")
    if len(given) > 1:  # a proxy may have looked at another one
        raise HTTPException(400, f"content type: expected one header, got {len(given)}")
    header = given[0] if given else ""
    kind = _type(header)
    if kind != FORM and not _may_be_image(kind):
        raise HTTPException(415, f"content type is {brief(kind)}; expected {FORM}, {_TYPES}")
    boundary = None
    if kind == FORM:
        boundary = parse_options_header(header)[1].get(b"boundary", b"")
        if not boundary:
            raise HTTPException(400, f"content type: expected a boundary behind {FORM}, got none")
    declared = request.headers.get("content-length", "")
    waits = "100-continue" in request.headers.get("expect", "").lower()  # for leave to send the body
    if waits and declared.isdecimal() and int(declared) > most_bytes:
        raise too_large(most_bytes, close=True)
    text = "the body took too long to arrive"
    data = await in_time(_whole(request), seconds, Refused("body_timeout", 408, text, {"Connection": "close"}))
    if data is None:
        raise HTTPException(400, CUT_OFF)
    return Body(data, boundary)


async def _whole(request: Request) -> bytes | None:
    """All of a body; None where it ended too early. No exception holds what had arrived of it."""
    parts: list[bytes] = []
    try:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(parts)
    finally:
        parts.clear()


def images_of(body: Body, most: int) -> list[Upload]:
    """The image files of a body: itself, or the parts of a form. The content decides what an image is.

    Everything stays in memory: no part becomes a temporary file.

    Raises:
        HTTPException: 400 for an empty body, a form that is damaged, has no file or more than ``most``, 415 for what is
            no image of a format that is read.
    """
    if body.boundary is None:
        _check("the body", body.data)
        return [(None, body.data)]
    found = [_file(headers, data) for headers, data in _parts(body.data, body.boundary, most)]
    if not found:
        raise HTTPException(400, "the form has no file; expected one or more")
    for name, data in found:
        _check(name or "", data)
    return found


async def in_time(work: Awaitable[T], seconds: float, late: Refused, *, client: Request | None = None) -> T:
    """What ``work`` gives, or ``late`` after so many seconds; it is given up, too, when its client is gone.

    Raises:
        Refused: it took too long, or the client closed the connection.
    """
    # not wait_for: its frame holds the task and the task's exception that frame, and with it all that was uploaded
    task = asyncio.ensure_future(work)
    gone = None if client is None else asyncio.ensure_future(_gone(client))
    both: set[asyncio.Future[Any]] = {task} if gone is None else {task, gone}
    try:
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone is not None and gone.done():
            late = Refused("client_gone", GONE, "the client is gone")
    finally:
        if left := [each for each in both if not each.done() and each.cancel()]:
            await asyncio.wait(left)
        del task, gone, both, left
    try:
        raise late
    finally:
        del late, client  # as above


async def _gone(client: Request) -> None:
    """Return once the client of a request whose body is read has closed its connection."""
    while (await client.receive())["type"] != "http.disconnect":
        pass


def too_large(most: int, *, close: bool = False) -> Refused:
    """The answer to a body of more than ``most`` bytes; ``close`` where the client has not begun to send it."""
    headers = {"Connection": "close"} if close else None
    return Refused("body_size", 413, f"the body is larger than {most} bytes", headers)


def busy(limit: str, detail: str) -> Refused:
    """The answer to what can be tried again."""
    return Refused(limit, 503, detail, {"Retry-After": "1"})


def _parts(data: bytes, boundary: bytes, most: int) -> Iterator[tuple[dict[bytes, str], bytes]]:
    """The headers and the content of each part of a form (RFC 7578).

    Looks for the boundary alone, and refuses a line that begins with it and goes on (RFC 2046, 5.1.1): the time is
    linear in the bytes, and the memory that of the parts, whatever they hold.
    """
    opening = _NEWLINES.match(data)
    assert opening is not None  # it matches nothing, too
    place = opening.end()
    if place == len(data):
        return
    line = b"--" + boundary
    if not data.startswith(line, place):
        raise HTTPException(400, "the form is damaged: expected its boundary at the beginning")
    place += len(line)
    for count in itertools.count(1):
        if data.startswith(b"--", place):
            return
        head = data.find(b"\r\n", place)
        if head < 0 or data[place:head].strip(b" \t"):
            raise HTTPException(400, "the form is damaged: expected a line break or its end behind a boundary")
        if count > most:
            raise HTTPException(400, f"Too many files: expected at most {most} in one form")
        end = data.find(b"\r\n\r\n", head, head + _PART_HEAD + 4)
        if end < 0 and len(data) - head > _PART_HEAD:
            raise HTTPException(400, f"the form: expected at most {_PART_HEAD} bytes of headers in a part, got more")
        place = data.find(b"\r\n" + line, end + 4)
        if end < 0 or place < 0:
            raise HTTPException(400, "the form is damaged: expected its boundary at the end")
        yield _headers(data[head + 2 : end]), data[end + 4 : place]
        place += 2 + len(line)


def _headers(block: bytes) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    for line in block.split(b"\r\n") if block else ():
        header = _HEADER.fullmatch(line)
        if header is None or header[1].lower() in found:
            raise HTTPException(400, "the form is damaged: expected each header of a part once, as 'name: value'")
        found[header[1].lower()] = header[2].decode("latin-1").strip()
    return found


def _file(headers: dict[bytes, str], data: bytes) -> Upload:
    disposition = headers.get(b"content-disposition", "")
    about = parse_options_header(disposition)[1]
    if b"filename" not in about and _ENCODED_NAME.search(disposition):
        raise HTTPException(400, "the form: expected a file with filename=..., got filename* alone (RFC 7578, 4.2)")
    if b"filename" not in about:
        raise HTTPException(400, "the form: expected files only, got a field without a filename")
    name = (about[b"filename"] or about.get(b"name", b"")).decode("utf-8", "replace")
    kind = _type(headers.get(b"content-type", BYTES))
    if not _may_be_image(kind):
        raise HTTPException(415, f"{name}: content type is {brief(kind)}; expected {_TYPES}")
    return name, data


def _type(header: str) -> str:
    return header.partition(";")[0].strip().lower()


def _may_be_image(kind: str) -> bool:
    return kind.startswith("image/") or kind == BYTES


def _check(name: str, data: bytes) -> None:
    """Refuse what a folder's reader would not take either, by the first bytes; the rest is found when it is decoded."""
    if not data:
        raise HTTPException(400, f"{name} is empty; expected an image")
    found = sniff(data[:HEAD])
    if not readable(found):
        raise HTTPException(415, f"{name} is no {READ_FORMATS} image" + (f" but {found}" if found else ""))
