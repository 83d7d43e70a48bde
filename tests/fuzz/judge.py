"""What a reader does with bytes: it takes them, refuses them by one of its named errors, or that is a find."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .edits import Edit, drawn, edited

ACCEPTED, REFUSED = "accepted", "refused"
_OURS = f"{os.sep}fastadv{os.sep}"
_PROBLEMS = (ResourceWarning, RuntimeWarning)  # of the warnings; others are a library's words to a developer


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader.

    Attributes:
        name: For the command line and the results.
        seeds: Valid files.
        read: Reads bytes, with the help of a folder where it reads a path.
        errors: What it may raise.
        hostile: Files that are made to break it.
        tokens: Words of the format.
        repair: Makes checksums and lengths right again: for every second input.
        weight: The share of inputs that it gets, beside the others.
        examples: Inputs of its test.
        guided: Whether an engine that is guided by coverage helps: the reader is written in Python.
        seconds: CPU time that an input may take.
        memory: Bytes by which the process may grow in an input.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[bytes, Path], object]
    errors: tuple[type[Exception], ...]
    hostile: Callable[[], Sequence[bytes]] = tuple
    tokens: tuple[bytes, ...] = ()
    repair: Callable[[bytes], bytes] | None = None
    weight: float = 1.0
    examples: int = 60
    guided: bool = True
    seconds: float = 5.0
    memory: int = 300 << 20

    @cached_property
    def corpus(self) -> tuple[bytes, ...]:
        """The valid and the hostile files."""
        return (*self.valid, *self.hostile())

    @cached_property
    def valid(self) -> tuple[bytes, ...]:
        """The seeds."""
        return tuple(self.seeds())

    def made(self, start: int, edits: Sequence[Edit]) -> bytes:
        """An input: which file it begins with, three times in four a valid one, and what is done to it."""
        place, kind = divmod(start, 8)
        files = self.valid if kind % 4 else self.corpus
        data = edited(files[place % len(files)], edits, self.corpus, self.tokens)
        return self.repair(data) if self.repair is not None and kind >= 4 else data

    def input(self, number: int, seed: int) -> bytes:
        """The input of a number: the corpus itself first, then what is drawn; equal seeds give equal inputs."""
        if number < len(self.corpus):
            return self.corpus[number]
        chance = random.Random(f"{seed} {self.name} {number}")
        return self.made(chance.getrandbits(16), drawn(chance))


class TooSlowError(BaseException):
    """Raised by the clock in the middle of a reader."""


class _Watch:
    """Hears of programs that are started, connections, unpickling, and files that are written elsewhere."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.heard: list[str] = []
        self._added = False

    def begin(self, folder: Path) -> None:
        if not self._added:  # a hook stays for ever
            sys.addaudithook(self._hear)
            self._added = True
        self.folder, self.heard = folder, []

    def end(self) -> list[str]:
        self.folder = None
        return self.heard

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.folder is None:
            return
        if event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class"):
            self.heard.append(f"{event} {str(arguments)[:80]}")
        elif event in ("socket.connect", "socket.bind", "os.remove", "os.rename", "os.mkdir"):
            if not str(arguments[0]).startswith(str(self.folder)):
                self.heard.append(f"{event} {str(arguments)[:80]}")
        elif event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, (str, bytes)) and not os.fsdecode(path).startswith(str(self.folder)):
                self.heard.append(f"open for writing {path!r}"[:120])


_WATCH = _Watch()


def judge(target: Target, data: bytes, folder: Path) -> str:
    """``ACCEPTED``, ``REFUSED``, or what was found: an exception and its place, memory, time, a handle, code."""
    _forget_peak()
    handles, memory, begin = _handles(), _peak(), time.process_time()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _WATCH.begin(folder)
        outcome = _outcome(target, data, folder)
        heard = _WATCH.end()
        if _handles() > handles:  # what an exception holds goes with it
            gc.collect()
    spent, grown, left = time.process_time() - begin, _peak() - memory, _handles() - handles
    if outcome not in (ACCEPTED, REFUSED):
        return outcome
    if heard:
        return f"code or files: {heard[0]}"
    wrong = [each for each in told if issubclass(each.category, _PROBLEMS)]
    if wrong:
        return f"{wrong[0].category.__name__}: {str(wrong[0].message)[:60]}"
    if left > 0:
        return f"{left} file handles left open"
    if grown > target.memory:
        return f"memory: {grown >> 20} MiB more"
    return f"time: {spent:.0f} s" if spent > target.seconds else outcome


def _outcome(target: Target, data: bytes, folder: Path) -> str:
    try:
        target.read(data, folder)
    except target.errors:
        return REFUSED
    except (Exception, TooSlowError) as error:
        return f"{type(error).__name__} at {_place(error)}"
    return ACCEPTED


def _place(error: BaseException) -> str:
    """The last frame in the package, and the very last one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _OURS in frame.filename and "site-packages" not in frame.filename]
    shown = [f"{frame.filename.rpartition(_OURS)[2]}:{frame.lineno}" for frame in own[-1:]]
    return f"{' '.join(shown) or 'the target'} ({frames[-1].name if frames else ''})"


def _handles() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # not on this system
        return 0


def _forget_peak() -> None:
    """Measure the peak from now on, where the system allows it."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # not on Windows
        return 0
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024


def limit(seconds: float) -> None:
    """Interrupt a reader, in Python at least, after so much CPU time; 0 for never."""
    signal.signal(signal.SIGPROF, _interrupt)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _interrupt(*_: object) -> None:
    raise TooSlowError


def smaller(target: Target, data: bytes, found: str, folder: Path, *, tries: int = 400) -> bytes:
    """An input with the same find and without the parts that it does not need."""
    step = len(data) // 2
    while step and tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            shorter = data[:at] + data[at + step :]
            tries -= 1
            if judge(target, shorter, folder) == found:
                data = shorter
            else:
                at += step
        step //= 2
    return data
