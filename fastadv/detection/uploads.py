"""Image files out of HTTP requests: types, sizes and time are limited before anything is decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, MutableMapping
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from fastadv.data.formats import HEAD, readable, sniff

_FORM = "multipart/form-data"
_BYTES = "application/octet-stream"
_TYPES = f"an image type such as image/jpeg, or {_BYTES}"
_FORMATS = "JPEG, PNG, BMP, WebP or PPM"
_DRAINED = 8

T = TypeVar("T")

#: The name of an image, if it came with one, and its file.
Upload = tuple[str | None, bytes]


class BodyLimit:
    """Keeps no more than a number of bytes of a body, whatever length was declared; the answer is 413.

    A client that sends its body whole reads the answer only then, so up to `_DRAINED` times as much is thrown away
    before the answer; behind that the connection is closed.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        """Put the limit around an application."""
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        seen = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                while message.get("more_body") and seen <= _DRAINED * self.most:
                    message = await receive()
                    seen += len(message.get("body", b""))
                raise too_large(self.most)
            return message

        await self.app(scope, counted, send)


async def read_images(request: Request, *, most_bytes: int, most_images: int, seconds: float) -> list[Upload]:
    """The image files of a request: its body, or the parts of a form. The content decides what an image is.

    Raises:
        HTTPException: 400 for an empty body, one that is not whole or a form without files, 408 where it took too long
            to arrive, 413 for a body that is too large, 415 for what is no image of a format that is read.
    """
    kind = _type(request.headers.get("content-type", ""))
    if kind != _FORM and not _may_be_image(kind):
        raise HTTPException(415, f"content type is {kind!r}; expected {_FORM}, {_TYPES}")
    declared = request.headers.get("content-length", "")
    waits = "100-continue" in request.headers.get("expect", "").lower()  # for leave to send the body
    if waits and declared.isdecimal() and int(declared) > most_bytes:
        raise too_large(most_bytes)
    reading = _parts(request, most_images) if kind == _FORM else _body(request)
    try:
        return await in_time(reading, seconds, 408, "the body took too long to arrive")
    except ClientDisconnect:
        raise HTTPException(400, "the body ended before it was whole") from None


async def in_time(work: Awaitable[T], seconds: float, status: int, reason: str) -> T:
    """What ``work`` gives, or an HTTPException with this status and reason after so many seconds."""
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise HTTPException(status, reason) from None


def too_large(most: int) -> HTTPException:
    """The answer to a body of more than ``most`` bytes."""
    return HTTPException(413, f"the body is larger than {most} bytes", headers={"Connection": "close"})


def described(most_images: int) -> dict[str, Any]:
    """What a request's body may be, for the API's own description."""
    binary = {"type": "string", "format": "binary"}
    content: dict[str, Any] = {kind: {"schema": binary} for kind in ("image/*", _BYTES)}
    images = {"type": "array", "items": binary, "maxItems": most_images}
    content[_FORM] = {"schema": {"type": "object", "properties": {"images": images}}}
    return {"required": True, "content": content}


async def _body(request: Request) -> list[Upload]:
    data = await request.body()
    _check("the body", data)
    return [(None, data)]


async def _parts(request: Request, most: int) -> list[Upload]:
    found: list[Upload] = []
    async with request.form(max_files=most, max_fields=0) as form:
        for field, part in form.multi_items():
            assert isinstance(part, UploadFile)  # no other field is let through
            name, kind = part.filename or field, _type(part.content_type or _BYTES)
            if not _may_be_image(kind):
                raise HTTPException(415, f"{name}: content type is {kind!r}; expected {_TYPES}")
            data = await part.read()
            _check(name, data)
            found.append((name, data))
    if not found:
        raise HTTPException(400, "the form has no file; expected one or more")
    return found


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
        raise HTTPException(415, f"{name} is no {_FORMATS} image" + (f" but {found}" if found else ""))
