"""The connections of the service: deadlines, a limit, answers that are not cut off, and a stop that resets nobody."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import http.client
import json
import logging
import signal
import socket
import threading

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: the extra `serve`")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: the extra `serve`")
pytest.importorskip("python_multipart", reason="python-multipart is not installed: the extra `serve`")

from fastadv.detection import connections
from fastadv.detection.connections import http_server
from fastadv.detection.service_config import ServiceConfig
from fastadv.detection.uploads import BodyLimit

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class App:
    """Answers with the length of the body; to GET /wait once it may."""

    def __init__(self):
        self.may, self.waiting = threading.Event(), threading.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        if scope["path"] == "/wait":
            self.waiting.set()
            while not self.may.is_set():
                await asyncio.sleep(0.005)
        size, more = 0, scope["path"] != "/early"  # answers before it has read the body
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        body = b"x" * 20_000_000 if scope["path"] == "/large" else b"%d" % size
        head = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})


class Running:
    """A server in a thread."""

    def __init__(self, app, listening, **limits):
        self.server = http_server(app, ServiceConfig(**limits))
        self.address = listening.getsockname()
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]})

    def connect(self):
        return socket.create_connection(self.address, timeout=20)

    def ask(self, path="/", body=None):
        client = http.client.HTTPConnection(*self.address, timeout=20)
        with contextlib.closing(client):
            client.request("GET" if body is None else "POST", path, body)
            answer = client.getresponse()
            return answer.status, answer.read()

    def stop(self):
        self.server.should_exit = True


class Listening(socket.socket):
    """A socket on which accepting fails a number of times."""

    failures = 0

    def accept(self):
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@pytest.fixture
def serving():
    """Start a server; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(app=None, **limits):
            listening = stack.enter_context(Listening())
            listening.bind(("127.0.0.1", 0))
            listening.listen(100)
            running = Running(app or App(), listening, **{"drain": 5.0, **limits})
            running.listening = listening
            running.thread.start()
            stack.callback(running.thread.join, 30)
            stack.callback(running.stop)
            assert running.ask()[0] == 200
            return running

        yield start


def rest(client):
    """What arrives until the connection is closed, which must not be by a reset."""
    found = b""
    while data := client.recv(1 << 16):
        found += data
    return found


def test_a_head_that_does_not_end_is_late(serving):
    running = serving(head_timeout=0.3)
    with running.connect() as slow, running.connect() as silent, running.connect() as kept:
        kept.sendall(ASK)
        slow.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(3):  # to send something is not enough
            slow.sendall(b"X")
            assert running.ask()[0] == 200
        status, _, answer = rest(slow).partition(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert json.loads(answer) == {"detail": "the head of the request took too long to arrive"}
        assert rest(silent) == b""
        assert rest(kept).endswith(b"\r\n\r\n0")  # the answer, and later nothing more
    assert running.ask()[0] == 200


def test_what_is_left_of_a_body_is_late_too(serving):
    running = serving(head_timeout=0.3)
    with running.connect() as slow:
        slow.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        assert rest(slow).endswith(b"\r\n\r\n0")


def test_a_request_that_is_never_answered_ends(serving):
    running = serving(app := App(), head_timeout=0.1, timeout=0.1)
    with running.connect() as client:
        client.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert rest(client) == b""
    app.may.set()
    assert running.ask()[0] == 200


def test_a_client_that_does_not_read_is_cut_off(serving):
    running = serving(head_timeout=0.5, timeout=0.5, drain=60.0)
    with running.connect() as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert running.ask()[0] == 200
        running.stop()
        running.thread.join(30)  # less than the drain
        assert not running.thread.is_alive()
        assert running.server.unanswered == 1


def test_one_connection_too_many_is_told(serving):
    running = serving(max_connections=3, head_timeout=60.0)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(running.connect())
        for _ in range(5):
            status, answer = running.ask(body=bytes(3_000_000))
            assert (status, json.loads(answer)) == (503, {"detail": "3 connections are open already"})
    for _ in range(1000):  # until the server has seen that they are gone
        if running.ask()[0] == 200:
            break
    assert running.ask() == (200, b"0")


def test_the_oldest_that_waits_makes_way(serving, monkeypatch):
    monkeypatch.setattr(connections, "_GRACE", 0.0)
    running = serving(app := App(), max_connections=3, head_timeout=60.0)
    with running.connect() as busy, running.connect() as first, running.connect() as second:
        busy.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        app.waiting.wait(20)
        first.sendall(b"GET")
        assert running.ask() == (200, b"0")
        assert b" 408 " in rest(first)
        second.sendall(ASK)
        assert second.recv(100).startswith(b"HTTP/1.1 200 ")
        app.may.set()
        assert busy.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_body_over_the_limit_is_answered_and_not_reset(serving):
    """However much there is of it, and on the same connection the next request is answered."""

    class Json(App):
        async def __call__(self, scope, receive, send):
            try:
                await super().__call__(scope, receive, send)
            except Exception as error:
                head = [(b"content-length", b"0")]
                await send({"type": "http.response.start", "status": error.status_code, "headers": head})
                await send({"type": "http.response.body"})

    class Limited:
        def __init__(self):
            self.app = Json()
            self.limited = BodyLimit(self.app, 10_000, 100_000)

        async def __call__(self, scope, receive, send):
            await (self.app if scope["type"] == "lifespan" else self.limited)(scope, receive, send)

    running = serving(Limited())
    client = http.client.HTTPConnection(*running.address, timeout=20)
    with contextlib.closing(client):
        for size, status in ((20_000_000, 413), (9000, 200), (50_000, 413), (10_000, 200)):
            client.request("POST", "/", bytes(size))
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (status, b"" if status == 413 else b"%d" % size)


def test_a_stop_answers_what_is_under_way_and_resets_nobody(serving):
    running = serving(app := App())
    with running.connect() as idle, running.connect() as half, running.connect() as busy, running.connect() as body:
        idle.sendall(ASK)
        first = idle.recv(1000)
        half.sendall(b"GET / HT")
        body.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        busy.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        app.waiting.wait(20)
        running.stop()
        assert (first + rest(idle)).endswith(b"\r\n\r\n0")
        assert rest(half) == b""
        app.may.set()
        body.sendall(b"67890")
        assert rest(busy).endswith(b"\r\n\r\n0")
        assert rest(body).endswith(b"\r\n\r\n10")
    running.thread.join(20)
    assert not running.thread.is_alive()


def test_descriptors_that_run_out_are_one_line(serving, monkeypatch, caplog):
    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.05)
    caplog.set_level(logging.INFO)
    running = serving()
    running.listening.failures = 5000
    with running.connect() as client:
        client.sendall(ASK)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    assert running.listening.failures == 0
    running.listening.failures = 1
    assert running.ask()[0] == 200
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == ["no file descriptor is left for a new connection; lower --max-connections or raise ulimit -n"]


def test_what_is_no_http_ends_the_connection_and_nothing_else(serving, caplog):
    caplog.set_level(logging.INFO)
    running = serving(app := App())
    for sent in (b"\0\1\2\3\r\n\r\n", b"GET /\r\n\r\n\0", b"A" * 100_000):
        with running.connect() as client:
            client.sendall(sent)
            with contextlib.suppress(ConnectionResetError):
                assert rest(client).startswith(b"HTTP/1.1 400 ")
    with running.connect() as client:
        client.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345\0\0\r\n\r\n\0")
        app.waiting.wait(20)
        client.sendall(b"\0\r\n\r\n" * 10)
        app.may.set()
        with contextlib.suppress(ConnectionResetError):
            rest(client)
    assert running.ask()[0] == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_chunks_of_hardly_a_byte_are_refused(serving):
    running = serving()
    chunks = b"1\r\nx\r\n"
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with running.connect() as client:
        client.sendall(head + chunks * 10_000)
        status, _, answer = rest(client).partition(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert "expected chunks of 64 bytes on average" in json.loads(answer)["detail"]
    large = b"%x\r\n%s\r\n" % (100, bytes(100))
    for body, size in ((chunks * 256, 256), (large * 2000, 200_000), (chunks * 50 + large * 250, 25_050)):
        with running.connect() as client:
            client.sendall(head + body + b"0\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            assert rest(client).endswith(b"\r\n\r\n%d" % size)


def test_two_lengths_are_refused(serving):
    running = serving()
    length, coded = b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"
    for lengths in (length + coded, coded + length):
        with running.connect() as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + lengths + b"\r\n5\r\n12345\r\n0\r\n\r\n" + ASK)
            status, _, answer = rest(client).partition(b"\r\n\r\n")
            assert status.startswith(b"HTTP/1.1 400 ")
            assert json.loads(answer) == {"detail": "expected Content-Length or Transfer-Encoding, got both"}


def test_what_is_no_http_is_told_in_json(serving):
    running = serving()
    for sent in (b"GET /\r\n\r\n", b"A" * 100_000, b"\x16\x03\x01\x02\0\x01\0\r\n", ASK + b"\0\r\n\r\n"):
        with running.connect() as client:
            client.sendall(sent)
            head, _, answer = rest(client).rpartition(b"\r\n\r\n")
            assert b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n" in head
            assert "expected an HTTP/1.1 request" in json.loads(answer)["detail"]


def test_a_client_that_closes_its_half_is_answered(serving):
    running = serving()
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    short, head = "the body ended before it was whole", "the head of the request ended before it was whole"
    for sent, status, answer in (
        (ASK, 200, b"0"),
        (post + bytes(100_000), 200, b"100000"),
        (ASK + ASK + post + bytes(100_000), 200, b"100000"),
        (post + bytes(99_999), 400, {"detail": short}),
        (post, 400, {"detail": short}),
        (
            post.replace(b"Content-Length: 100000", b"Transfer-Encoding: chunked") + b"5\r\n12345",
            400,
            {"detail": short},
        ),
        (ASK[:-2], 400, {"detail": head}),
    ):
        with running.connect() as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            found = rest(client)
            assert found.count(b"HTTP/1.1 200 ") == (sent.count(b"HTTP/1.1") if status == 200 else 0)
            assert found.startswith(b"HTTP/1.1 %d " % status)
            said = found.rpartition(b"\r\n\r\n")[2]
            assert (json.loads(said) if status == 400 else said) == answer
    with running.connect() as client:
        client.shutdown(socket.SHUT_WR)
        assert rest(client) == b""


def test_a_later_head_that_does_not_end_is_late_too(serving):
    running = serving(head_timeout=0.2)
    with running.connect() as slow:
        slow.sendall(ASK + b"GET / HTTP/1.1\r\n")
        assert b" 408 Request Timeout\r\n" in rest(slow)


def test_requests_in_a_row_end_without_a_reset_at_a_stop(serving):
    running = serving(app := App())
    post = b"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
    with running.connect() as client:
        client.sendall(post % b"wait" + post % b"" * 3)
        app.waiting.wait(20)
        running.stop()
        with contextlib.suppress(OSError):  # until it accepts nothing more
            while True:
                running.connect().close()
        app.may.set()
        found = rest(client)
        assert (found.count(b"HTTP/1.1"), b"connection: close" in found.lower()) == (1, True)
    running.thread.join(20)
    assert running.server.unanswered == 0


@pytest.mark.parametrize("how", ["drain", "again"])
def test_requests_that_a_stop_cancels_are_told(serving, how, caplog):
    running = serving(app := App(), **({"drain": 0.1} if how == "drain" else {}))
    with running.connect() as waits, running.connect() as body, running.connect() as idle:
        idle.sendall(ASK)
        body.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        waits.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        app.waiting.wait(20)
        while not idle.recv(1000).endswith(b"0"):
            pass
        running.server.handle_exit(signal.SIGINT, None)
        if how == "again":
            running.server.handle_exit(signal.SIGINT, None)
        for client in (waits, body):
            head, _, answer = rest(client).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert json.loads(answer) == {"detail": "stopping"}
        assert rest(idle) == b""
    running.thread.join(20)
    assert running.server.unanswered == 2
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_nothing_of_a_connection_outlives_it(serving):
    """Its buffers are freed at once, without the collection of cycles, whichever way it ended."""
    running = serving(head_timeout=0.2, timeout=0.1)
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    gc.collect()
    gc.disable()
    try:
        for sent in (ASK, post, post + bytes(50), b"GET", b"\0\r\n\r\n", b"", ASK * 3):
            with running.connect() as client:
                client.sendall(sent)
            with running.connect() as client:
                client.sendall(sent)
                with contextlib.suppress(ConnectionResetError):
                    rest(client)
        running.stop()
        running.thread.join(20)
        assert [each for each in gc.get_objects() if type(each) is connections.Connection] == []
    finally:
        gc.enable()
