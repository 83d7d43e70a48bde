"""Image files out of HTTP requests: types, sizes and time are limited before anything is decoded."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, MutableMapping
from typing import Any, NamedTuple, TypeVar

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import ASGIApp, Receive, Scope, Send

from fastadv.data.formats import HEAD, READ_FORMATS, readable, sniff

CUT_OFF = "the body ended before it was whole"

_FORM = "multipart/form-data"
_BYTES = "application/octet-stream"
_TYPES = f"an image type such as image/jpeg, or {_BYTES}"
_PART_HEAD = 4096  # bytes of the names and values of a part's headers
_ENCODED_NAME = re.compile(r";\s*filename\*", re.IGNORECASE)
_SILENT = logging.Logger("silent", logging.CRITICAL + 1)

T = TypeVar("T")

#: The name of an image, if it came with one, and its file.
Upload = tuple[str | None, bytes]


class Body(NamedTuple):
    """What a request brought: a file, or a form where it has a boundary."""

    data: bytes
    boundary: bytes | None


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
                raise busy(f"the requests that are open hold {self.most_of_all} bytes already")
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self._held -= seen


async def read_body(request: Request, *, most_bytes: int, seconds: float) -> Body:
    """The body of a request that may hold images.

    Raises:
        HTTPException: 400 for a body that is not whole or a form without a boundary, 408 where it took too long to
            arrive, 413 for one that is too large, 415 for a type that no image and no form has.
    """
    header = request.headers.get("content-type", "")
    kind = _type(header)
    if kind != _FORM and not _may_be_image(kind):
        raise HTTPException(415, f"content type is {kind!r}; expected {_FORM}, {_TYPES}")
    boundary = None
    if kind == _FORM:
        boundary = parse_options_header(header)[1].get(b"boundary", b"")
        if not boundary:
            raise HTTPException(400, f"content type: expected a boundary behind {_FORM}, got none")
    declared = request.headers.get("content-length", "")
    waits = "100-continue" in request.headers.get("expect", "").lower()  # for leave to send the body
    if waits and declared.isdecimal() and int(declared) > most_bytes:
        raise too_large(most_bytes, close=True)
    data = await in_time(_whole(request), seconds, 408, "the body took too long to arrive")
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
    form = _Form(most)
    try:
        parser = MultipartParser(body.boundary, form.callbacks())
        parser.logger = _SILENT  # it repeats bytes of the body
        parser.write(body.data)
    except FormParserError as error:
        raise HTTPException(400, f"the form is damaged: {error}") from None
    if form.parts and not form.whole:
        raise HTTPException(400, "the form is damaged: expected its boundary at the end")
    if not form.found:
        raise HTTPException(400, "the form has no file; expected one or more")
    for name, data in form.found:
        _check(name or "", data)
    return form.found


async def in_time(work: Awaitable[T], seconds: float, status: int, reason: str) -> T:
    """What ``work`` gives, or an HTTPException with this status and reason after so many seconds."""
    # not wait_for: its frame holds the task and the task's exception that frame, and with it all that was uploaded
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=seconds)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        del task
    raise HTTPException(status, reason, headers={"Connection": "close"} if status == 408 else None)


def too_large(most: int, *, close: bool = False) -> HTTPException:
    """The answer to a body of more than ``most`` bytes; ``close`` where the client has not begun to send it."""
    headers = {"Connection": "close"} if close else None
    return HTTPException(413, f"the body is larger than {most} bytes", headers=headers)


def busy(reason: str) -> HTTPException:
    """The answer to what can be tried again."""
    return HTTPException(503, reason, headers={"Retry-After": "1"})


def described(most_images: int) -> dict[str, Any]:
    """What a request's body may be, for the API's own description."""
    binary = {"type": "string", "format": "binary"}
    content: dict[str, Any] = {kind: {"schema": binary} for kind in ("image/*", _BYTES)}
    images = {"type": "array", "items": binary, "maxItems": most_images}
    content[_FORM] = {"schema": {"type": "object", "properties": {"images": images}}}
    return {"required": True, "content": content}


class _Form:
    """The files of a form, as its parser finds them."""

    def __init__(self, most: int) -> None:
        self.found: list[Upload] = []
        self.whole = False
        self._most = most
        self._headers: dict[str, str] = {}
        self._header = [b"", b""]  # the name and the value that are being read
        self._size = 0
        self._data: list[bytes] = []
        self.parts = 0

    def callbacks(self) -> Any:
        """What the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self.parts += 1
        if self.parts > self._most:
            raise HTTPException(400, f"Too many files: expected at most {self._most} in one form")
        self._headers, self._header, self._size, self._data = {}, [b"", b""], 0, []

    def _add(self, place: int, data: bytes) -> None:
        self._size += len(data)
        if self._size > _PART_HEAD:
            raise HTTPException(400, f"the form: expected at most {_PART_HEAD} bytes of headers in a part, got more")
        self._header[place] += data

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        self._header = [b"", b""]

    def _end(self) -> None:
        disposition = self._headers.get("content-disposition", "")
        about = parse_options_header(disposition)[1]
        if b"filename" not in about and _ENCODED_NAME.search(disposition):
            raise HTTPException(400, "the form: expected a file with filename=..., got filename* alone (RFC 7578, 4.2)")
        if b"filename" not in about:
            raise HTTPException(400, "the form: expected files only, got a field without a filename")
        name = (about[b"filename"] or about.get(b"name", b"")).decode("utf-8", "replace")
        kind = _type(self._headers.get("content-type", _BYTES))
        if not _may_be_image(kind):
            raise HTTPException(415, f"{name}: content type is {kind!r}; expected {_TYPES}")
        self.found.append((name, b"".join(self._data)))

    def _finish(self) -> None:
        self.whole = True


def _type(header: str) -> str:
    return header.partition(";")[0].strip().lower()


def _may_be_image(kind: str) -> bool:
    return kind.startswith("image/") or kind == _BYTES


def _check(name: str, data: bytes) -> None:
    """Refuse what a folder's reader would not take either, by the first bytes; the rest is found when it is decoded."""
    if not data:
        raise HTTPException(400, f"{name} is empty; expected an image")
    found = sniff(data[:HEAD])
    if not readable(found):
        raise HTTPException(415, f"{name} is no {READ_FORMATS} image" + (f" but {found}" if found else ""))
