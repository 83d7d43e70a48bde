"""The service as an application: answers, limits, health and numbers; without a socket."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from image_bytes import encoded
from PIL import Image

pytest.importorskip("fastapi", reason="fastapi is not installed: the extra `serve`")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: the extra `serve`")
pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: the extra `serve`")
pytest.importorskip("python_multipart", reason="python-multipart is not installed: the extra `serve`")

from fastadv.data.images import to_tensor
from fastadv.detection import Architecture, Detector, Network, Trajectory, service
from fastadv.detection.guard import Guard
from fastadv.detection.service import ServiceConfig, create_app

PNG = "image/png"


def pixels(seed, size=(16, 16)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def form(parts):
    lines = b""
    for name, kind, data in parts:
        head = f'--edge\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n'
        head += f"Content-Type: {kind}\r\n\r\n"
        lines += head.encode() + data + b"\r\n"
    return lines + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def check(face, guard, array, *, name=None, embedding=False):
    right = guard(to_tensor(array)[None])
    assert face["name"] == name
    assert face["score"] == pytest.approx(float(right.scores), abs=1e-5)
    assert face["flagged"] == bool(right.flagged)
    assert face["p_value"] is None
    assert face["prediction"]["index"] == int(right.logits.argmax())
    assert face["prediction"]["confidence"] == pytest.approx(float(right.logits.softmax(1).max()), abs=1e-5)
    assert face["embedding"] == (pytest.approx(right.embeddings[0].tolist(), abs=1e-5) if embedding else None)


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "IMAGE/PNG; charset=x"])
def test_one_image_as_the_body(asgi, guard, kind):
    status, said = asgi.during(
        guard, lambda app: asgi.ask(app, "POST", "/v1/faces?embedding=true", encoded(pixels(1)), kind)
    )
    assert status == 200
    assert (said["model"], said["threshold"], len(said["faces"])) == ("tiny", 0.0, 1)
    check(said["faces"][0], guard, pixels(1), embedding=True)


def test_a_network_whose_images_are_not_square(asgi, guard):
    model = guard.model.replace(input_size=(16, 12))
    narrow = Guard(model=model, detector=guard.detector, threshold=guard.threshold)
    for sent in (pixels(1), pixels(1)[:, 2:14]):  # a square is cut, a crop is taken as it is
        data = encoded(sent)
        status, said = asgi.during(narrow, lambda app, data=data: asgi.ask(app, "POST", "/v1/faces", data, PNG))
        assert status == 200
        check(said["faces"][0], narrow, pixels(1)[:, 2:14])


def test_the_content_decides_and_not_the_declared_type(asgi, guard):
    """As for a folder: a PNG that is called a JPEG, a PPM, and a phone's JPEG with a second picture behind it."""
    second = Image.fromarray(pixels(9)).resize((8, 8))
    phone = encoded(pixels(1), "MPO", save_all=True, append_images=[second], quality=100)
    sent = [(encoded(pixels(1)), "image/jpeg"), (encoded(pixels(1), "PPM"), "image/x-portable-anymap")]

    async def work(app):
        return [await asgi.ask(app, "POST", "/v1/faces", *each) for each in (*sent, (phone, "image/jpeg"))]

    *same, (status, _) = asgi.during(guard, work)
    for found, said in same:
        assert found == 200
        check(said["faces"][0], guard, pixels(1))
    assert status == 200


def test_several_images_as_a_form(asgi, guard):
    body, kind = form([(f"{i}.bmp", "image/bmp", encoded(pixels(i), "BMP")) for i in range(5)])
    status, said = asgi.during(guard, lambda app: asgi.ask(app, "POST", "/v1/faces", body, kind))
    assert status == 200
    for i, face in enumerate(said["faces"]):
        check(face, guard, pixels(i), name=f"{i}.bmp")


def test_a_claimed_identity(asgi, guard, representatives):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = Network(Architecture(kind="mlp", layers=3, width=5, hidden=6)).eval().requires_grad_(False)
    trajectory = Trajectory(representatives=representatives, reading="relative")
    relative = Guard(model=guard.model, detector=Detector(trajectory=trajectory, network=network), threshold=0.0)
    sent = encoded(pixels(1))

    async def work(app):
        asked = ("", "?claimed=cyd", "?claimed=ada&embedding=true", "?claimed=zoe")
        return await asyncio.gather(*(asgi.ask(app, "POST", f"/v1/faces{query}", sent, PNG) for query in asked))

    *answers, refused = asgi.during(relative, work)
    for (status, said), claimed in zip(answers, (None, "cyd", "ada"), strict=True):
        assert status == 200
        right = float(relative(to_tensor(pixels(1))[None], [claimed]).scores)
        assert said["faces"][0]["score"] == pytest.approx(right, abs=1e-5)
    assert len({said["faces"][0]["score"] for _, said in answers}) > 1
    assert refused == (422, {"detail": "claimed: expected one of the 4 classes of the detector, got 'zoe'"})
    status, said = asgi.during(guard, lambda app: asgi.ask(app, "POST", "/v1/faces?claimed=ada", sent, PNG))
    assert (status, said["detail"]) == (422, "claimed: expected none for a detector of the reading 'raw', got 'ada'")


def test_classes_have_names_where_they_are_told(asgi, guard):
    names = tuple("abcdefghi")

    async def go():
        app = create_app(guard, classes=names)
        async with app.router.lifespan_context(app):
            await asgi.ready(app)
            return await asgi.ask(app, "POST", "/v1/faces", encoded(pixels(1)), "image/png")

    said = asyncio.run(go())[1]["faces"][0]["prediction"]
    assert said["name"] == names[said["index"]]
    with pytest.raises(ValueError, match="classes: expected 9 names, one for each logit of the model, got 2"):
        create_app(guard, classes=names[:2])


def test_small_answers_leave_at_once(guard, monkeypatch):
    """asyncio turns Nagle's algorithm off only on sockets that say that they are TCP."""
    seen = []
    monkeypatch.setattr(service.uvicorn.Server, "run", lambda server, sockets: seen.extend(s.proto for s in sockets))
    told = []
    service.serve(guard, port=0, started=told.append)
    assert seen == [socket.IPPROTO_TCP]
    assert told[0].startswith("http://127.0.0.1:")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_as_soon_as_the_address_is_told(guard, number):
    before = signal.getsignal(number)
    assert service.serve(guard, port=0, started=lambda address: signal.raise_signal(number)) == 0
    assert signal.getsignal(number) is before


def test_many_clients_share_passes_and_get_their_own_answers(asgi, guard):
    async def work(app):
        asked = [asgi.ask(app, "POST", "/v1/faces", encoded(pixels(i)), "image/png") for i in range(24)]
        found = await asyncio.gather(*asked)
        return found, (await asgi.ask(app, "GET", "/metrics"))[1]

    found, metrics = asgi.during(guard, work, max_wait=0.2, max_batch=8)
    for i, (status, said) in enumerate(found):
        assert status == 200
        check(said["faces"][0], guard, pixels(i))
    told = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(told['fastadv_requests_total{status="200"}']) == 24
    assert float(told["fastadv_batch_images_sum"]) == 24
    assert float(told["fastadv_batch_images_count"]) <= 8
    judged = [told.get(f'fastadv_images_total{{flagged="{v}"}}', "0") for v in ("true", "false")]
    assert sum(map(float, judged)) == 24
    assert float(told["fastadv_queue_images"]) == 0
    assert float(told["fastadv_request_seconds_count"]) == 24


def test_another_size_is_cropped_to_its_centre(asgi, guard):
    wide = pixels(3, (16, 20))
    status, said = asgi.during(guard, lambda app: asgi.ask(app, "POST", "/v1/faces", encoded(wide), "image/png"))
    assert status == 200
    check(said["faces"][0], guard, wide[:, 2:18])


BOMB = encoded(np.zeros((2000, 2000, 3), np.uint8))
HEAD = struct.pack(">4sIIBBBBB", b"IHDR", 30000, 30000, 8, 2, 0, 0, 0)
HUGE = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + HEAD + struct.pack(">I", zlib.crc32(HEAD))
HUGE += struct.pack(">I", 10) + b"IDAT" + bytes(14)
CUT = encoded(pixels(0, (60, 60)))[:-400]


REFUSED = {
    "another type": (
        415,
        encoded(pixels(0)),
        "text/plain",
        "content type is 'text/plain'; expected multipart/form-data, an image type",
    ),
    "no type": (415, encoded(pixels(0)), None, "content type is ''"),
    "no image of its type": (
        415,
        b"hello",
        "image/png",
        "the body is no JPEG, PNG, BMP, WebP, TIFF, AVIF or PPM image",
    ),
    "no image": (
        415,
        b"hello",
        "application/octet-stream",
        "the body is no JPEG, PNG, BMP, WebP, TIFF, AVIF or PPM image",
    ),
    "a format that is not taken": (415, encoded(pixels(0), "GIF"), "image/gif", "PPM image but GIF"),
    "16 bits": (400, b"P6 1 1 65535\n" + bytes(6), "image/x-portable-pixmap", "expected 8 bits per channel"),
    "a part of another type": (415, *form([("a.txt", "text/plain", b"hi")]), "a.txt: content type is 'text/plain'"),
    "nothing": (400, b"", "image/png", "the body is empty; expected an image"),
    "a form of nothing": (400, *form([]), "the form has no file"),
    "an empty part": (400, *form([("a.png", "image/png", b"")]), "a.png is empty"),
    "too many parts": (400, *form([(f"{i}.png", "image/png", encoded(pixels(i))) for i in range(4)]), "Too many files"),
    "no form": (400, b"not a form", "multipart/form-data", "boundary"),
    "cut short": (400, CUT, "image/png", "the body: the image is damaged"),
    "too many pixels": (400, BOMB, "image/png", "the body: expected at most 100000 pixels, got 2000x2000"),
    "far too many pixels": (400, HUGE, "image/png", "the body: expected at most 100000 pixels, got 30000x30000"),
    "too large": (413, bytes(70000), "image/png", "the body is larger than 60000 bytes"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("declare", [True, False])
def test_what_is_refused(asgi, guard, what, declare):
    status, body, kind, message = REFUSED[what]

    async def work(app):
        first = await asgi.ask(app, "POST", "/v1/faces", body, kind, declare=declare, chunk=10000)
        return first, await asgi.ask(app, "POST", "/v1/faces", encoded(pixels(1)), "image/png")

    (found, said), (after, _) = asgi.during(guard, work, max_bytes=60000, max_pixels=100000, max_images=3)
    assert (found, after) == (status, 200)
    assert message in said["detail"]


def test_one_bad_image_of_a_form_is_named(asgi, guard):
    body, kind = form([("good.png", "image/png", encoded(pixels(1))), ("bad.png", "image/png", CUT)])
    status, said = asgi.during(guard, lambda app: asgi.ask(app, "POST", "/v1/faces", body, kind))
    assert status == 400
    assert said["detail"].startswith("bad.png: the image is damaged")


def test_wrong_paths_methods_and_arguments(asgi, guard):
    async def work(app):
        asked = (("GET", "/"), ("GET", "/v1/faces"), ("POST", "/v1/faces?embedding=maybe"))
        return [(await asgi.ask(app, *a, b"x", "image/png"))[0] for a in asked]

    assert asgi.during(guard, work) == [404, 405, 422]


class Slow:
    """A guard whose pass waits for a sign."""

    def __init__(self, guard, monkeypatch):
        self.go, self.fails = threading.Event(), False
        original = Guard.__call__

        def call(own, images, claimed=None):
            self.go.wait(30)
            if self.fails:
                raise RuntimeError("out of memory")
            return original(own, images, claimed)

        monkeypatch.setattr(Guard, "__call__", call)


def test_before_it_is_warm_it_is_alive_and_not_ready(asgi, guard, monkeypatch):
    slow = Slow(guard, monkeypatch)

    async def main():
        app = create_app(guard)
        async with app.router.lifespan_context(app):
            paths = ("/healthz", "/readyz", "/docs", "/openapi.json")
            early = [(await asgi.ask(app, "GET", path))[0] for path in paths]
            refused = await asgi.ask(app, "POST", "/v1/faces", encoded(pixels(1)), "image/png")
            slow.go.set()
            await asgi.ready(app)
            late = await asgi.ask(app, "POST", "/v1/faces", encoded(pixels(1)), "image/png")
        return (
            early,
            refused,
            late,
            (await asgi.ask(app, "GET", "/readyz"))[0],
            (await asgi.ask(app, "GET", "/healthz"))[0],
        )

    early, refused, late, stopped, dead = asyncio.run(main())
    assert early == [200, 503, 200, 200]
    assert refused == (503, {"detail": "warming up, or stopping"})
    assert (late[0], stopped, dead) == (200, 503, 503)


def test_a_warm_up_that_fails_is_told(asgi, guard, monkeypatch):
    slow = Slow(guard, monkeypatch)
    slow.fails = True
    slow.go.set()

    async def main():
        app = create_app(guard)
        async with app.router.lifespan_context(app):
            for _ in range(400):
                status, said = await asgi.ask(app, "GET", "/healthz")
                if status == 503:
                    return said
                await asyncio.sleep(0.005)
        raise AssertionError("never told")

    assert asyncio.run(main()) == {"detail": "not working: out of memory"}


def test_more_than_can_wait_are_sent_away_and_slow_answers_end(asgi, guard, monkeypatch):
    slow = Slow(guard, monkeypatch)
    slow.go.set()

    async def work(app):
        slow.go.clear()
        first = asyncio.create_task(asgi.ask(app, "POST", "/v1/faces", encoded(pixels(0)), "image/png"))
        await asyncio.sleep(0.2)
        more = [
            asyncio.create_task(asgi.ask(app, "POST", "/v1/faces", encoded(pixels(i)), "image/png")) for i in range(5)
        ]
        found = [await task for task in (first, *more)]
        slow.go.set()
        return found, await asgi.ask(app, "POST", "/v1/faces", encoded(pixels(1)), "image/png")

    found, after = asgi.during(guard, work, max_queue=2, max_images=2, max_batch=1, timeout=1.0)
    assert [status for status, _ in found] == [503] * 6
    reasons = {said["detail"] for _, said in found}
    assert reasons == {"2 requests are open already", "the answer took too long"}
    assert after[0] == 200


def test_an_error_of_the_pass_is_the_servers(asgi, guard, monkeypatch):
    slow = Slow(guard, monkeypatch)
    slow.go.set()

    async def work(app):
        slow.fails = True
        with pytest.raises(RuntimeError, match="out of memory"):  # an ASGI server logs it; the client has had its 500
            await asgi.ask(app, "POST", "/v1/faces", encoded(pixels(0)), "image/png")
        slow.fails = False
        metrics = (await asgi.ask(app, "GET", "/metrics"))[1]
        return metrics, await asgi.ask(app, "POST", "/v1/faces", encoded(pixels(1)), "image/png")

    metrics, after = asgi.during(guard, work)
    assert 'fastadv_requests_total{status="500"} 1.0' in metrics
    assert after[0] == 200


def test_a_body_that_does_not_arrive(asgi, guard):
    async def work(app):
        sent = []

        async def receive():
            await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/faces", "query_string": b"", "http_version": "1.1"}
        await app({**scope, "headers": [(b"content-type", b"image/png")], "scheme": "http"}, receive, send)
        return sent[0]["status"]

    assert asgi.during(guard, work, timeout=0.1) == 408


def test_a_score_that_is_no_number(asgi, guard):
    with torch.no_grad():
        guard._pass.model.backbone.dense.bias.fill_(math.nan)
    status, said = asgi.during(
        guard, lambda app: asgi.ask(app, "POST", "/v1/faces?embedding=1", encoded(pixels(1)), "image/png")
    )
    assert status == 200
    (face,) = said["faces"]
    assert face["flagged"] is True
    assert (face["score"], face["p_value"], face["embedding"]) == (None, None, None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_batch": 0}, "max_batch: expected an integer >= 1, got 0"),
        ({"max_wait": 61}, r"max_wait: expected seconds in \[0, 60\], got 61"),
        ({"max_images": 300}, "max_images: expected at most max_queue, 256, got 300"),
        ({"max_pixels": 10**9}, "max_pixels: expected at most 40000000, got 1000000000"),
        ({"timeout": 0}, r"timeout: expected seconds in \[0.001, 3600\], got 0"),
    ],
)
def test_wrong_limits(wrong, message):
    with pytest.raises(ValueError, match=message):
        ServiceConfig(**wrong)
