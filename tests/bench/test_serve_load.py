"""What the load on the service counts: answers, refusals that say when to come again, and errors."""

import http.server
import itertools
import json
import threading

import pytest

from bench import serve_load

GOOD = json.dumps({"faces": [{}]}).encode()


@pytest.fixture
def host():
    """A server whose answers are one after the other good, a refusal, a refusal without Retry-After, and an error."""
    turn = itertools.count()
    lock = threading.Lock()

    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            with lock:
                kind = next(turn) % 4
            self.reply((200, 503, 503, 500)[kind], GOOD, {"retry-after": "1"} if kind == 1 else {})

        def do_GET(self):
            self.reply(200, b"fastadv_batch_images_count 2\nfastadv_batch_images_sum 6\n", {})

        def reply(self, status, body, headers):
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(20)


def test_every_request_is_an_answer_a_refusal_or_an_error(host):
    row = serve_load.load_with(host, [b"x"] * 32, clients=2, seconds=0.2, phase="overload")
    assert (row["phase"], row["clients"], row["images_per_pass"]) == ("overload", 2, 0.0)
    assert row["requests"] == row["answered"] + row["refused"] + row["errors"]
    counts = sorted([row["answered"], row["refused"], *(int(part.split(": ")[1]) for part in row["which"].split(", "))])
    assert counts[0] >= counts[-1] - 1 > 0
    assert {part.split(": ")[0] for part in row["which"].split(", ")} == {"500", "503"}
    assert 0 < row["ms_p50"] <= row["ms_p99"]
    assert 0 < row["refused_ms_p50"] <= row["refused_ms_p99"]


def test_only_overload_may_refuse():
    row = {"phase": "load", "clients": 8, "refused": 0, "errors": 0, "which": ""}
    assert serve_load.failures([row, {**row, "phase": "overload", "refused": 9}]) == []
    wrong = [{**row, "phase": "after", "refused": 2}, {**row, "phase": "overload", "errors": 1, "which": "500: 1"}]
    assert serve_load.failures(wrong) == ["overload, 8 clients: 500: 1", "after, 8 clients: 2 refused"]
