"""Processes of the command line that start in milliseconds: forks of one that has imported everything.

    with Forks() as forks:
        done = forks.run("verify", "--data", faces, "--model", "synth-mobile")

The process that is forked imports the package and computes nothing, so that it has no threads of its own. A child runs
the command line to its end as a process of its own does. With one thread (`OMP_NUM_THREADS=1`) only. Linux only.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from faults import Fault, install

POSSIBLE = hasattr(os, "fork") and Path("/proc/self/fd").is_dir()
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
# what starts threads when it is imported, or is no part of what the commands compute with
APART = ("fastadv.__main__", "fastadv.kernels", "fastadv._C", "fastadv.testing")
BESIDE = (
    "onnx",
    "pyarrow.parquet",
    "safetensors.torch",
    "rich.progress",
    "rich.table",
    "jinja2",
    "matplotlib.backends.backend_svg",
)


@dataclass(eq=False)
class Child:
    """A process of the command line, at the head of a group of its own.

    Attributes:
        pid: Its number.
        printed: Where its standard output goes; its standard error goes beside it.
        ended: The exit code, once it is known.
    """

    forks: Forks
    pid: int
    printed: Path
    ended: int | None = None

    @property
    def said(self) -> str:
        """Standard error so far."""
        return self.printed.with_suffix(".err").read_text(errors="replace")

    def code(self, seconds: float = 0.0) -> int | None:
        """The exit code, or the negative signal, after so many seconds at most; None while it runs."""
        if self.ended is None:
            self.ended = self.forks.ask({"wait": self.pid, "seconds": seconds})
        return self.ended

    def wait(self, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: It has not come; the process is killed.
        """
        code = self.code(seconds)
        if code is None:
            self.signal(signal.SIGKILL)
            self.code(seconds)
            raise subprocess.TimeoutExpired(self.said, seconds)
        return subprocess.CompletedProcess([], code, self.printed.read_text(errors="replace"), self.said)

    def signal(self, number: int) -> None:
        """Send a signal to the process and to those that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def settle(self, seconds: float = 60) -> None:
        """Wait for the processes that it has started, which end a moment after it."""
        end = time.monotonic() + seconds
        while self.group() and time.monotonic() < end:
            time.sleep(0.002)

    def group(self) -> list[int]:
        """The processes of its group that have not ended."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = stat.read_text().rpartition(") ")[2].split()[:3]
                found += [int(stat.parent.name)] if int(group) == self.pid and state != "Z" else []
        return found

    def until(self, happened: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until something has happened, or the process has ended.

        Raises:
            TimeoutError: Neither has.
        """
        end = time.monotonic() + seconds
        while not happened() and self.code() is None:
            if time.monotonic() > end:
                raise TimeoutError(self.said)
            time.sleep(0.002)


class Forks:
    """Starts processes of the command line."""

    def __init__(self, **environment: str) -> None:
        """Import everything, which takes some seconds."""
        self._folder = tempfile.TemporaryDirectory(prefix="forks-")
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT, **environment},
            start_new_session=True,
        )

    def ask(self, request: dict[str, Any]) -> Any:
        """What the process that is forked answers."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that is forked has ended: {self._server.poll()}")
        return json.loads(answer)

    def start(self, *words: object, fault: Fault | None = None, program: str = "") -> Child:
        """Start the command line with these words, and a fault to come; or the function `main` of a file."""
        self._count += 1
        printed = Path(self._folder.name) / f"{self._count}.out"
        printed.with_suffix(".err").touch()
        request = {"words": list(map(str, words)), "printed": str(printed), "cwd": os.getcwd(), "program": program}
        pid = self.ask(request if fault is None else {**request, "fault": asdict(fault)})
        return Child(self, pid, printed)

    def run(self, *words: object, fault: Fault | None = None, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """The command line with these words, when it has ended."""
        return self.start(*words, fault=fault).wait(seconds)

    def close(self) -> None:
        """End."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()
        self._folder.cleanup()

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# in the process that is forked


def _serve() -> None:
    _import_everything()
    gc.collect()
    gc.freeze()  # the children's collections leave it alone
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        answer = _ended(request["wait"], request["seconds"]) if "wait" in request else os.fork()
        if answer == 0 and "wait" not in request:
            _become(request, answers)
            return
        if "wait" not in request:
            with contextlib.suppress(OSError):  # whichever of the two is first
                os.setpgid(answer, answer)
        print(json.dumps(answer), file=answers, flush=True)


def _import_everything() -> None:
    import importlib
    import pkgutil
    import warnings

    import fastadv.cli

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = [str(Path(fastadv.cli.__file__).parents[1])]  # the path of an editable installation has the checkout too
        found = pkgutil.walk_packages(own, "fastadv.", onerror=lambda name: None)
        for name in (*(module.name for module in found if not module.name.startswith(APART)), *BESIDE):
            with contextlib.suppress(ImportError):  # of an optional package
                importlib.import_module(name)


def _ended(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def _become(request: dict[str, Any], answers: IO[str]) -> None:
    """Be a process of the command line."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs behind it without
    answers.close()
    _turn(0, os.devnull, os.O_RDONLY)
    _turn(1, request["printed"], os.O_WRONLY | os.O_CREAT)
    _turn(2, str(Path(request["printed"]).with_suffix(".err")), os.O_WRONLY | os.O_CREAT)
    os.chdir(request["cwd"])
    sys.argv = ["fastadv", *request["words"]]
    if "fault" in request:
        install(Fault(**request["fault"]))
    if request["program"]:
        runpy.run_path(request["program"])["main"]()
    else:
        from fastadv.cli import main

        main()


def _turn(number: int, path: str, flags: int) -> None:
    descriptor = os.open(path, flags, 0o644)
    os.dup2(descriptor, number)
    os.close(descriptor)


if __name__ == "__main__":
    _serve()
