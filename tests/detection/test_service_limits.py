"""What the service refuses of a hostile client: a budget for each request, a token, and nothing kept of an image."""

from __future__ import annotations

import asyncio
import gc
import logging
import struct
import tempfile
import tracemalloc
import zlib
from collections import deque

import pytest
from image_bytes import drawn

pytest.importorskip("fastapi", reason="fastapi is not installed: the extra `serve`")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: the extra `serve`")
pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: the extra `serve`")
pytest.importorskip("python_multipart", reason="python-multipart is not installed: the extra `serve`")

from fastadv.detection.service import ServiceConfig, create_app

TOKEN = "correct-horse-battery-staple"
ANY = "application/octet-stream"
FORM = "multipart/form-data; boundary=edge"


def encoded(side, format="PNG", **options):
    return drawn(side, side, format, **options)


def part(data, head='Content-Disposition: form-data; name="images"; filename="face"'):
    return b"--edge\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n"


def form(*parts):
    return b"".join(parts) + b"--edge--\r\n"


def chunks(count):
    body = b"tEXta\0b"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    png = encoded(16)
    return png[:33] + count * chunk + png[33:]


def faces(asgi, guard, body, kind=FORM, **limits):
    """The answer, and that to a good image afterwards."""

    async def work(app):
        found = await asgi.ask(app, "POST", "/v1/faces", body, kind)
        return found, (await asgi.ask(app, "POST", "/v1/faces", encoded(16), ANY))[0]

    found, after = asgi.during(guard, work, **limits)
    assert after == 200
    return found


def test_the_images_of_a_request_share_a_budget_of_pixels(asgi, guard):
    limits = {"max_pixels": 5000, "max_request_pixels": 10_000}
    assert faces(asgi, guard, form(part(encoded(70)), part(encoded(70))), **limits)[0] == 200
    status, said = faces(asgi, guard, form(*[part(encoded(70))] * 3), **limits)
    assert (status, said) == (
        413,
        {"detail": "the images: expected at most 10000 pixels in all of them, got more"},
    )
    assert faces(asgi, guard, form(part(encoded(80))), **limits)[0] == 400  # too large by itself


def test_the_scans_of_a_jpeg_count_as_pixels(asgi, guard):
    data = encoded(70, "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), len(data) - 2
    assert data.count(b"\xff\xda") == 10
    for more, status in ((0, 200), (10, 200), (11, 413)):
        body = data[:last] + (1 + more) * data[last:end] + data[end:]
        assert faces(asgi, guard, body, ANY, max_pixels=5000, max_request_pixels=10_000)[0] == status


def test_the_images_of_a_request_share_a_budget_of_chunks(asgi, guard):
    assert faces(asgi, guard, form(*[part(chunks(300))] * 3), max_parts=1000)[0] == 200
    status, said = faces(asgi, guard, form(*[part(chunks(300))] * 4), max_parts=1000)
    assert (status, "expected at most 1000 chunks and segments" in said["detail"]) == (413, True)
    status, said = faces(asgi, guard, chunks(2000), ANY, max_parts=1000)
    assert (status, "the body: the PNG image has more than 1000 chunks" in said["detail"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (form(part(b"hello")), 415, "face is no JPEG, PNG, BMP, WebP, TIFF, AVIF or PPM image"),
        (form(part(encoded(16), 'Content-Disposition: form-data; name="x"')), 400, "got a field without a filename"),
        (form(part(encoded(16), "X: " + "y" * 5000)), 400, "the form"),
        (
            form(part(encoded(16), "\r\n".join(["X: " + "y" * 1000] * 5))),
            400,
            "at most 4096 bytes of headers in a part",
        ),
        (form(part(encoded(16), "X: y\r\n" * 2000 + "X: y")), 400, "the form"),
        (form(part(encoded(16), "no colon")), 400, "the form is damaged: "),
        (part(encoded(16)) + b"--edge\r\n", 400, "the form is damaged: expected its boundary at the end"),
        (part(encoded(16))[:-9], 400, "the form is damaged: expected its boundary at the end"),
        (b"--edge\r\nConte", 400, "the form is damaged: expected its boundary at the end"),
        (
            form(part(encoded(16), "Content-Disposition: form-data; name=\"x\"; filename*=utf-8''x.png")),
            400,
            "expected a file with filename=..., got filename* alone",
        ),
        (form(*[part(encoded(16))] * 4), 400, "Too many files: expected at most 3 in one form"),
        (b"--edge--" * 1000, 400, "the form has no file"),
        (b"\r\n" * 100_000, 400, "the form has no file"),
        (b"--other\r\n", 400, "the form is damaged: "),
        (form(part(b"x\r\n--edges\r\n")), 400, "expected a line break or its end behind a boundary"),
        (
            form(part(encoded(16), "Content-Type: image/png\r\ncontent-type: text/html")),
            400,
            "each header of a part once",
        ),
        (form(part(encoded(16), "Content-Type : image/png")), 400, "each header of a part once, as 'name: value'"),
    ],
)
def test_a_form_that_is_wrong(asgi, guard, body, status, message):
    found, said = faces(asgi, guard, body, max_images=3)
    assert (found, message in said["detail"]) == (status, True), said


def test_a_form_takes_the_memory_of_its_bytes_whatever_they_are(asgi, guard):
    """Beginnings of the boundary, and single line breaks, are no pieces of their own."""
    bodies = [form(part(piece * (1 << 20) + encoded(16))) for piece in (b"\r", b"\r\n--edg")]

    async def work(app):
        await asgi.ask(app, "POST", "/v1/faces", encoded(16), ANY)
        found = []
        for body in bodies:
            tracemalloc.start()
            try:
                status, _ = await asgi.ask(app, "POST", "/v1/faces", body, FORM, chunk=len(body))
                found.append((status, tracemalloc.get_traced_memory()[1] < 4 * len(body) + (1 << 20)))
            finally:
                tracemalloc.stop()
        return found

    assert asgi.during(guard, work, max_bytes=16 << 20) == [(415, True)] * 2


def test_two_types_of_one_body_are_refused(asgi, guard):
    """A proxy may have looked at the other one."""
    types = [(b"content-type", b"text/plain"), (b"content-type", b"image/png")]
    found = asgi.during(guard, lambda app: asgi.ask(app, "POST", "/v1/faces", encoded(16), headers=types))
    assert found == (400, {"detail": "content type: expected one header, got 2"})


def test_an_argument_that_is_wrong_is_one_sentence(asgi, guard):
    async def work(app):
        schema = (await asgi.ask(app, "GET", "/openapi.json"))[1]["paths"]["/v1/faces"]["post"]["responses"]
        return await asgi.ask(app, "POST", "/v1/faces?embedding=perhaps", encoded(16), ANY), schema["422"]

    (status, said), told = asgi.during(guard, work)
    assert (status, said["detail"].startswith("embedding: "), said["detail"].endswith(", got 'perhaps'")) == (
        422,
        True,
        True,
    )
    assert told["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Failure"}


def test_the_name_of_a_part_comes_back(asgi, guard):
    head = 'Content-Disposition: form-data; name="images"; filename="zoë.png"\r\nContent-Type: image/png'
    status, said = faces(asgi, guard, form(part(encoded(16), head), part(encoded(16))))
    assert (status, [face["name"] for face in said["faces"]]) == (200, ["zoë.png", "face"])


def test_the_bodies_of_all_requests_share_a_limit(asgi, guard):
    async def work(app):
        gone = asyncio.Event()

        async def receive():  # half a body, and nothing more
            if gone.is_set():
                await asyncio.Event().wait()
            gone.set()
            return {"type": "http.request", "body": bytes(6000), "more_body": True}

        async def send(message):
            pass

        scope = {"type": "http", "method": "POST", "path": "/v1/faces", "query_string": b"", "http_version": "1.1"}
        held = asyncio.create_task(app({**scope, "headers": [(b"content-type", b"image/png")]}, receive, send))
        await gone.wait()
        found = await asgi.ask(app, "POST", "/v1/faces", bytes(5000), "image/png")
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        return found, (await asgi.ask(app, "POST", "/v1/faces", encoded(16), "image/png"))[0]

    (status, said), after = asgi.during(guard, work, max_bytes=8000, max_buffered=10_000)
    assert (status, said["detail"], after) == (503, "the requests that are open hold 10000 bytes already", 200)


def test_a_body_that_is_refused_is_freed_at_once(asgi, guard):
    """Without the collection of cycles: cut off, late, too large, damaged, no image, a form that is cut off."""
    large = 2 << 20
    damaged = encoded(16)[:60] + bytes(large)
    bodies = [(damaged, ANY), (bytes(large), ANY), (form(part(damaged), part(damaged)), FORM), (part(damaged), FORM)]

    async def work(app):
        async def cut(parts, end):
            sent, parts = [], deque([*parts, end])

            async def receive():
                if parts[0] is None:
                    await asyncio.Event().wait()
                return parts.popleft()

            async def send(message):
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": "/v1/faces", "query_string": b"", "http_version": "1.1"}
            await app({**scope, "headers": [(b"content-type", b"image/png")]}, receive, send)
            return sent[0]["status"]

        def some(count):
            return ({"type": "http.request", "body": bytes(large // 2), "more_body": True} for _ in range(count))

        async def once():
            found = [
                await cut(some(2), {"type": "http.disconnect"}),
                await cut(some(2), None),
                await cut(some(9), None),
            ]
            return found + [(await asgi.ask(app, "POST", "/v1/faces", *each))[0] for each in bodies]

        await once()
        tracemalloc.start()
        gc.collect()
        gc.disable()
        try:
            before = tracemalloc.get_traced_memory()[0]
            found = await once()
            for _ in range(100):  # until the thread that refused the last one has let go of it
                if (kept := tracemalloc.get_traced_memory()[0] - before) < large // 4:
                    break
                await asyncio.sleep(0.01)
            return found, kept
        finally:
            gc.enable()
            tracemalloc.stop()

    found, kept = asgi.during(guard, work, timeout=0.1, max_bytes=3 * large)
    assert found == [400, 408, 413, 400, 415, 400, 400]
    assert kept < large // 4


def test_nothing_of_an_image_is_kept_or_logged(asgi, guard, monkeypatch, caplog):
    """Not even as a temporary file, which is what becomes of the large parts of a form by default."""

    def made(*args, **options):
        raise AssertionError("a temporary file")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, made)
    caplog.set_level(logging.DEBUG, "fastadv")
    caplog.set_level(logging.WARNING)
    large = encoded(700, "BMP")
    assert len(large) > 1 << 20
    assert faces(asgi, guard, form(part(large)))[0] == 200
    assert faces(asgi, guard, large, "image/bmp")[0] == 200
    assert faces(asgi, guard, b"--edge secret", FORM)[0] == 400
    assert faces(asgi, guard, large[:-9], ANY)[0] == 400
    assert caplog.records == []


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        ("Bearer", 401),
        ("Bearer é", 401),
        (None, 401),
    ],
)
def test_a_token_is_required(asgi, guard, given, status):
    headers = [] if given is None else [(b"authorization", given.encode("latin-1"))]

    async def work(app):
        asked = [
            ("POST", "/v1/faces", encoded(16), ANY),
            ("GET", "/metrics"),
            ("GET", "/docs"),
            ("GET", "/openapi.json"),
        ]
        guarded = [(await asgi.ask(app, *each, headers=headers))[0] for each in asked]
        return guarded, [(await asgi.ask(app, "GET", path))[0] for path in ("/healthz", "/readyz")]

    assert asgi.during(guard, work, token=TOKEN) == ([status] * 4, [200, 200])


@pytest.mark.parametrize("token", ["", "short", "with spaces in between", "ünicode" * 4, "x" * 5000])
def test_a_token_that_cannot_be_one_is_not_repeated(guard, token):
    with pytest.raises(ValueError, match="token: expected 16 to 4096 visible ASCII characters, got") as caught:
        create_app(guard, token=token)
    assert not token or token not in str(caught.value)


def test_the_documentation_loads_nothing(asgi, guard):
    async def work(app):
        return await asgi.ask(app, "GET", "/docs"), (await asgi.ask(app, "GET", "/redoc"))[0]

    (status, text), other = asgi.during(guard, work, max_bytes=12345)
    assert (status, other) == (200, 404)
    for loaded in ("<script", "http:", "https:", "//", "src=", "<link", "@import", "url("):
        assert loaded not in text
    for told in ("POST /v1/faces", "GET /healthz", "multipart/form-data", "p_value", "max_bytes", "12345"):
        assert told in text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_parts": 0}, "max_parts: expected an integer >= 1, got 0"),
        ({"max_connections": 0}, "max_connections: expected an integer >= 1, got 0"),
        ({"max_connections": 1.5}, "max_connections: expected an integer >= 1, got 1.5"),
        ({"max_request_pixels": 100}, "max_request_pixels: expected at least max_pixels, 16000000, got 100"),
        ({"max_buffered": 100}, "max_buffered: expected at least max_bytes, 8388608, got 100"),
        ({"head_timeout": 0}, r"head_timeout: expected seconds in \[0.001, 3600\], got 0"),
        ({"timeout": 1e-300}, r"timeout: expected seconds in \[0.001, 3600\], got 1e-300"),
        ({"drain": float("nan")}, r"drain: expected seconds in \[0.001, 3600\], got nan"),
        ({"drift_window": 19}, "drift_window: expected an integer from 20 to 1048576, got 19"),
        ({"drift_window": 2**21}, "drift_window: expected an integer from 20 to 1048576, got 2097152"),
    ],
)
def test_limits_that_are_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        ServiceConfig(**wrong)


def test_connections_leave_descriptors_to_the_process(monkeypatch):
    resource = pytest.importorskip("resource", reason="descriptors are limited on Unix only")
    for soft, most in ((256, 128), (100, 16), (1024, 896), (20_000, 1000), (resource.RLIM_INFINITY, 1000)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, soft=soft: (soft, soft))
        assert ServiceConfig().connections == most
    assert ServiceConfig(max_connections=7).connections == 7
