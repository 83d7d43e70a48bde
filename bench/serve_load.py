"""Load on ``fastadv serve``: ``python -m bench.serve_load``; latencies, rate, refusals and errors.

First several numbers of clients that the server can answer, then more than it lets wait, who try again at once when
they are refused, and then as many as before, which shows whether it recovers.

Without ``--url`` a server is started with a detector of random weights (its time is that of a fitted one) and stopped
at the end. Client and server then share the machine's cores. Further options go to the server: ``--max-batch 32``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from bench.about import show, write_results
from bench.guard import made_up_detector
from fastadv.models import load

_IMAGES = 32
_OVER = 512  # clients: twice as many as the default limits let wait


def images(size: int) -> list[bytes]:
    """JPEG files with the detail of a photograph."""
    made = []
    for seed in range(_IMAGES):
        coarse = np.random.default_rng(seed).integers(0, 256, (14, 14, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
        made.append(file.getvalue())
    return made


def metric(host: str, name: str) -> float:
    """One number of ``/metrics``."""
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")), 0.0)


def load_with(host: str, bodies: list[bytes], *, clients: int, seconds: float, phase: str = "load") -> dict[str, Any]:
    """Clients that each send one image, wait for the answer, and send the next, also after a refusal (429 or 503)."""
    spent: dict[str, list[float]] = {"answered": [], "refused": []}
    errors: collections.Counter[str] = collections.Counter()
    stop = time.perf_counter() + seconds
    lock = threading.Lock()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(host, timeout=60)
        own: dict[str, list[float]] = {"answered": [], "refused": []}
        turn = number
        while time.perf_counter() < stop:
            begin = time.perf_counter()
            try:
                connection.request("POST", "/v1/faces", bodies[turn % _IMAGES], {"Content-Type": "image/jpeg"})
                answer = connection.getresponse()
                said = answer.read()
                if answer.status == 200 and len(json.loads(said)["faces"]) == 1:
                    own["answered"].append(time.perf_counter() - begin)
                elif answer.status in (429, 503) and answer.getheader("retry-after"):
                    own["refused"].append(time.perf_counter() - begin)
                else:
                    with lock:
                        errors[str(answer.status)] += 1
            except (OSError, http.client.HTTPException, ValueError) as error:
                with lock:
                    errors[type(error).__name__] += 1
                connection.close()
            turn += 1
        connection.close()
        with lock:
            for name, values in own.items():
                spent[name].extend(values)

    passes, judged = metric(host, "fastadv_batch_images_count"), metric(host, "fastadv_batch_images_sum")
    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - begin
    passes = metric(host, "fastadv_batch_images_count") - passes
    judged = metric(host, "fastadv_batch_images_sum") - judged
    answered, refused = spent["answered"], spent["refused"]
    return {
        "phase": phase,
        "clients": clients,
        "requests": len(answered) + len(refused) + sum(errors.values()),
        "answered": len(answered),
        "refused": len(refused),
        "per_second": len(answered) / wall,
        **_quantiles("ms", answered),
        **_quantiles("refused_ms", refused),
        "images_per_pass": judged / passes if passes else 0.0,
        "errors": sum(errors.values()),
        "which": ", ".join(f"{k}: {n}" for k, n in errors.items()),
    }


def _quantiles(name: str, spent: list[float]) -> dict[str, float | None]:
    """Milliseconds of the 50th, 95th and 99th percentile; None of nothing."""
    return {f"{name}_p{q}": 1e3 * float(np.percentile(spent, q)) if spent else None for q in (50, 95, 99)}


def under_and_over(host: str, bodies: list[bytes], *, counts: list[int], over: int, seconds: float) -> list[dict]:
    """Rows of several numbers of clients, of ``over`` clients, and of the last number again, after a warm-up."""
    load_with(host, bodies, clients=4, seconds=min(2.0, seconds))
    rows = [load_with(host, bodies, clients=n, seconds=seconds) for n in counts]
    if over:
        rows.append(load_with(host, bodies, clients=over, seconds=seconds, phase="overload"))
        rows.append(load_with(host, bodies, clients=counts[-1], seconds=seconds, phase="after"))
    return rows


def failures(rows: list[dict]) -> list[str]:
    """What must not be: an error, or a refusal of clients that the server can answer."""
    found = [f"{row['phase']}, {row['clients']} clients: {row['which']}" for row in rows if row["errors"]]
    return found + [
        f"{row['phase']}, {row['clients']} clients: {row['refused']} refused"
        for row in rows
        if row["refused"] and row["phase"] != "overload"
    ]


@contextlib.contextmanager
def server(model: str, weights: Path | None, more: list[str]) -> Iterator[str]:
    """A server of its own process on a free port; its host and port, once it is ready."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "detector.safetensors"
        if weights is None:
            weights = Path(folder) / "weights.safetensors"
            state = load(model, random_weights_seed=0).backbone.state_dict()
            save_file({name: value.contiguous() for name, value in state.items()}, weights)
        made_up_detector(load(model, weights), kind="mlp").save(file)
        given = ["--model", model, "--weights", str(weights), "--detector", str(file), "--port", "0", *more]
        command = [sys.executable, "-m", "fastadv", "serve", *given]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            if "listening on" not in line:
                raise RuntimeError(line + process.stderr.read())
            host = urlsplit(line.split("listening on ")[1].split(";")[0]).netloc
            until_ready(host)
            yield host
            process.send_signal(signal.SIGTERM)
            if process.wait(60) != 0:
                raise RuntimeError(f"the server ended with {process.returncode}: {process.stderr.read()}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def until_ready(host: str) -> None:
    """Wait for ``/readyz``.

    Raises:
        TimeoutError: two minutes have passed.
    """
    stop = time.monotonic() + 120
    while time.monotonic() < stop:
        connection = http.client.HTTPConnection(host, timeout=60)
        with contextlib.suppress(OSError):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        connection.close()
        time.sleep(0.05)
    raise TimeoutError(f"{host} is not ready after two minutes")


def run(*, quick: bool) -> list[dict[str, Any]]:
    """MobileFaceNet with random weights behind the default limits.

    Raises:
        AssertionError: A request failed, or was refused without overload.
    """
    with server("mobilefacenet", None, []) as host:
        rows = under_and_over(host, images(112), counts=[1, 8, 32], over=_OVER, seconds=3.0 if quick else 20.0)
    if failed := failures(rows):
        raise AssertionError(f"requests failed: {'; '.join(failed)}")
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Parse, load, print, write; the exit code is 1 where a request failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve_load", description=__doc__)
    parser.add_argument("--url", help="a server that runs already, such as http://127.0.0.1:8000")
    parser.add_argument("--model", default="mobilefacenet")
    parser.add_argument("--weights", type=Path, help="default: random ones; their time is the same")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--over", type=int, default=_OVER, help="clients of the overload; 0 for none")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", action="store_true", help="write the figures below bench/results")
    args, more = parser.parse_known_args(arguments)
    counts = [int(part) for part in args.clients.split(",")]
    if args.url:
        place: Any = contextlib.nullcontext(urlsplit(args.url).netloc)
    else:
        place = server(args.model, args.weights, more)
    with place as host:
        bodies = images(load(args.model, random_weights_seed=0).input_size[0])
        rows = under_and_over(host, bodies, counts=counts, over=args.over, seconds=args.seconds)
    show(rows)
    if args.json:
        write_results("serve-load", rows, model=args.model, options=more)
    print("\n".join(failures(rows)))
    return 1 if failures(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
