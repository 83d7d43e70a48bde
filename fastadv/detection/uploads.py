"""Image files out of HTTP requests: types, sizes and time are limited before anything is decoded."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, MutableMapping
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from fastadv.data import ImageError

#: Types of a body or a part, and the format that it must then have; None: any of them.
TYPES: dict[str, str | None] = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/bmp": "BMP",
    "application/octet-stream": None,
}
_FORMATS = tuple(name for name in TYPES.values() if name is not None)
_FORM = "multipart/form-data"

T = TypeVar("T")

#: The name of an image, if it came with one, and its file.
Upload = tuple[str | None, bytes]


class BodyLimit:
    """Stops reading a body at a number of bytes, whatever length was declared; the answer is 413."""

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
                raise too_large(self.most)
            return message

        await self.app(scope, counted, send)


async def read_images(request: Request, *, most_bytes: int, most_images: int, seconds: float) -> list[Upload]:
    """The image files of a request: its body, or the parts of a form.

    Raises:
        HTTPException: 400 for an empty body, one that is not whole or a form without files, 408 where it took too long
            to arrive, 413 for a body that says it is too large, 415 for another type than it says or than is taken.
    """
    kind = _type(request.headers.get("content-type", ""))
    if kind != _FORM and kind not in TYPES:
        raise HTTPException(415, f"content type is {kind!r}; expected {_FORM} or {', '.join(TYPES)}")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most_bytes:
        raise too_large(most_bytes)
    reading = _parts(request, most_images) if kind == _FORM else _body(request, kind)
    try:
        return await in_time(reading, seconds, 408, "the body took too long to arrive")
    except ClientDisconnect:
        raise HTTPException(400, "the body ended before it was whole") from None


def check_pixels(name: str, data: bytes, most: int) -> None:
    """Raise ImageError for an image of more than ``most`` pixels; only its head is read."""
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        width, height = image.size
    if width * height > most:
        raise ImageError(f"{name}: {width}x{height} is more than {most} pixels")


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
    content: dict[str, Any] = {kind: {"schema": binary} for kind in TYPES}
    images = {"type": "array", "items": binary, "maxItems": most_images}
    content[_FORM] = {"schema": {"type": "object", "properties": {"images": images}}}
    return {"required": True, "content": content}


async def _body(request: Request, kind: str) -> list[Upload]:
    data = await request.body()
    _check_type("the body", kind, data)
    return [(None, data)]


async def _parts(request: Request, most: int) -> list[Upload]:
    found: list[Upload] = []
    async with request.form(max_files=most, max_fields=0) as form:
        for field, part in form.multi_items():
            assert isinstance(part, UploadFile)  # no other field is let through
            name, kind = part.filename or field, _type(part.content_type or "application/octet-stream")
            if kind not in TYPES:
                raise HTTPException(415, f"{name}: content type is {kind!r}; expected one of {', '.join(TYPES)}")
            data = await part.read()
            _check_type(name, kind, data)
            found.append((name, data))
    if not found:
        raise HTTPException(400, "the form has no file; expected one or more")
    return found


def _type(header: str) -> str:
    return header.partition(";")[0].strip().lower()


def _check_type(name: str, kind: str, data: bytes) -> None:
    if not data:
        raise HTTPException(400, f"{name} is empty; expected an image")
    wanted = TYPES[kind]
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            found = image.format
    except Image.DecompressionBombError:
        raise HTTPException(400, f"{name} has too many pixels") from None
    except Exception:  # no image, or a damaged one: Pillow's readers raise anything
        raise HTTPException(415, f"{name} is no {wanted or ', '.join(_FORMATS)} image") from None
    if wanted is not None and found != wanted:
        raise HTTPException(415, f"{name} is a {found} image; its type says {wanted}")
