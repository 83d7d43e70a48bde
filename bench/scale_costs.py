"""What one more image costs a run: processor time, bytes, operations on files, memory, and its evaluations."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bench.streaming import folder_of
from fastadv.data import LFW, SyntheticFaces, encode_png, read_image, read_manifest
from fastadv.data.manifest import PARQUET, journal_line
from fastadv.data.synthetic import write_faces

_ROOT = Path(__file__).parent.parent
_GOAL = ("--model", "synth-mobile", "--goal", "impersonate", "--threshold", "0.5", "--quiet")
_STOPPED = ("pgd", *_GOAL, "--stop-at-success", "--precision", "bf16")
_ATTACKED = 16  # images of the shard that is computed where listing is measured
_QUALITY = 95

Probed = Mapping[str, float]


def _probe(folder: Path, *arguments: str | Path, memory: bool = False) -> Probed:
    """A command in a process of its own; as ``bench.probe``."""
    result = folder / "probe.json"
    told = [sys.executable, "-m", "bench.probe", str(result), *(["--memory"] if memory else []), "--"]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}  # a thread that waits for another one takes processor time too
    done = subprocess.run([*told, *map(str, arguments)], cwd=_ROOT, env=own, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"fastadv {arguments[0]}: expected it to succeed, got {done.stderr[-400:]!r}")
    found: Probed = json.loads(result.read_text())
    return found


def _commands(folder: Path, count: int) -> dict[str, Probed]:
    """One run of ``count`` images of one step each: its commands with what each took."""
    faces, run, parts = folder / "faces", folder / "run", folder / "parts"
    folder_of(faces, count)
    attack = ("attack", "fgsm", *_GOAL, "--data", faces, "--out")
    found = {"run": _probe(folder, *attack, run), "again": _probe(folder, *attack, run)}
    for number in (1, 2):
        _probe(folder, *attack, parts, "--shard", f"{number}/2")
    return {**found, "merge": _probe(folder, "merge", parts, "--quiet")}


def _listed(folder: Path, count: int) -> dict[str, Probed]:
    """A shard of few of ``count`` images: its process lists, checks and hashes all of them."""
    folder_of(folder / "faces", count)
    attack = ("attack", "fgsm", *_GOAL, "--data", folder / "faces", "--shard", f"1/{count // _ATTACKED}", "--out")
    memory = _probe(folder, *attack, folder / "traced", memory=True)
    return {"list": {**_probe(folder, *attack, folder / "one"), "memory": memory["memory"]}}


def per_image(few: Mapping[str, Probed], many: Mapping[str, Probed], more: int) -> dict[str, dict[str, float]]:
    """What each of the ``more`` images of the larger run adds, free of what every process costs.

    Args:
        few: Commands of a run of some images.
        many: The same of a run of ``more`` images more.
        more: How many.
    """
    return {
        command: {what: (many[command][what] - value) / more for what, value in took.items()}
        for command, took in few.items()
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _seconds(calls: Sequence[Callable[[], object]]) -> float:
    """Processor time of a call, in the mean."""
    begin = time.process_time()
    for call in calls:
        call()
    return (time.process_time() - begin) / len(calls)


def _jpeg(file: Path) -> bytes:
    written = io.BytesIO()
    Image.open(file).save(written, "JPEG", quality=_QUALITY)
    return written.getvalue()


def _images(folder: Path) -> tuple[dict[str, float], Counter[int]]:
    """Sizes and times of the faces below a folder and of what an attack makes of them, and its evaluations."""
    faces, run = folder / "faces", folder / "run"
    _probe(folder, "attack", *_STOPPED, "--data", faces, "--out", run)
    files, made = (sorted(at.rglob("*.png")) for at in (faces, run / "images"))
    rows = read_manifest(run)
    jpegs = []
    for k, file in enumerate(files[:256]):
        jpegs.append(folder / f"{k}.jpg")
        jpegs[-1].write_bytes(_jpeg(file))
    pixels = [read_image(file) for file in made[:256]]
    sizes = {
        "png": _mean(file.stat().st_size for file in files),
        "jpeg": _mean(file.stat().st_size for file in jpegs),
        "adversarial": _mean(file.stat().st_size for file in made),
        "allocated": _mean(512 * os.stat(file).st_blocks for file in made),
        "journal_row": _mean(len(journal_line(row, 0)) for row in rows),
        "manifest_row": (run / PARQUET).stat().st_size / len(rows),
        "decoded_png": _seconds([lambda f=file: read_image(f) for file in files[:256]]),
        "decoded_jpeg": _seconds([lambda f=file: read_image(f) for file in jpegs]),
        "encoded": _seconds([lambda p=image: encode_png(p) for image in pixels]),
    }
    return sizes, Counter(row.ticks for row in rows)


def measured(data: Path | None, *, quick: bool) -> tuple[dict[str, float], Counter[int]]:
    """The costs of an image by name, in seconds, bytes and counts, and how many images took how many evaluations.

    Sizes are of synthetic faces; those that begin with ``lfw_`` are of crops of LFW, where there is data.
    """
    people, of_lfw = (8, 32) if quick else (128, 512)
    few, many, listed = (128, 256, 512) if quick else (1_024, 4_096, 16_384)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = SyntheticFaces(identities=people, per_identity=8, seed=5)
        write_faces(source, source.names, folder / "synthetic" / "faces")
        costs, ticks = _images(folder / "synthetic")
        if data is not None:
            lfw = LFW(data / "lfw")
            write_faces(lfw, lfw.names[:of_lfw], folder / "lfw" / "faces")
            real, _ = _images(folder / "lfw")
            costs |= {f"lfw_{name}": real[name] for name in ("png", "jpeg", "adversarial")}
        took = {}
        for work, least, most in ((_commands, few, many), (_listed, many, listed)):
            both = []
            for count in (least, most):
                at = folder / f"{work.__name__}-{count}"
                at.mkdir()
                both.append(work(at, count))
            took |= per_image(*both, most - least)
    return costs | {
        "listed": took["list"]["cpu"],
        "listed_memory": took["list"]["memory"],
        "checked": took["again"]["cpu"],
        "merged": took["merge"]["cpu"],
        "read": took["run"]["rchar"],
        "written": took["run"]["wchar"],
        "operations": took["run"]["operations"],
        "merge_operations": took["merge"]["operations"],
    }, ticks
