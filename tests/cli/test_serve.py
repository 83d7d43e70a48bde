"""``fastadv serve``: a process that answers, under load, until it is told to stop, and then cleanly."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_bytes import encoded

pytest.importorskip("fastapi", reason="fastapi is not installed: the extra `serve`")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: the extra `serve`")
pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: the extra `serve`")
pytest.importorskip("python_multipart", reason="python-multipart is not installed: the extra `serve`")

from fastadv.data.images import to_tensor
from fastadv.detection import Architecture, Detector, LayerTap, Network, Trajectory, centroids
from fastadv.detection.guard import Guard
from fastadv.detection.service import ServiceConfig, StuckError
from fastadv.models import load


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (112, 112, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def detector():
    model = load("synth-vgg")
    tap = LayerTap(model=model)
    with torch.no_grad():
        values = tap(torch.stack([to_tensor(pixels(i)) for i in range(6)])).values
        made = centroids([(values, torch.arange(6) % 3)], layers=tap.names, classes=tuple("abc"), model=model.name)
        trajectory = Trajectory(representatives=made)
        embedded = trajectory(values)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Network(Architecture(kind="mlp", layers=len(tap.names), width=3, hidden=8))
        network.mean.copy_(embedded.mean(0))
        network.scale.copy_(embedded.std(0))
        network.eval().requires_grad_(False)
        scores = Detector(trajectory=trajectory, network=network).score(values)
    bare = Detector(trajectory=trajectory, network=network)
    return bare.calibrated(scores[:3], scores[3:], rates=(0.5,))


@pytest.fixture(scope="module")
def detector_file(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    detector.save(path)
    return path


class Running:
    """A server in a process of its own."""

    def __init__(self, process):
        self.process = process
        line = process.stderr.readline()
        assert "listening on http://127.0.0.1:" in line, line + process.stderr.read()
        self.port = int(line.split(";")[0].rpartition(":")[2])
        for _ in range(3000):
            if self.ask("GET", "/readyz")[0] == 200:
                return
            time.sleep(0.02)
        raise AssertionError("never ready")

    def ask(self, method, path, body=None, kind=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {**(headers or {}), **({"Content-Type": kind} if kind else {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def judge(self, seed):
        status, said = self.ask("POST", "/v1/faces", encoded(pixels(seed)), "image/png")
        return status, json.loads(said)

    def stop(self, number):
        """The exit code and what else was said."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.fixture(scope="module")
def server(start, detector_file):
    classes = detector_file.with_name("classes.json")
    classes.write_text(json.dumps([f"person {k}" for k in range(500)]))
    more = ("--max-batch", 8, "--max-wait-ms", 3000, "--classes", classes)
    running = Running(start("serve", "--model", "synth-vgg", "--detector", detector_file, "--port", 0, *more))
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.communicate()


def test_answers_under_load_and_a_clean_stop(server, detector):
    guard = Guard(model=load("synth-vgg"), detector=detector)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(server.judge, [i % 10 for i in range(40)]))
    right = guard(torch.stack([to_tensor(pixels(i)) for i in range(10)]))
    for i, (status, said) in enumerate(found):
        assert status == 200
        (face,) = said["faces"]
        assert face["score"] == pytest.approx(float(right.scores[i % 10]), abs=1e-4)
        assert face["p_value"] in (0.25, 0.5, 0.75, 1.0)
        assert face["prediction"]["index"] == int(right.logits[i % 10].argmax())
        assert face["prediction"]["name"] == f"person {face['prediction']['index']}"
        assert said["threshold"] == detector.thresholds.equal_error
    status, metrics = server.ask("GET", "/metrics")
    assert status == 200
    assert b'fastadv_requests_total{status="200"} 40.0' in metrics
    assert b"fastadv_drift_images 40.0" in metrics
    assert server.ask("GET", "/healthz") == (200, b'{"status":"ok"}')
    assert server.ask("POST", "/v1/faces", b"no image", "image/png")[0] == 415
    # told to stop while requests wait for others to share a pass: they are answered, and the process ends well
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(server.judge, i) for i in range(4)]
        while b"fastadv_queue_images 4.0" not in server.ask("GET", "/metrics")[1]:
            assert not any(w.done() for w in waiting)
            time.sleep(0.01)
        code, told = server.stop(signal.SIGTERM)
        assert [w.result()[0] for w in waiting] == [200] * 4
    assert (code, "stopped; every open request was answered" in told) == (0, True)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5).close()


def test_a_token_from_a_file_slow_heads_and_ctrl_c(start, detector_file, tmp_path):
    token = tmp_path / "token"
    token.write_text("correct-horse-battery-staple\n")
    more = ("--token-file", token, "--head-timeout", 1, "--max-connections", 2, "--max-mib", 0.01)
    running = Running(start("serve", "--model", "synth-vgg", "--detector", detector_file, "--port", 0, *more))
    assert running.ask("GET", "/healthz")[0] == 200
    assert [running.ask("GET", path)[0] for path in ("/metrics", "/docs")] == [401, 401]
    right = {"Authorization": f"Bearer {token.read_text().strip()}"}
    assert running.ask("GET", "/metrics", headers=right)[0] == 200
    assert running.ask("POST", "/v1/faces", bytes(20_000_000), "image/png", right)[0] == 413
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert b" 408 " in slow.recv(1000)
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        while not idle.recv(1000).endswith(b"}"):
            pass
        code, told = running.stop(signal.SIGINT)
        assert idle.recv(1000) == b""  # the end, and no reset
    assert (code, "stopped" in told) == (0, True)


def serving(inside, file, *more):
    return inside("serve", "--model", "synth-vgg", "--detector", file, *more)


def test_wrong_options(inside, detector, detector_file, tmp_path):
    code, said = serving(inside, tmp_path / "gone.safetensors")
    assert (code, "gone.safetensors: expected a safetensors file of the kind 'detector', got no such file" in said) == (
        2,
        True,
    )
    code, said = serving(inside, detector_file, "--false-alarm", 0.2)
    assert (
        code,
        "expected a rate that 3 natural images can measure, 1/4 or more, got 0.2; needs at least 4" in said,
    ) == (2, True)
    code, said = serving(inside, detector_file, "--false-alarm", 0.01, "--threshold", 1)
    assert (code, "--threshold: expected it or --false-alarm, got both" in said) == (2, True)
    alone = tmp_path / "alone.safetensors"
    detector.calibrated(detector.thresholds.scores, rates=(0.5,)).save(alone)
    code, said = serving(inside, alone, "--eer")
    assert (code, "--eer: expected a detector that was calibrated on adversarial images too" in said) == (2, True)
    code, said = serving(inside, detector_file, "--drift-window", 5)
    assert (code, "drift_window: expected an integer from 20 to 1048576, got 5" in said) == (2, True)
    code, said = serving(inside, detector_file, "--max-batch", 0)
    assert (code, "max_batch: expected an integer >= 1, got 0" in said) == (2, True)
    code, said = serving(inside, detector_file, "--port", 70000)
    assert (code, "port: expected 0 to 65535, got 70000" in said) == (2, True)
    code, said = inside("serve", "--model", "synth-mobile", "--detector", detector_file)
    assert (code, "model: expected the detector's, synth-vgg, got synth-mobile" in said) == (2, True)
    other = tmp_path / "other.safetensors"
    replace(detector, provenance={"backbone": "0" * 64}).save(other)
    code, said = serving(inside, other)
    assert (code, "weights: expected those that the detector was fitted on" in said) == (2, True)


def test_wrong_limits_and_tokens(inside, detector_file, tmp_path, monkeypatch):
    code, said = serving(inside, detector_file, "--max-connections", 0)
    assert (code, "max_connections: expected an integer >= 1, got 0" in said) == (2, True)
    code, said = serving(inside, detector_file, "--head-timeout", 0)
    assert (code, "head_timeout: expected seconds in [0.001, 3600], got 0" in said) == (2, True)
    code, said = serving(inside, detector_file, "--max-request-megapixels", 1)
    told = "--max-request-megapixels: expected a number from --max-megapixels, 16 to 1e+06, got 1"
    assert (code, told in said) == (2, True)
    for option, value, expected in (
        ("--max-mib", -1, "a number from 0.001 to 1024, got -1"),
        ("--max-mib", 1e300, "a number from 0.001 to 1024, got 1e+300"),
        ("--max-megapixels", 41, "a number from 0.001 to 40, got 41"),
        ("--max-wait-ms", 60001, "a number from 0 to 60000, got 60001"),
        ("--max-buffered-mib", 1, "a number from --max-mib, 8 to 1e+06, got 1"),
        ("--host", " ", "an address of this machine, got ' '"),
    ):
        code, said = serving(inside, detector_file, option, value)
        assert (code, f"{option}: expected {expected}" in said) == (2, True), said
    code, said = serving(inside, detector_file, "--max-parts", 0)
    assert (code, "max_parts: expected an integer >= 1, got 0" in said) == (2, True)
    code, said = serving(inside, detector_file, "--timeout", 1e-300)
    assert (code, "timeout: expected seconds in [0.001, 3600], got 1e-300" in said) == (2, True)
    code, said = serving(inside, detector_file, "--token-file", tmp_path / "gone")
    assert (code, "--token-file: expected a file that can be read, got" in said) == (2, True)
    (tmp_path / "short").write_text("hunter2")
    code, said = serving(inside, detector_file, "--token-file", tmp_path / "short")
    assert (code, "--token-file: expected 16 to 4096 visible ASCII characters, got 7" in said) == (2, True)
    assert "hunter2" not in said
    monkeypatch.setenv("FASTADV_TOKEN", "")
    code, said = serving(inside, detector_file)
    assert (code, "FASTADV_TOKEN: expected 16 to 4096 visible ASCII characters, got 0" in said) == (2, True)


@pytest.mark.parametrize(
    ("left", "expected"), [(0, "every open request was answered"), (3, "open requests that were not answered: 3")]
)
def test_the_last_line_counts_what_was_not_answered(inside, detector_file, monkeypatch, left, expected):
    monkeypatch.setattr("fastadv.detection.service.serve", lambda *given, **options: left)
    code, said = serving(inside, detector_file)
    assert (code, said.strip()) == (0, f"stopped; {expected}")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--host", "0.0.0.0"), True),
        (("--host", "127.0.0.2"), False),
        (("--host", "::1"), False),
        (("--host", "0.0.0.0", "--token-file", "token"), False),
    ],
)
def test_an_address_that_others_reach_without_a_token_is_told(
    inside, detector_file, monkeypatch, tmp_path, given, told
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("correct-horse-battery-staple")

    def answer(guard, config, *, started, **options):
        started("http://somewhere:1")
        return 0

    monkeypatch.setattr("fastadv.detection.service.serve", answer)
    code, said = serving(inside, detector_file, *given)
    text = "no token: every client that reaches this address is answered; see --token-file"
    assert (code, text in " ".join(said.split())) == (0, told)


def test_a_pass_that_does_not_end_does_not_keep_the_process(inside, detector_file, monkeypatch):
    def answer(*given, **options):
        raise StuckError("stop: expected the last forward pass to end, got none that did")

    monkeypatch.setattr("fastadv.detection.service.serve", answer)
    monkeypatch.setattr("os._exit", sys.exit)
    assert serving(inside, detector_file) == (1, "stop: expected the last forward pass to end, got none that did\n")


def test_limits_reach_the_service(inside, detector_file, monkeypatch):
    seen = []
    monkeypatch.setattr("fastadv.detection.service.serve", lambda guard, config, **options: seen.append(config) or 0)
    for given in ((), ("--max-mib", 300), ("--max-parts", 7, "--max-queue", 99, "--max-buffered-mib", 9, "--drain", 3)):
        assert serving(inside, detector_file, *given)[0] == 0
    usual, large, own = seen
    assert usual == ServiceConfig()
    assert (large.max_bytes, large.max_buffered) == (300 << 20, 300 << 20)
    assert (own.max_parts, own.max_queue, own.max_buffered, own.drain) == (7, 99, 9 << 20, 3)


def test_a_port_that_is_taken(inside, detector_file):
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, said = serving(inside, detector_file, "--port", other.getsockname()[1])
    assert (code, "host, port: expected an address to listen on, got 127.0.0.1 port" in said) == (2, True)


def test_a_package_that_is_missing(inside, detector_file, monkeypatch):
    monkeypatch.delitem(sys.modules, "fastadv.detection.service", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, said = serving(inside, detector_file)
    assert (code, "pip install 'fastadv[serve]'" in said) == (2, True)


@pytest.mark.slow
def test_export(inside, fastadv, detector_file, tmp_path):
    path = tmp_path / "guard.pt2"
    done = fastadv("detect", "export", "--model", "synth-vgg", "--detector", detector_file, "--out", path, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["format"], said["path"], said["size"]) == ("torch.export", str(path), path.stat().st_size)
    assert said["scores"] <= 1e-4
    x = torch.stack([to_tensor(pixels(i)) for i in range(3)])
    embeddings, scores, flagged, logits, p_values = torch.export.load(path).module()(x)
    assert ((p_values > 0) & (p_values <= 1)).all()
    assert logits.shape == (3, 500)
    assert (scores >= said["threshold"]).tolist() == flagged.tolist()
    with torch.no_grad():
        torch.testing.assert_close(embeddings, load("synth-vgg")(x), rtol=1e-4, atol=1e-4)
    code, told = inside(
        "detect", "export", "--model", "synth-vgg", "--detector", detector_file, "--out", tmp_path / "guard.txt"
    )
    assert (code, "expected a name that ends in .onnx or .pt2" in told) == (2, True)
