"""More clients than the service can answer: bounded refusals, work that is dropped, recovery, and a stop that ends."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from image_bytes import drawn

pytest.importorskip("fastapi", reason="fastapi is not installed: the extra `serve`")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: the extra `serve`")
pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: the extra `serve`")
pytest.importorskip("python_multipart", reason="python-multipart is not installed: the extra `serve`")

from fastadv.detection import connections, service
from fastadv.detection.connections import http_server
from fastadv.detection.guard import Guard
from fastadv.detection.service import ServiceConfig, create_app
from fastadv.detection.service_metrics import LIMITS

PNG = "image/png"
TOKEN = "correct-horse-battery-staple"
ALLOWED = [(b"authorization", b"Bearer " + TOKEN.encode())]
POST = {"type": "http", "method": "POST", "path": "/v1/faces", "query_string": b"", "http_version": "1.1"}
POST |= {"headers": [(b"content-type", b"image/png")], "scheme": "http"}


class Passes:
    """The forward passes of a guard: how many images they had; they wait for a sign, or fail."""

    def __init__(self, monkeypatch):
        self.go, self.begun, self.images, self.error = threading.Event(), threading.Event(), 0, None
        self.go.set()
        original = Guard.__call__

        def call(own, images, claimed=None):
            self.begun.set()
            self.go.wait(30)
            if self.error is not None:
                raise self.error
            self.images += len(images)
            return original(own, images, claimed)

        monkeypatch.setattr(Guard, "__call__", call)


@pytest.fixture
def passes(monkeypatch):
    found = Passes(monkeypatch)
    yield found
    found.go.set()


def refused(text):
    """How often each limit has refused, from the metrics."""
    lines = [line for line in text.splitlines() if line.startswith("fastadv_refused_total{")]
    return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.endswith(" 0.0")}


class Running:
    """The service on a socket, in a thread."""

    def __init__(self, guard, **limits):
        config = ServiceConfig(**{"max_wait": 0.001, **limits})
        self.app, self.listening = create_app(guard, config), socket.create_server(("127.0.0.1", 0), backlog=100)
        self.server = http_server(self.app, config, self.app.state.service.metrics.refuse)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})

    def __enter__(self):
        self.thread.start()
        until(lambda: self.ask("GET", "/readyz")[0] == 200)
        return self

    def __exit__(self, *error):
        self.server.should_exit = True
        self.thread.join(30)
        self.listening.close()

    def connect(self):
        return socket.create_connection(self.listening.getsockname(), timeout=20)

    def ask(self, method, path, body=None):
        client = http.client.HTTPConnection(*self.listening.getsockname(), timeout=20)
        with contextlib.closing(client):
            client.request(method, path, body, {"Content-Type": PNG})
            answer = client.getresponse()
            return answer.status, answer.read().decode(), answer.getheader("retry-after")

    def refused(self):
        return refused(self.ask("GET", "/metrics")[1])


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_overload_is_told_at_once_and_passes(guard, passes):
    with Running(guard, max_queue=4, max_images=4, max_batch=2) as running:
        passes.go.clear()
        with ThreadPoolExecutor(24) as pool:
            asked = [pool.submit(running.ask, "POST", "/v1/faces", drawn(i)) for i in range(24)]
            until(lambda: sum(each.done() for each in asked) == 20)  # while no pass has ended
            passes.go.set()
        found = [each.result() for each in asked]
        assert collections.Counter(status for status, _, _ in found) == {200: 4, 503: 20}
        told = {(json.loads(text)["detail"], wait) for status, text, wait in found if status == 503}
        assert told == {("4 requests are open already", "1")}
        assert [running.ask("POST", "/v1/faces", drawn(i))[0] for i in range(6)] == [200] * 6
        assert running.refused() == {"open_requests": 20}


def posted(running):
    """A client that has sent a whole request."""
    client = running.connect()
    head = b"POST /v1/faces HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    client.sendall(head % len(drawn()) + drawn())
    return client


def test_what_nobody_waits_for_is_dropped(guard, passes):
    """A client that closes its connection leaves its place in the queue, and no pass has its image."""
    with Running(guard, max_batch=1, max_queue=3, max_images=3) as running:
        before = passes.images
        passes.go.clear()
        passes.begun.clear()
        with ThreadPoolExecutor(1) as pool:
            kept = pool.submit(running.ask, "POST", "/v1/faces", drawn())
            passes.begun.wait(20)  # its image is in the pass; those of the others wait
            with posted(running), posted(running):
                until(lambda: "fastadv_queue_images 2.0" in running.ask("GET", "/metrics")[1])
            until(lambda: running.refused().get("client_gone") == 2)
            text = running.ask("GET", "/metrics")[1]
            assert "fastadv_queue_images 0.0" in text
            assert "fastadv_open_requests 1.0" in text
            assert 'fastadv_requests_total{status="499"} 2.0' in text
            passes.go.set()
            assert kept.result()[0] == 200
        assert running.ask("POST", "/v1/faces", drawn())[0] == 200
        assert passes.images - before == 2


def test_a_client_that_closes_its_half_only_is_waited_for(guard, passes):
    asked = b"HTTP/1.1 100 Continue\r\n\r\n"
    with Running(guard) as running:
        passes.go.clear()
        with posted(running) as client:
            client.shutdown(socket.SHUT_WR)
            assert [client.recv(len(asked), socket.MSG_WAITALL) for _ in range(3)] == [asked] * 3
            passes.go.set()
            answer = http.client.HTTPResponse(client)
            answer.begin()  # skips what there is more of them
            assert (answer.status, len(json.loads(answer.read())["faces"])) == (200, 1)
        assert running.refused() == {}


def test_images_that_would_be_answered_late_are_refused(guard, monkeypatch):
    """With a queue of a hundred, and a pass that answers ten images a second within 2 s: nobody waits in vain."""
    original = Guard.__call__
    monkeypatch.setattr(Guard, "__call__", lambda *given: time.sleep(0.1) or original(*given))
    with Running(guard, max_queue=100, max_images=1, max_batch=1, timeout=2.0) as running:
        assert running.ask("POST", "/v1/faces", drawn())[0] == 200  # it knows the pace from here on
        with ThreadPoolExecutor(30) as pool:
            found = list(pool.map(lambda i: running.ask("POST", "/v1/faces", drawn(i))[0], range(30)))
        assert set(found) == {200, 503}
        assert running.refused() == {"queued_images": found.count(503)}
        assert running.ask("POST", "/v1/faces", drawn())[0] == 200


def test_bodies_that_do_not_arrive_take_nobodys_place(asgi, guard):
    async def work(app):
        async def receive():
            await asyncio.Event().wait()

        async def send(message):
            pass

        slow = [asyncio.create_task(app({**POST}, receive, send)) for _ in range(5)]
        await asyncio.sleep(0)
        found = await asgi.ask(app, "POST", "/v1/faces", drawn(), PNG)
        await asyncio.gather(*slow)
        return found[0], refused((await asgi.ask(app, "GET", "/metrics"))[1])

    assert asgi.during(guard, work, max_queue=1, max_images=1, timeout=0.3) == (200, {"body_timeout": 5})


def test_every_limit_is_counted_where_it_refuses(asgi, guard, passes):
    async def work(app):
        async def ask(body=b"", kind=PNG, headers=ALLOWED):
            return (await asgi.ask(app, "POST", "/v1/faces", body, kind, headers=headers))[0]

        found = [await ask(bytes(5000)), await ask(headers=())]
        passes.go.clear()
        passes.begun.clear()
        first = asyncio.create_task(ask(drawn()))
        await asyncio.to_thread(passes.begun.wait, 20)
        second = asyncio.create_task(ask(drawn()))
        for _ in range(1000):
            if app.state.service.waiting == 1:
                break
            await asyncio.sleep(0.005)
        form = b"".join(
            b'--e\r\nContent-Disposition: form-data; name="x"; filename="x"\r\n\r\n' + drawn() + b"\r\n"
            for _ in range(3)
        )
        found += [await ask(form + b"--e--", "multipart/form-data; boundary=e"), await first, await second]
        app.state.service.ready = False
        found.append(await ask(drawn()))
        passes.go.set()
        return found, refused((await asgi.ask(app, "GET", "/metrics", headers=ALLOWED))[1])

    limits = {"max_bytes": 4000, "max_queue": 3, "max_images": 3, "max_batch": 1, "timeout": 0.5, "token": TOKEN}
    found, told = asgi.during(guard, work, **limits)
    assert found == [413, 401, 503, 503, 503, 503]
    once = ("body_size", "token", "queued_images", "not_ready")
    assert told == {**dict.fromkeys(once, 1.0), "answer_timeout": 2.0}
    assert set(told) <= set(LIMITS)


def test_the_limits_of_connections_are_counted_too(guard):
    with Running(guard, max_connections=2, head_timeout=0.3, timeout=0.2) as running:
        with running.connect() as slow, running.connect() as broken:
            slow.sendall(b"GET /healthz")
            broken.sendall(b"\0\r\n\r\n")
            assert b" 408 " in slow.recv(1000)
            assert b" 400 " in broken.recv(1000)
        until(lambda: running.ask("GET", "/readyz")[0] == 200)
        with running.connect(), running.connect():
            status, _, wait = running.ask("GET", "/healthz")
            assert (status, wait) == (503, "1")
        until(lambda: running.ask("GET", "/readyz")[0] == 200)
        told = running.refused()
        assert (told["head_timeout"], told["not_http"]) == (1, 1)
        assert told["connections"] >= 1
        assert set(told) == {"head_timeout", "not_http", "connections"}


def test_a_fault_is_json_and_three_in_a_row_are_told_by_the_health(guard, passes, caplog):
    with Running(guard) as running:
        passes.error = RuntimeError("of the device")
        for health in (200, 200, 503):
            passes.go.clear()
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(running.ask, "POST", "/v1/faces", drawn())
                until(lambda: "fastadv_open_requests 1.0" in running.ask("GET", "/metrics")[1])
                assert running.ask("GET", "/healthz")[0] == 200  # a pass that goes on has not failed
                passes.go.set()
                status, text, _ = asked.result()
            assert (status, json.loads(text)) == (500, {"detail": "internal error; the server's log has the reason"})
            assert running.ask("GET", "/healthz")[0] == health
        assert "RuntimeError: of the device" in caplog.text
        passes.error = None
        assert [running.ask("POST", "/v1/faces", drawn())[0], running.ask("GET", "/healthz")[0]] == [200, 200]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory")])
def test_memory_that_runs_out_is_overload(asgi, guard, passes, error):
    async def work(app):
        passes.error = error
        found = await asgi.ask(app, "POST", "/v1/faces", drawn(), PNG)
        passes.error = None
        after = (await asgi.ask(app, "POST", "/v1/faces", drawn(), PNG))[0]
        return found, after, refused((await asgi.ask(app, "GET", "/metrics"))[1])

    assert asgi.during(guard, work) == ((503, {"detail": "not enough memory"}), 200, {"memory": 1})


def test_a_stop_ends_though_a_pass_does_not(guard, passes, monkeypatch):
    monkeypatch.setattr(connections, "_CLOSING", 0.2)
    with Running(guard, drain=0.1) as running:
        passes.go.clear()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(running.ask, "POST", "/v1/faces", drawn())
            until(lambda: "fastadv_open_requests 1.0" in running.ask("GET", "/metrics")[1])
            running.server.should_exit = True
            running.thread.join(20)
            assert not running.thread.is_alive()
            assert (running.server.stuck, running.server.unanswered) == (True, 1)
            assert (asked.result()[0], json.loads(asked.result()[1])) == (503, {"detail": "stopping"})


def test_serving_says_that_a_pass_does_not_end(guard, passes, monkeypatch):
    monkeypatch.setattr(connections, "_CLOSING", 0.2)

    def started(address):
        passes.go.clear()
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(service.StuckError, match="stop: expected the last forward pass to end, got none that did"):
        service.serve(guard, ServiceConfig(drain=0.1), port=0, started=started)


def test_a_network_that_does_not_run_ends_the_server(guard, passes):
    passes.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="model: expected a network that runs, got RuntimeError: out of memory"):
        service.serve(guard, port=0)


def test_no_path_is_redirected_to_a_host_that_the_client_names(asgi, guard):
    async def work(app):
        paths = ("/healthz/", "/v1/faces/", "//evil.example/", "/readyz/..")
        return [(await asgi.ask(app, "GET", path, headers=[(b"host", b"evil.example")]))[0] for path in paths]

    assert asgi.during(guard, work) == [404] * 4
