"""Inject kills and faults into every command that writes; the same command must then end with the same bytes.

    python tests/torture.py [--rounds N] [--points N] [--fault KIND] [--command NAME] [--seed S] [--json]

Each command runs on a few synthetic faces. Its processes are killed (`kill -9`) at random moments, N times a command.
Then the changes of the disk that a call makes are counted (`faults.py`). At each change, or at N of each place in the
code, a call is killed. At some of them a call is killed in the middle of a write or by a power cut, interrupted once or
twice, or runs out of room, permission or memory; its exit code and message are checked. After every fault the same
command runs to its end, and every file that it has written is compared with the file of an undisturbed call. The exit
code is 1 where something differs. `--json` writes `bench/results/torture-cpu-DATE.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from commands import CALLS, IN_PARTS, ON_PHOTOGRAPHS, Call, write_inputs
from faults import ERRORS, INTERRUPTS, KILLS, Fault
from forks import Child, Forks
from photographs import write_detector

from fastadv.core.files import is_temporary

ROOT = Path(__file__).resolve().parents[1]
NAMED = {call.name: call for call in (*CALLS, *ON_PHOTOGRAPHS, *IN_PARTS) if call.name != "evaluate"}
KINDS = (*KILLS, *ERRORS, *INTERRUPTS)
# the exit code, and what standard error says, unless the call could do without what it was refused
SAYS = {
    "full": (2, r"error: .*/.*: No space left on device"),
    "read-only": (2, r"error: .*/.*: Read-only file system"),
    "memory": (2, r"error: .*memory: expected enough"),
    **dict.fromkeys(INTERRUPTS, (130, r"stopped")),
    **dict.fromkeys(KILLS, (-signal.SIGKILL, "")),
}
_COMMIT = re.compile(rb'("commit"): "[0-9a-f]+"')  # changes when somebody commits meanwhile


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What an undisturbed call leaves.

    Attributes:
        runs: The folder that holds the call's folder.
        content: Its files.
        seconds: From its first file to its end.
        changes: Kind and place in the code of each change of the disk, in order.
        lock: The file that it locks first, below the folder; None: it locks none.
    """

    runs: Path
    content: Mapping[str, bytes]
    seconds: float
    changes: Sequence[tuple[str, str]]
    lock: str | None


@dataclass(eq=False)
class Found:
    """The result of injecting faults into one command.

    Attributes:
        kills: Random kills that hit a process before its end.
        faults: How often each kind of fault was tried.
        codes: How often the disturbed calls ended with each exit code.
        problems: Each difference: the fault, and the files that differ, or the wrong exit code and message.
    """

    kills: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Torture:
    """Runs calls, disturbs them, and compares what they leave in the end."""

    def __init__(self, forks: Forks, root: Path, *, calls: Mapping[str, Call] = NAMED, program: str = "") -> None:
        """Write the inputs below a folder.

        Args:
            forks: Starts the processes.
            root: An empty folder.
            calls: What may be run, by name.
            program: What is run in place of the command line, see `Forks.start`; then no inputs are written.
        """
        self.forks, self.calls, self._program = forks, calls, program
        self.root = root.resolve()
        self.inputs, self._trials = self.root / "inputs", self.root / "trials"
        self._trials.mkdir()
        self._wholes: dict[str, Whole] = {}
        if not program:
            write_inputs(self.inputs)
            write_detector(self.inputs / "mtcnn.safetensors")

    def start(self, name: str, runs: Path, fault: Fault | None = None) -> Child:
        """Start a call that writes below a folder."""
        words = self.calls[name].arguments(self.inputs, runs)
        return self.forks.start(*words, fault=fault, program=self._program)

    def finished(self, name: str) -> Path:
        """A folder in which a call has run to its end."""
        runs = self.trial(name)
        if self.calls[name].begun:
            shutil.rmtree(runs / name)
        for place in self.whole(name).runs.iterdir():
            if not place.is_symlink():
                (shutil.copytree if place.is_dir() else shutil.copy2)(place, runs / place.name)
        return runs

    def trial(self, name: str) -> Path:
        """A new folder for a call, with what it begins with and what it reads."""
        runs, call = Path(tempfile.mkdtemp(dir=self._trials)), self.calls[name]
        for other in (other for other in self.calls if f"{{{other}}}" in call.words):
            (runs / other).symlink_to(self.whole(other).runs / other)
        if call.begun:
            shutil.copytree(self.whole(call.begun).runs / call.begun, runs / name)
        return runs

    def whole(self, name: str) -> Whole:
        """The call that nothing disturbs; made once."""
        if name not in self._wholes:
            runs, log = self.trial(name), self._trials / f"{name}.json"
            child = self.start(name, runs, Fault(below=str(runs), log=str(log)))
            child.until(lambda: (runs / name).exists())
            begin = time.monotonic()
            done = child.wait()
            assert done.returncode == 0, f"{name}: {done.stderr}"
            seconds, changes = time.monotonic() - begin, json.loads(log.read_text())
            locks = (path.removeprefix(f"{runs}/") for _, _, path in changes if path.endswith("/.lock"))
            self._wholes[name] = Whole(
                runs=runs,
                content=self.left(name, runs),
                seconds=seconds,
                changes=[(kind, place) for kind, place, _ in changes],
                lock=next(locks, None),
            )
        return self._wholes[name]

    def left(self, name: str, runs: Path) -> dict[str, bytes]:
        """What a call has written: its folder, or files beside it."""
        files = self.calls[name].content(runs / name) if (runs / name).is_dir() else {}
        beside = (path for path in runs.iterdir() if path.is_file() and not is_temporary(path.name))
        files |= {f"../{path.name}": path.read_bytes() for path in beside}
        return {file: _COMMIT.sub(rb"\1: null", data) for file, data in files.items()}

    def finish(self, name: str, runs: Path) -> list[str]:
        """Call it again, to its end; what differs then from the undisturbed call."""
        done = self.start(name, runs).wait()
        if done.returncode:
            return [f"then exit code {done.returncode}: {done.stderr.strip()[-300:]}"]
        found, expected = self.left(name, runs), self.whole(name).content
        different = sorted(file for file in found.keys() | expected.keys() if found.get(file) != expected.get(file))
        if not different:
            shutil.rmtree(runs)
        return different

    # random moments

    def kill(self, name: str, count: int, draw: random.Random, found: Found) -> None:
        """Kill processes of a call at so many random moments, at most three times before one may end."""
        until, tries = found.kills + count, 0
        while found.kills < until and tries < 20 * count:
            runs, moments = self.trial(name), []
            for _ in range(draw.randint(1, min(3, until - found.kills))):
                moments.append(draw.uniform(0, self.whole(name).seconds))
                found.kills += self._killed(self.start(name, runs), runs / name, moments[-1], draw)
                tries += 1
            after = ", ".join(f"{moment:.3f} s" for moment in moments)
            found.problems += [f"killed after {after}: {line}" for line in self.finish(name, runs)]

    def _killed(self, child: Child, out: Path, seconds: float, draw: random.Random) -> bool:
        """Kill a process so long after its first file, or one that it has started, or all; whether it hit."""
        child.until(out.exists)
        child.code(seconds)
        started = [pid for pid in child.group() if b"spawn_main" in _command(pid)]
        whom = draw.choice(("all", child.pid, *started)) if started else "all"
        if whom == "all":
            child.signal(signal.SIGKILL)
        elif child.code() is None:
            os.kill(int(whom), signal.SIGKILL)
        code = child.wait().returncode
        child.settle()
        return code == -signal.SIGKILL or (whom in started and code == 2)

    # changes of the disk

    def points(self, name: str, most: int) -> list[int]:
        """The numbers of changes of a call, at most so many of each kind at each place in the code; 0: all."""
        places: dict[tuple[str, str], list[int]] = {}
        for number, change in enumerate(self.whole(name).changes):
            places.setdefault(change, []).append(number)
        chosen: list[int] = []
        for numbers in places.values():
            few = [numbers[(2 * k + 1) * len(numbers) // (2 * most)] for k in range(min(most, len(numbers)))]
            chosen += few if 0 < most < len(numbers) else numbers
        return sorted(chosen)

    def disturb(self, name: str, kind: str, numbers: Iterable[int], found: Found) -> None:
        """A fault at each of these changes."""
        for number in numbers:
            runs = self.trial(name)
            child = self.start(name, runs, Fault(below=str(runs), kind=kind, at=number))
            done = child.wait()
            child.settle()
            found.faults[kind] += 1
            found.codes[str(done.returncode)] += 1
            problems = [*_unexpected(kind, done)]
            if kind == "full":  # others may hit a removal; what they leave, the next call removes
                problems += [f"left {path.name}" for path in runs.rglob("*") if is_temporary(path.name)]
            change = " in ".join(self.whole(name).changes[number])
            # the hashes of inputs are kept without fsync, and taken again where they are lost: maybe of fewer images
            problems += [p for p in self.finish(name, runs) if kind != "power" or not p.endswith(".hashes.json")]
            found.problems += [f"{kind} at {number}, {change}: {p}" for p in problems]


def _unexpected(kind: str, done: CompletedProcess[str]) -> Iterable[str]:
    code, said = SAYS[kind]
    right = not done.returncode or (done.returncode == code and re.search(said, done.stderr))
    # Python prints and drops an interrupt that comes within a finaliser
    ours = "Traceback" in done.stderr and not (kind in INTERRUPTS and "Exception ignored in" in done.stderr)
    if ours or not right:
        yield f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="Kill each command that resumes N times (default: 10).")
    parser.add_argument(
        "--points", type=int, default=1, help="Inject faults at N changes of each place; 0: at all (default: 1)."
    )
    parser.add_argument(
        "--fault",
        action="append",
        choices=KINDS,
        help="Inject this kind of fault only, the first at each place; may be repeated.",
    )
    parser.add_argument(
        "--command", action="append", choices=list(NAMED), help="Run this command only; may be repeated."
    )
    parser.add_argument("--further", type=int, default=2, help="Inject N faults of each further kind (default: 2).")
    parser.add_argument("--jobs", type=int, default=2, help="Run N commands at the same time (default: 2).")
    parser.add_argument("--seed", type=int, default=0, help="Random seed of the moments (default: 0).")
    parser.add_argument("--json", action="store_true", help="Write the results to bench/results.")
    given = parser.parse_args()
    names = list(given.command or NAMED)
    left, rows, lock = deque(names), dict[str, dict[str, Any]](), threading.Lock()

    def work(_: int) -> None:
        with tempfile.TemporaryDirectory(prefix="torture-") as root, Forks() as forks:
            with lock:
                torture = Torture(forks, Path(root))
            while left:
                name = left.popleft()
                rows[name] = _row(torture, name, given)
                print({key: value for key, value in rows[name].items() if key != "words"}, flush=True)

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(work, range(given.jobs)))
    return _report([rows[name] for name in names], given)


def _report(rows: Sequence[Mapping[str, Any]], given: argparse.Namespace) -> int:
    """Print the sums, write the figures where they are wanted; the exit code."""
    total = {key: sum(row[key] for row in rows) for key in ("kills", "faults", "problems_found")}
    print(total)
    if given.json:
        _save(rows, total, given.seed)
    return bool(total["problems_found"])


def _row(torture: Torture, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The figures of a command."""
    begin, found, draw = time.monotonic(), Found(), random.Random(f"{name} {given.seed}")
    whole, points = torture.whole(name), torture.points(name, given.points)
    if NAMED[name].resumes:
        torture.kill(name, given.rounds, draw, found)
    kinds = given.fault or ["kill", *draw.sample(KINDS[1:], len(KINDS) - 1)]
    torture.disturb(name, kinds[0], points, found)
    for kind in kinds[1:]:
        torture.disturb(name, kind, draw.sample(points, min(given.further, len(points))), found)
    return {
        "command": name,
        "words": NAMED[name].words,
        "undisturbed_s": round(whole.seconds, 3),
        "changes": len(whole.changes),
        "places": len(set(whole.changes)),
        "kills": found.kills,
        "faults": sum(found.faults.values()),
        **{f"faults_{kind}": count for kind, count in found.faults.items()},
        "exit_codes": dict(found.codes),
        "problems_found": len(found.problems),
        "problems": found.problems,
        "seconds": round(time.monotonic() - begin, 1),
    }


def _save(rows: Sequence[Mapping[str, Any]], total: Mapping[str, int], seed: int) -> None:
    sys.path.append(str(ROOT))
    from bench.about import HERE, header

    about = header("cpu")
    file = HERE / "results" / f"torture-cpu-{about['date']}.json"
    file.write_text(json.dumps({**about, "seed": seed, "total": total, "commands": rows}, indent=1) + "\n")
    print(file)


if __name__ == "__main__":
    sys.exit(main())
