"""A long run of ``fastadv attack``: where its time goes, and whether its memory grows with the number of images."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastadv.data import SyntheticFaces, to_uint8, write_png

_MODEL, _ATTACK, _THRESHOLD = "synth-mobile", "pgd", "0.5"
_DISTINCT = SyntheticFaces(identities=64, per_identity=8, seed=5)
_PER_IDENTITY = 100
_LOOK = 2.0  # seconds between two looks at the memory
_PARTS = re.compile(r"([a-zA-Z0-9 ]+?) (\d+) %")


def folder_of(at: Path, count: int) -> None:
    """``count`` images of people, links to a few hundred drawn faces."""
    at.mkdir()
    drawn = []
    for k, name in enumerate(_DISTINCT.names):
        path = at.parent / f"{k}.png"
        write_png(path, to_uint8(_DISTINCT.load(name).image))
        drawn.append(path)
    for i in range(count):
        person = at / f"{i // _PER_IDENTITY:06d}"
        if i % _PER_IDENTITY == 0:
            person.mkdir()
        os.link(drawn[i % len(drawn)], person / f"{i % _PER_IDENTITY:03d}.png")


def _resident(process: int) -> float:
    """Resident memory of a process, in MiB; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except (OSError, IndexError):
        return 0.0


def stream(*, device: str, quick: bool) -> list[Mapping[str, Any]]:
    """One row a part of the run's time, and the memory at a tenth, at half and at the end of the run."""
    count = 200 if quick else 100_000
    with tempfile.TemporaryDirectory() as folder:
        faces = Path(folder) / "faces"
        folder_of(faces, count)
        command = [
            *(sys.executable, "-m", "fastadv", "attack", _ATTACK, "--data", str(faces), "--model", _MODEL),
            *("--goal", "impersonate", "--threshold", _THRESHOLD, "--stop-at-success", "--device", device),
            *("--precision", "bf16", "--out", str(Path(folder) / "run")),
        ]
        begin, memory, output = time.perf_counter(), [], Path(folder) / "output"
        with output.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "COLUMNS": "200"})
            while process.poll() is None:
                memory.append(_resident(process.pid))
                time.sleep(_LOOK)
        seconds, said = time.perf_counter() - begin, output.read_text()
    line = next((text for text in said.splitlines() if text.lstrip().startswith("time:")), "")
    if process.returncode or not line:
        raise RuntimeError(f"fastadv attack: expected a run with a line of its time, got {said[-400:]!r}")
    memory = [m for m in memory if m]
    common = {"images": count, "seconds": seconds, "images_per_s": count / seconds}
    parts = {name.strip(): int(share) for name, share in _PARTS.findall(line.partition("of which")[2])}
    points = {"a tenth": len(memory) // 10, "half": len(memory) // 2, "the end": len(memory) - 1}
    return [
        *({**common, "what": f"share of time: {name}", "value": share, "unit": "%"} for name, share in parts.items()),
        *({**common, "what": f"memory at {at}", "value": memory[k], "unit": "MiB"} for at, k in points.items()),
    ]
