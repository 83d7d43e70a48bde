"""Whether two states of the program write the same: every command on synthetic faces, recorded and compared.

    python tests/same_outputs.py record BEFORE          # with the package of the one state on the path
    python tests/same_outputs.py record AFTER           # with that of the other
    python tests/same_outputs.py compare BEFORE AFTER   # exit code 1 and a line a difference

Images and tables of weights are compared by value, bit for bit; manifests and JSON after the renamed keys of
`renamed_keys.json`, numbers within 1e-12 of each other; pages by their words (their numbers stand in the JSON).
Commits and measured times are left out.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from safetensors import safe_open

RENAMED = Path(__file__).with_name("renamed_keys.json")
CLOSE = 1e-12
# what differs between two calls of one state: times, rates made of them, and the commit
NOISE = {"commit", "seconds", "cost", "images_per_second", "path", "out", "command_line"}


def record(root: Path) -> int:
    """Run every command into a new folder; returns the number of those that failed."""
    from commands import CALLS, write_inputs

    inputs, runs = root / "inputs", root / "runs"
    runs.mkdir(parents=True)
    write_inputs(inputs)
    calls = {call.name: call.arguments(inputs, runs) for call in CALLS}
    calls |= {f"report-{name}": ["report", str(runs / name)] for name in ("impersonate", "verify", "identify")}
    calls |= {"demo": ["demo", "--pairs", "40", "--out", str(runs / "demo"), "--json"]}
    calls |= {"export": ["detect", "export", "--model", "synth-mobile", "--detector"]}
    calls["export"] += [
        str(runs / "detect/detectors/mlp-medoid-l2-relative.safetensors"),
        "--out",
        str(root / "guard.pt2"),
    ]
    failed = 0
    for name, words in calls.items():
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "fastadv", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        said = done.stdout.replace(str(root), "ROOT")
        (runs / f"{name}.stdout.json").write_text(said if said.startswith("{") else json.dumps({"said": said}))
        print(name, done.returncode, done.stderr.strip()[-300:] if done.returncode else "", flush=True)
        failed += done.returncode != 0
    return failed


def compare(before: Path, after: Path) -> list[str]:
    """A line for every difference."""
    renamed: dict[str, str] = json.loads(RENAMED.read_text())
    first, second = (_files(root / "runs") for root in (before, after))
    found = [f"{name}: only before" for name in first.keys() - second.keys()]
    found += [f"{name}: only after" for name in second.keys() - first.keys()]
    for name in sorted(first.keys() & second.keys()):
        read = _READERS.get(first[name].suffix, Path.read_bytes)
        one, other = _renamed(read(first[name]), renamed), read(second[name])
        found += [f"{name}: {line}" for line in _differences(one, other, "")][:5]
    return found


def _files(root: Path) -> dict[str, Path]:
    return {str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file() and p.name != ".hashes.json"}


def _json(path: Path) -> Any:
    return json.loads(path.read_text().replace(str(path.parents[-3]), ""))


def _lines(path: Path) -> Any:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _rows(path: Path) -> Any:
    return pyarrow.parquet.read_table(path).to_pylist()


def _tensors(path: Path) -> Any:
    with safe_open(str(path), "pt") as file:
        about = {
            key: json.loads(value) if value[:1] in "{[" else value for key, value in (file.metadata() or {}).items()
        }
        return {"about": about, "tensors": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118


def _checkpoint(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def _arrays(path: Path) -> Any:
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def _page(path: Path) -> Any:
    text = re.sub(r"(?s)<(style|script|svg).*?</\1>", " ", path.read_text())
    words = html.unescape(re.sub(r"(?s)<[^>]+>", " ", text)).split()
    return [word for word in words if not any(letter.isdigit() for letter in word)]


def _drawing(path: Path) -> Any:
    return None  # markup


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".parquet": _rows,
    ".safetensors": _tensors,
    ".pt": _checkpoint,
    ".npz": _arrays,
    ".html": _page,
    ".svg": _drawing,
}


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(part, names) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(part, names) for part in value]
    return value


def _differences(one: Any, other: Any, where: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other} - NOISE, key=str):
            if key not in one or key not in other:
                yield f"{where}.{key}: only {'after' if key in other else 'before'}"
            else:
                yield from _differences(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{where}: {len(one)} entries, {len(other)} after"
        for place, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from _differences(a, b, f"{where}[{place}]")
    elif isinstance(one, torch.Tensor | np.ndarray) and isinstance(other, torch.Tensor | np.ndarray):
        equal = np.array_equal(np.asarray(one), np.asarray(other), equal_nan=np.asarray(one).dtype.kind == "f")
        if not equal:
            yield f"{where}: other values"
    elif isinstance(one, float) and isinstance(other, float | int):
        if not (math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE) or (math.isnan(one) and math.isnan(other))):
            yield f"{where}: {one!r}, {other!r} after"
    elif one != other:
        yield f"{where}: {str(one)[:200]!r}, {str(other)[:200]!r} after"


def main() -> int:
    """The script."""
    what, *places = sys.argv[1:]
    if what == "record":
        return record(Path(places[0]).absolute())
    differences = compare(*(Path(place).absolute() for place in places))
    print("\n".join(differences) or "the same")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
