"""What attacks on 10^9 faces cost: time, storage, memory, and which resource saturates first; no simulation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGES = 10**9
WORKERS = (1, 8, 64, 512)
DAY = 86_400.0
_RESULTS = Path(__file__).parent / "results"
_BLOCK = 4096  # bytes that a file system gives at once

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What is not measured.

    Attributes:
        network: Of a worker's machine, bytes/s.
        storage: Of the storage that all workers share, bytes/s.
        operations: On files of that storage, 1/s.
        cores: For decoding and encoding beside a GPU.
        memory: Of a machine, bytes.
        block: Images that a worker takes from a queue at once; all of them begin again after a failure.
        run: Images of a run: a shard that is resumed checks half of them on average.
        restart: Seconds from a failure until the worker is back.
        repeats: Simulations of a case, each with its seed.
    """

    network: float = 1.25e9
    storage: float = 10e9
    operations: float = 20e3
    cores: float = 8
    memory: float = 64e9
    block: int = 10_000
    run: int = 10**6
    restart: float = 120.0
    repeats: int = 20


# name, symbol, what it is, unit, and how many of the unit one byte, second or operation is
_ASSUMED = (
    ("network", "F", "bandwidth of a worker's network", "GB/s", 1e-9),
    ("storage", "D", "bandwidth of the shared storage", "GB/s", 1e-9),
    ("operations", "O", "operations on files of the shared storage", "1/s", 1),
    ("cores", "C", "cores for decoding and encoding beside a GPU", "", 1),
    ("memory", "G", "memory of a machine", "GB", 1e-9),
    ("block", "B", "images that a worker takes from a queue at once", "", 1),
    ("run", "R", "images of one run", "", 1),
    ("restart", "t₀", "from a failure until the worker is back", "s", 1),
)
_MEASURED = (
    ("listed", "p", "list, check and hash an image, processor time of each process that has the list", "ms", 1e3),
    ("checked", "v", "check a finished image when its run is resumed, processor time", "ms", 1e3),
    ("merged", "m", "check and move an image in `fastadv merge`, processor time", "ms", 1e3),
    ("read", "b_r", "bytes read for an image, files that are read twice counted twice", "kB", 1e-3),
    ("written", "b_w", "bytes written for an image: PNG, journal, manifest, hashes", "kB", 1e-3),
    ("operations", "o", "files opened, renamed and removed, folders made and listed, for an image", "", 1),
    ("merge_operations", "", "the same in `fastadv merge`", "", 1),
    ("listed_memory", "u", "memory of a process for an image of its list", "kB", 1e-3),
    ("decoded_png", "d", "read and decode a PNG, processor time", "ms", 1e3),
    ("decoded_jpeg", "", "the same of a JPEG", "ms", 1e3),
    ("encoded", "c", "encode a PNG, processor time", "ms", 1e3),
    ("png", "", "PNG of a synthetic face, 112 × 112", "kB", 1e-3),
    ("jpeg", "", "JPEG of it, quality 95", "kB", 1e-3),
    ("adversarial", "", "PNG of its adversarial image", "kB", 1e-3),
    ("allocated", "", "what the file system gives that file", "kB", 1e-3),
    ("lfw_png", "", "PNG of a crop of LFW, 112 × 112", "kB", 1e-3),
    ("lfw_jpeg", "", "JPEG of it, quality 95", "kB", 1e-3),
    ("lfw_adversarial", "", "PNG of its adversarial image", "kB", 1e-3),
    ("journal_row", "", "row of the journal", "kB", 1e-3),
    ("manifest_row", "", "row of the finished manifest", "kB", 1e-3),
)


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One process with its device, and what it attacks.

    Attributes:
        name: Of both.
        rate: Images/s.
        source: The file of the rate, or "assumed".
        gpu: Whether decoding and encoding run on cores beside it.
    """

    name: str
    rate: float
    source: str
    gpu: bool = False


# of one H100: docs/hardware.md, "Predictions not yet checked"; with 3 steps 3 x 45 us and 0.1 ms beside them
_PREDICTED_MS = {"IR-ResNet-50, FIM-20": 2.8, "MobileFaceNet, FIM-20": 1.0, "MobileFaceNet, 3 steps": 0.235}
_COMPARED = {
    "MobileFaceNet, PGD-40": ("mobilefacenet", "pgd", "fastadv, bf16"),
    "MobileFaceNet, PGD-40, stop at success": ("mobilefacenet", "pgd", "fastadv, bf16, stop at success"),
    "MobileFaceNet, FIM-20": ("mobilefacenet", "fim", "fastadv, bf16"),
    "MobileFaceNet, FIM-20, stop at success": ("mobilefacenet", "fim", "fastadv, bf16, stop at success"),
    "IR-ResNet-50, FIM-10": ("iresnet50", "fim", "fastadv, bf16"),
}


def latest(benchmark: str) -> tuple[str, Mapping[str, Any]]:
    """Name and content of the newest result of a benchmark on a CPU."""
    file = max(_RESULTS.glob(f"{benchmark}-cpu-*.json"))
    return file.name, json.loads(file.read_text())


def devices() -> list[Worker]:
    """Workers whose rate is measured, and after them those of a GPU, on which no engine has been measured."""
    streamed, streaming = latest("streaming")
    compared, peers = latest("peers")
    rate = streaming["rows"][0]["images_per_s"]
    found = [Worker(name="2 CPU cores: synth-mobile, PGD, stop at success, bf16", rate=rate, source=streamed)]
    rates = {
        (row["network"].partition(",")[0], row["attack"], row["run"]): row["images_per_s"] for row in peers["rows"]
    }
    for name, key in _COMPARED.items():
        found.append(Worker(name=f"2 CPU cores: {name}, bf16", rate=rates[key], source=compared))
    for name, ms in _PREDICTED_MS.items():
        found.append(Worker(name=f"1 H100: {name}, bf16", rate=1e3 / ms, source="assumed", gpu=True))
    return found


def loads(worker: Worker, workers: int, costs: Mapping[str, float], host: float, assumed: Assumed) -> dict[str, float]:
    """How much of each resource so many workers ask for, as a share of what there is; above 1 it saturates.

    Args:
        worker: Each of them.
        workers: Their number.
        costs: Of an image, by the names of ``scale_costs.measured``.
        host: Seconds of the Python thread of a process, an image.
        assumed: What there is.
    """
    every, moved = workers * worker.rate, costs["read"] + costs["written"]
    found = {
        "network": worker.rate * moved / assumed.network,
        "storage": every * moved / assumed.storage,
        "files": every * costs["operations"] / assumed.operations,
        "Python": worker.rate * host,
        "list": every * costs["listed"],
        "merge": every * costs["merged"],
    }
    if worker.gpu:  # elsewhere a part of the measured rate
        found["codec"] = worker.rate * (2 * costs["decoded_png"] + costs["encoded"]) / assumed.cores
    return found


def days(rate: float, workers: int, costs: Mapping[str, float], *, shards: bool) -> float:
    """Days for all images without failures.

    In one run with a shard a worker, each process lists all images, and one merges them: ``N (1 / (r W) + p + m)``.
    With whole runs, a worker lists its own images only: ``N (1 / r + p) / W``.
    """
    if shards:
        return IMAGES * (1 / (rate * workers) + costs["listed"] + costs["merged"]) / DAY
    return IMAGES * (1 / rate + costs["listed"]) / workers / DAY


def totals(costs: Mapping[str, float], assumed: Assumed) -> Iterator[Row]:
    """What all images take."""
    kind, prefix = ("crops of LFW", "lfw_") if "lfw_png" in costs else ("synthetic faces", "")
    made, listed = costs[f"{prefix}adversarial"], costs["listed_memory"]
    for what, value, unit in (
        (f"images read, PNG, {kind}", IMAGES * costs[f"{prefix}png"] / 1e12, "TB"),
        (f"images read, JPEG, {kind}", IMAGES * costs[f"{prefix}jpeg"] / 1e12, "TB"),
        ("adversarial images, PNG", IMAGES * made / 1e12, "TB"),
        ("the same in blocks of 4 KiB", IMAGES * _BLOCK * math.ceil(made / _BLOCK) / 1e12, "TB"),
        ("journals of runs that are not finished", IMAGES * costs["journal_row"] / 1e9, "GB"),
        ("manifests", IMAGES * costs["manifest_row"] / 1e9, "GB"),
        ("memory of one process with all images in its list", IMAGES * listed / 1e9, "GB"),
        ("memory of one merge of all images: their manifests", IMAGES * costs["manifest_row"] / 1e9, "GB"),
        (f"images of a list that takes {assumed.memory / 1e9:.0f} GB", assumed.memory / listed / 1e6, "million"),
        ("one process lists all images", IMAGES * costs["listed"] / DAY, "days"),
        ("one merge of all images", IMAGES * costs["merged"] / DAY, "days"),
    ):
        yield {"part": "total", "what": what, "value": value, "unit": unit}


def model(costs: Mapping[str, float], host: float, assumed: Assumed) -> Iterator[Row]:
    """All rows that follow from the costs."""
    for names, values, source in ((_MEASURED, costs, "this run"), (_ASSUMED, vars(assumed), "assumed")):
        for name, symbol, what, unit, factor in names:
            if name in values:
                value = factor * values[name]
                yield {"part": "cost", "symbol": symbol, "what": what, "value": value, "unit": unit, "source": source}
    workers = devices()
    for worker in workers:
        one = days(worker.rate, 1, costs, shards=False)
        row = {"part": "device", "worker": worker.name, "images_per_s": worker.rate, "days": one}
        yield {**row, "for_a_week": math.ceil(one / 7), "source": worker.source}
    yield from totals(costs, assumed)
    for worker in (workers[0], *(each for each in workers if each.gpu)):
        for count in WORKERS:
            yield {
                "part": "load",
                "worker": worker.name,
                "workers": count,
                "images_per_s": count * worker.rate,
                "days": days(worker.rate, count, costs, shards=False),
                "days_in_shards": days(worker.rate, count, costs, shards=True),
                **loads(worker, count, costs, host, assumed),
            }
