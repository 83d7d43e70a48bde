"""What Ray costs: ``fastadv attack --ray local`` against the direct run, in the steady state."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.streaming import folder_of
from fastadv.data import read_manifest

_MODEL, _ATTACK = "synth-mobile", ("fim", "--steps", "10", "--goal", "impersonate", "--threshold", "0.9")
_SECONDS = 300  # of a run
_START, _END = 0.1, 0.95  # the part of the images that is timed: workers begin and end one after the other
_ROUNDS = 2
# what is compared: the process or processes with this, and with that many threads
_CASES = {
    "one worker of one thread, against one process with one thread": (1, 1),
    "two workers of one thread, against one process with two threads": (2, 2),
}


def _attack(faces: Path, out: Path, threads: int, *more: str) -> float:
    """Run the command, and return its images per second by the times of its files, without start and end."""
    given = ("--data", str(faces), "--model", _MODEL, "--seed", "5", "--quiet", "--out", str(out))
    command = [sys.executable, "-m", "fastadv", "attack", *_ATTACK, *given, *more]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    times = sorted(file.stat().st_mtime_ns for file in out.rglob("*.png"))
    first, last = int(_START * len(times)), int(_END * len(times)) - 1
    return 1e9 * (last - first) / (times[last] - times[first])


def _check_equal(one: Path, other: Path) -> None:
    """Insists on the same images; rows differ where numbers of threads do."""
    hashes = [{row.name: row.image_hash for row in read_manifest(run)} for run in (one, other)]
    if hashes[0] != hashes[1]:
        raise AssertionError("the runs have different images")


def run(*, quick: bool) -> list[Mapping[str, Any]]:
    """A row for each case: images/s of both, in turn, and the ratio of the medians."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder, count = Path(place), 256
        folder_of(folder / "first", count)
        rate = _attack(folder / "first", folder / "rate", 1)
        if not quick:
            count = round(_SECONDS * rate)
        folder_of(folder / "faces", count)
        for name, (workers, threads) in _CASES.items():
            rates: dict[str, list[float]] = {"direct": [], "ray": []}
            for k in range(1 if quick else _ROUNDS):
                outs = {kind: folder / f"{kind} {workers} {k}" for kind in rates}
                more = {"direct": (), "ray": ("--ray", "local", "--workers", str(workers))}
                for kind in rates:
                    on = threads if kind == "direct" else 1
                    rates[kind].append(_attack(folder / "faces", outs[kind], on, *more[kind]))
                if threads == 1:
                    _check_equal(outs["direct"], outs["ray"])
            direct, ray = (statistics.median(found) for found in rates.values())
            row = {"case": name, "images": count, "direct images/s": direct, "Ray images/s": ray, "ratio": ray / direct}
            rows.append({**row, "rounds": len(rates["ray"])})
    return rows
