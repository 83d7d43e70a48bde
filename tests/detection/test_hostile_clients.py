"""Hundreds of slow clients, and thousands of damaged uploads: the service goes on answering the others."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import random
import selectors
import socket
import struct
import threading

import numpy as np
import pytest
from image_bytes import encoded
from PIL import Image

pytest.importorskip("fastapi", reason="fastapi is not installed: the extra `serve`")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: the extra `serve`")
pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: the extra `serve`")
pytest.importorskip("python_multipart", reason="python-multipart is not installed: the extra `serve`")

from fastadv.detection.connections import http_server
from fastadv.detection.service import ServiceConfig, create_app

SLOW = 500
DAMAGED = 500
ANY = "application/octet-stream"
NUMBERS = (("H", 65535), ("I", 2**31), ("I", 0))
EXTREMES = [struct.pack(order + kind, value) for order in "<>" for kind, value in NUMBERS]


@pytest.mark.slow
def test_slow_heads_stop_nobody(guard):
    resource = pytest.importorskip("resource", reason="descriptors are limited on Unix only")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * SLOW + 200
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"needs {needed} descriptors, the limit is {hard}")
    config = ServiceConfig(head_timeout=3.0, max_connections=SLOW + 100)
    with contextlib.ExitStack() as stack:
        if 0 <= soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=SLOW))
        server = http_server(create_app(guard, config), config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        stack.callback(thread.join, 30)
        stack.callback(setattr, server, "should_exit", True)

        def healthy():
            client = http.client.HTTPConnection(*listening.getsockname(), timeout=2)
            with contextlib.closing(client):
                client.request("GET", "/healthz")
                return client.getresponse().status == 200

        slow = selectors.DefaultSelector()
        for _ in range(SLOW):
            client = stack.enter_context(socket.create_connection(listening.getsockname(), timeout=10))
            client.sendall(b"POST /v1/faces HTTP/1.1\r\nHost: x\r\n")
            client.setblocking(False)
            slow.register(client, selectors.EVENT_READ)
        answers, asked = [], 0
        while slow.get_map():
            assert healthy()
            asked += 1
            for key in [key for key, _ in slow.select(0.01)]:
                with contextlib.suppress(ConnectionError):
                    answers.append(key.fileobj.recv(1000))
                slow.unregister(key.fileobj)
            for key in random.sample(list(slow.get_map().values()), min(20, len(slow.get_map()))):
                with contextlib.suppress(ConnectionError):
                    key.fileobj.send(b"x")  # each of them sends a byte now and then
        assert healthy()
    assert asked > 10
    assert len(answers) >= SLOW * 0.9  # the others had sent a byte in the moment in which they were closed
    assert {answer[:12] for answer in answers} == {b"HTTP/1.1 408"}


def seeds():
    """A file of each kind."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [(rgb, "PNG", {}), (rgb.convert("RGBA"), "PNG", {"exif": exif}), (rgb.quantize(16), "PNG", {})]
    kinds += [(rgb, "JPEG", {"exif": exif, "comment": b"x"}), (rgb, "JPEG", {"progressive": True})]
    kinds += [(rgb.convert("CMYK"), "JPEG", {}), (rgb, "MPO", {"save_all": True, "append_images": [rgb]})]
    kinds += [(rgb, "WEBP", {"exif": exif}), (rgb, "WEBP", {"lossless": True}), (rgb, "GIF", {})]
    kinds += [(rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(9)]}), (rgb, "TIFF", {})]
    kinds += [(rgb, "TIFF", {"compression": "tiff_lzw"}), (rgb.quantize(16), "TIFF", {}), (rgb, "AVIF", {"exif": exif})]
    kinds += [(rgb, "BMP", {}), (rgb.quantize(16), "BMP", {}), (rgb.convert("1"), "BMP", {}), (rgb, "PPM", {})]
    for image, format, options in kinds:
        yield encoded(image, format, **options)
    head = struct.pack("<IiiHHIIiiII", 40, 20, 24, 1, 8, 1, 96, 0, 0, 0, 0)
    yield struct.pack("<2sIHHI", b"BM", 0, 0, 0, 54 + 1024) + head + bytes(1024) + b"\x14\x07\0\0" * 24  # run lengths
    yield b"P3 2 2 255\n# text\n" + b"1 2 3 " * 4
    yield b"P1 8 8 " + b"01" * 32
    yield b"P4 9 2\n" + bytes(4)
    yield b"P5 4 4 100\n" + bytes(16)


def damaged(random, data):
    """A few changes: bits, numbers, bytes that go, come, come again, or come from elsewhere; the end."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at, length = random.randrange(len(data) + 1), random.choice((1, 2, 4, 16, 300))
        what = random.randrange(7)
        if what == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif what == 1:
            value = random.choice(EXTREMES)
            data[at : at + len(value)] = value
        elif what == 2:
            del data[at : at + length]
        elif what == 3:
            data[at:at] = random.randbytes(length)
        elif what == 4:
            data[at:at] = data[at : at + length] * random.choice((1, 2, 50))
        elif what == 5:
            other = random.randrange(len(data) + 1)
            data[at : at + length] = data[other : other + length]
        else:
            del data[at:]
        if not data:
            break
    return bytes(data)


@pytest.mark.slow
def test_damaged_uploads_are_the_clients_fault(asgi, guard, rounds):
    """No upload is answered 5xx or not at all; a good one is answered 200 whatever came before."""
    draw = random.Random(0)
    files = list(seeds())
    good = files[0]

    def upload():
        if draw.random() < 0.6:
            return damaged(draw, draw.choice(files)), draw.choice((ANY, "image/png", "image/jpeg"))
        lines = b"".join(
            b'--edge\r\nContent-Disposition: form-data; name="images"; filename="%d"\r\nContent-Type: image/png\r\n\r\n'
            % i
            + (damaged(draw, file) if draw.random() < 0.3 else file)
            + b"\r\n"
            for i, file in enumerate(draw.choices(files, k=draw.randrange(4)))
        )
        body = lines + b"--edge--\r\n"
        return damaged(draw, body) if draw.random() < 0.7 else body, "multipart/form-data; boundary=edge"

    async def work(app):
        found = {}
        for count in range(rounds * DAMAGED):
            body, kind = upload()
            sent = asgi.ask(app, "POST", "/v1/faces", body, kind)
            status, said = await asyncio.wait_for(sent, 30)
            found[status] = found.get(status, 0) + 1
            assert status in (200, 400, 413, 415), (status, said, body[:2000])
            if count % 100 == 0:
                assert (await asgi.ask(app, "POST", "/v1/faces", good, ANY))[0] == 200
        return found

    found = asgi.during(guard, work, max_pixels=10**6, max_request_pixels=2 * 10**6)
    assert sum(found.values()) == rounds * DAMAGED
    assert min(found[200], found[400], found[415]) >= DAMAGED // 50
