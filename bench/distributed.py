"""What Ray costs: ``fastadv attack --ray local`` against the direct run, in the steady state."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.streaming import folder_of
from fastadv.data import read_manifest

_MODEL, _ATTACK = "synth-mobile", ("fim", "--steps", "10", "--goal", "impersonate", "--threshold", "0.9")
_SECONDS = 300  # of a run
_START, _END = 0.1, 0.95  # the part of the images that is timed: workers begin and end one after the other
_PARTS = 20  # of the timed images, for an interval
# what is compared: the process or processes with this, and with that many threads
_CASES = {
    "one worker of one thread, against one process with one thread": (1, 1),
    "two workers of one thread, against one process with two threads": (2, 2),
}


def _attack(faces: Path, out: Path, threads: int, *more: str, parts: int) -> list[float]:
    """Run the command, and return its images per second in so many parts one after the other, by its files' times."""
    given = ("--data", str(faces), "--model", _MODEL, "--seed", "5", "--quiet", "--out", str(out))
    command = [sys.executable, "-m", "fastadv", "attack", *_ATTACK, *given, *more]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    times = sorted(file.stat().st_mtime_ns for file in out.rglob("*.png"))
    first, last = int(_START * len(times)), int(_END * len(times)) - 1
    bounds = [first + (last - first) * k // parts for k in range(parts + 1)]
    return [1e9 * (b - a) / (times[b] - times[a]) for a, b in itertools.pairwise(bounds)]


def ratio_of(ray: Sequence[float], direct: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the harmonic means, the rates of whole runs, and its 95 % bootstrap interval over the parts."""
    both, draw = np.asarray([ray, direct]), np.random.default_rng(0)
    rows = draw.integers(both.shape[1], size=(2, 2000, both.shape[1]))
    drawn = [1 / (1 / rates[chosen]).mean(1) for rates, chosen in zip(both, rows, strict=True)]
    low, high = np.quantile(drawn[0] / drawn[1], (0.025, 0.975))
    return statistics.harmonic_mean(ray) / statistics.harmonic_mean(direct), float(low), float(high)


def _check_equal(one: Path, other: Path) -> None:
    """Insists on the same images; rows differ where numbers of threads do."""
    hashes = [{row.name: row.image_hash for row in read_manifest(run)} for run in (one, other)]
    if hashes[0] != hashes[1]:
        raise AssertionError("the runs have different images")


def run(*, quick: bool) -> list[Mapping[str, Any]]:
    """A row for each case: images/s of both, one after the other, and their ratio."""
    rows, parts = [], 2 if quick else _PARTS
    with tempfile.TemporaryDirectory() as place:
        folder, count = Path(place), 256
        folder_of(folder / "first", count)
        rate = statistics.harmonic_mean(_attack(folder / "first", folder / "rate", 1, parts=1))
        if not quick:
            count = round(_SECONDS * rate)
        folder_of(folder / "faces", count)
        for name, (workers, threads) in _CASES.items():
            outs = {kind: folder / f"{kind} {workers}" for kind in ("direct", "ray")}
            direct = _attack(folder / "faces", outs["direct"], threads, parts=parts)
            ray = _attack(folder / "faces", outs["ray"], 1, "--ray", "local", "--workers", str(workers), parts=parts)
            if threads == 1:
                _check_equal(outs["direct"], outs["ray"])
            ratio, low, high = ratio_of(ray, direct)
            rows.append(
                {
                    "case": name,
                    "images": count,
                    "direct images/s": statistics.harmonic_mean(direct),
                    "Ray images/s": statistics.harmonic_mean(ray),
                    "ratio": ratio,
                    "low": low,
                    "high": high,
                }
            )
    return rows
