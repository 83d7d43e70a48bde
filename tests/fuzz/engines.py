"""Runs inputs in processes of their own: a crash, a hang or a kill ends one of them and is a find."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_COUNTS = struct.Struct("<4Q")  # the number of the input, accepted, refused, finds
_HANG = 120.0  # seconds without an answer
_FOUND = "found.jsonl"
_COVERAGE = re.compile(r"cov: (\d+)")


@dataclass(kw_only=True)
class Result:
    """What came of a reader's inputs.

    Attributes:
        target: The reader.
        engine: "mutations", or "coverage" where atheris drew the inputs.
        inputs: How many.
        accepted: How many it took.
        refused: How many it refused by a named error.
        edges: Control-flow edges of the package that were reached, where the engine counts them.
        seconds: How long it took, start included.
        finds: What was found, with the file of the first input and how many had it.
    """

    target: str
    engine: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    edges: int | None = None
    seconds: float = 0.0
    finds: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, what: str, data: bytes, out: Path) -> None:
        """Keep a find, and the shortest input of each kind."""
        known = self.finds.setdefault(what, {"count": 0, "file": "", "size": 1 << 30})
        known["count"] += 1
        if len(data) < known["size"]:
            file = out / f"{self.target.replace(' ', '-')}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"
            file.write_bytes(data)
            known.update(file=str(file), size=len(data))

    def row(self) -> dict[str, Any]:
        """Of a table."""
        return {
            "target": self.target,
            "engine": self.engine,
            "inputs": self.inputs,
            "accepted": self.accepted,
            "refused": self.refused,
            "finds": len(self.finds),
            "edges": self.edges,
            "seconds": round(self.seconds, 1),
        }


class _Shared:
    """Counts that outlive the process that writes them."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_COUNTS.size))
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _COUNTS.size)

    def __getitem__(self, place: int) -> int:
        return _COUNTS.unpack_from(self._memory)[place]

    def set(self, place: int, value: int) -> None:
        """Write one of the counts."""
        struct.pack_into("<Q", self._memory, 8 * place, value)


def mutations(target: Any, *, first: int, count: int, seed: int, out: Path) -> Result:
    """Inputs by their numbers, in children of this process, which has imported everything.

    Args:
        target: Of ``targets``.
        first: The number of the first input.
        count: How many.
        seed: Of the inputs.
        out: Where finds go.
    """
    begin, result = time.perf_counter(), Result(target=target.name, engine="mutations")
    assert target.corpus  # made once, before there are children
    with place_of_files() as place:
        shared = _Shared(place / "counts")
        shared.set(0, first)
        while shared[0] < first + count:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of threads that this process may have: a child begins its own
                child = os.fork()
            if child == 0:
                _child(target, shared, first + count, seed, place)
            ended = _ended(child, shared)
            if ended:
                result.add(ended, target.input(shared[0], seed), out)
                shared.set(0, shared[0] + 1)
        _collect(result, shared, place, out)
    result.inputs, result.seconds = count, time.perf_counter() - begin
    return result


def _child(target: Any, shared: _Shared, end: int, seed: int, place: Path) -> None:
    """Judge the inputs that are left; ends the process, after a find of memory too: its peak is only known once."""
    status = 1
    try:
        with contextlib.suppress(ImportError):
            from resource import RLIMIT_CORE, setrlimit

            setrlimit(RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say of damage
        from .judge import ACCEPTED, REFUSED, judge, limit

        judge(target, target.corpus[0], place)  # what is set up once
        for number in range(shared[0], end):
            shared.set(0, number)
            data = target.input(number, seed)
            limit(2 * target.seconds)
            found = judge(target, data, place)
            limit(0)
            _note(shared, found, data, place, ACCEPTED, REFUSED)
            shared.set(0, number + 1)
            if found.startswith("memory"):
                break
        status = 0
    finally:
        os._exit(status)


def _note(shared: _Shared, found: str, data: bytes, place: Path, accepted: str, refused: str) -> None:
    where = 1 if found == accepted else 2 if found == refused else 3
    shared.set(where, shared[where] + 1)
    if where == 3:
        with open(place / _FOUND, "a", encoding="utf-8") as file:
            file.write(json.dumps([found, data.hex()]) + "\n")


def _ended(child: int, shared: _Shared) -> str:
    """How a process ended, "" where as it should; one that gives no answer is killed."""
    seen, since = shared[0], time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return "" if code == 0 else f"crash: {'signal' if code < 0 else 'exit status'} {abs(code)}"
        if shared[0] != seen:
            seen, since = shared[0], time.monotonic()
        elif time.monotonic() - since > _HANG:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"hang: killed after {_HANG:.0f} s"
        time.sleep(0.02)


def _collect(result: Result, shared: _Shared, place: Path, out: Path) -> None:
    result.accepted, result.refused = shared[1], shared[2]
    with contextlib.suppress(FileNotFoundError):
        for line in (place / _FOUND).read_text(encoding="utf-8").splitlines():
            what, data = json.loads(line)
            result.add(what, bytes.fromhex(data), out)


@contextlib.contextmanager
def place_of_files() -> Iterator[Path]:
    """A folder in memory, where there is one."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="fastadv-fuzz-") as folder:
        yield Path(folder)


def coverage(name: str, *, count: int, seed: int, out: Path) -> Result:
    """Inputs that atheris draws, guided by the edges that they reach: in a process that imports what it instruments."""
    begin, result = time.perf_counter(), Result(target=name, engine="coverage")
    with place_of_files() as place:
        command = [sys.executable, "-m", "tests.fuzz", "--guided", name, "--inputs", str(count), "--seed", str(seed)]
        with open(place / "said", "w+b") as said:
            child = subprocess.Popen([*command, "--out", str(place)], stdout=said, stderr=said)
            code = child.wait()
            said.seek(0)
            text = said.read().decode(errors="replace")
        shared = _Shared(place / "counts")
        _collect(result, shared, place, out)
        result.inputs = sum(shared[k] for k in (1, 2, 3))
        for file in (*place.glob("crash-*"), *place.glob("timeout-*"), *place.glob("oom-*")):
            result.add(f"crash: {file.name.partition('-')[0]}", file.read_bytes(), out)
        if code and not result.finds:
            result.add(f"exit status {code}: {text[-300:]}", b"", out)
    found = _COVERAGE.findall(text)
    result.edges, result.seconds = int(found[-1]) if found else None, time.perf_counter() - begin
    return result


def guided(name: str, *, count: int, seed: int, place: Path) -> None:
    """The process of ``coverage``; does not return."""
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["fastadv"]):
        from . import targets
        from .edits import drawn, edited
        from .judge import ACCEPTED, REFUSED, judge

    target = targets.by_name(name)
    shared, corpus = _Shared(place / "counts"), place / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.corpus):
        (corpus / str(number)).write_bytes(data)

    judge(target, target.corpus[0], place)  # what is set up once

    def once(data: bytes) -> None:
        found = judge(target, data, place)
        _note(shared, found, data, place, ACCEPTED, REFUSED)

    def changed(data: bytes, most: int, number: int) -> bytes:
        chance = random.Random(number)
        made = edited(data, drawn(chance), target.corpus, target.tokens) if number % 2 else atheris.Mutate(data, most)
        made = target.repair(made) if target.repair is not None and chance.random() < 0.5 else made
        return made[:most]

    limits = [f"-runs={count}", f"-seed={seed + 1}", "-max_len=65536", "-timeout=60", "-rss_limit_mb=6000"]
    atheris.Setup([name, *limits, f"-artifact_prefix={place}/", str(corpus)], once, custom_mutator=changed)
    atheris.Fuzz()
