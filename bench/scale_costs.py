"""What one more image costs a run: processor time, bytes, operations on files, memory, and its evaluations."""

from __future__ import annotations

import io
import json
import os
import shutil
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
from fastadv.data import LFW, FaceSource, SyntheticFaces, encode_png, read_image, read_manifest, to_uint8, write_png
from fastadv.data.manifest import PARQUET, journal_line

_ROOT = Path(__file__).parent.parent
_GOAL = ("--model", "synth-mobile", "--goal", "impersonate", "--threshold", "0.5", "--quiet")
_STOPPED = ("pgd", *_GOAL, "--stop-at-success", "--precision", "bf16")
_SHARDS = 64  # of which one is computed, so that little but listing and hashing is measured
_QUALITY = 95

Probed = Mapping[str, float]


def _probe(folder: Path, *arguments: str | Path, memory: bool = False) -> Probed:
    """A command in a process of its own; as ``bench.probe``."""
    result = folder / "probe.json"
    told = [sys.executable, "-m", "bench.probe", str(result), *(["--memory"] if memory else []), "--"]
    done = subprocess.run([*told, *map(str, arguments)], cwd=_ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"fastadv {arguments[0]}: expected it to succeed, got {done.stderr[-400:]!r}")
    found: Probed = json.loads(result.read_text())
    return found


def _commands(folder: Path, count: int) -> dict[str, Probed]:
    """One run of ``count`` images of one step each: its commands with what each took."""
    faces, run = folder / "faces", folder / "run"
    folder_of(faces, count)
    attack = ("attack", "fgsm", *_GOAL, "--data", faces, "--out")
    found = {
        "run": _probe(folder, *attack, run),
        "again": _probe(folder, *attack, run),
        "list": _probe(folder, *attack, folder / "one", "--shard", f"1/{_SHARDS}"),
        "run, memory": _probe(folder, *attack, folder / "traced", memory=True),
    }
    for number in (1, 2):
        _probe(folder, *attack, folder / "parts", "--shard", f"{number}/2")
    shutil.copytree(folder / "parts", folder / "copy")
    found["merge"] = _probe(folder, "merge", folder / "parts", "--quiet")
    found["merge, memory"] = _probe(folder, "merge", folder / "copy", "--quiet", memory=True)
    return found


def per_image(few: Mapping[str, Probed], many: Mapping[str, Probed], more: int) -> dict[str, float]:
    """What each of the ``more`` images of the larger run adds, free of what every process costs.

    Args:
        few: The commands of a run of some images.
        many: Those of a run of ``more`` images more.
        more: How many.
    """

    def slope(command: str, what: str) -> float:
        return (many[command][what] - few[command][what]) / more

    # a shard of every 64th image lists and hashes all: s = p + w / 64, where the whole run is r = p + w
    listed = (_SHARDS * slope("list", "cpu") - slope("run", "cpu")) / (_SHARDS - 1)
    return {
        "listed": max(0.0, listed),
        "checked": slope("again", "cpu"),
        "merged": slope("merge", "cpu"),
        "read": slope("run", "rchar"),
        "written": slope("run", "wchar"),
        "operations": slope("run", "operations"),
        "merge_operations": slope("merge", "operations"),
        "listed_memory": slope("run, memory", "memory"),
        "merged_memory": slope("merge, memory", "memory"),
    }


def _save(source: FaceSource, names: Sequence[str], at: Path) -> None:
    for name in names:
        file = at / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_png(file, to_uint8(source.load(name).image))


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
    people = 8 if quick else 128
    few, many = (128, 256) if quick else (1_024, 4_096)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = SyntheticFaces(identities=people, per_identity=8, seed=5)
        _save(source, source.names, folder / "synthetic" / "faces")
        costs, ticks = _images(folder / "synthetic")
        if data is not None:
            lfw = LFW(data / "lfw")
            _save(lfw, lfw.names[: 32 if quick else 512], folder / "lfw" / "faces")
            real, _ = _images(folder / "lfw")
            costs |= {f"lfw_{name}": value for name, value in real.items() if name in ("png", "jpeg", "adversarial")}
        for count in (few, many):
            (folder / str(count)).mkdir()
        costs |= per_image(*(_commands(folder / str(count), count) for count in (few, many)), many - few)
    return costs, ticks
