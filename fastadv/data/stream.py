"""An ordered iterator whose items are prepared ahead by worker threads."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from fastadv.core.closing import Closing
from fastadv.core.errors import ArgumentError, Error, FileError
from fastadv.core.fields import check_least
from fastadv.core.notices import notify

Result = TypeVar("Result")
_PATIENCE = 30.0  # seconds until an item that does not come is named
_GRACE = 5.0  # seconds that a closed stream waits for items that are being computed


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An item that a stream left out, and why."""

    name: str
    reason: str


class StreamError(Error, RuntimeError):
    """An unforeseen error of a worker, with the item's name; the cause is attached."""


class Stream(Generic[Result], Closing):
    """Iterates over `function(name)` in the order of the names, computed ahead by threads.

    At most `ahead` results are being computed or waiting at any time, whatever the number of names, and
    names are drawn only as room is made. The stream closes its threads at its end, after an error, on
    Ctrl-C, when it is closed or left as a context manager, and when it is garbage collected. An item that takes 30 s
    is named in a notice; a thread whose item takes more than 5 s after the stream is closed, as where a file system
    does not answer, is left behind.

    Attributes:
        skipped: What was left out so far, in order; empty unless `on_error` is "skip".
    """

    def __init__(
        self,
        function: Callable[[str], Result],
        names: Iterable[str],
        *,
        workers: int = 2,
        ahead: int = 64,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        """Starts the threads.

        Args:
            function: Called in a worker thread.
            names: Drawn in the consumer's thread; may be endless.
            workers: Number of threads.
            ahead: Bound on the results in memory.
            on_error: What a ValueError of `function` (an unusable file) does: "raise" it at its place in
                the order, or "skip" the item and note it in `skipped`. Any other error is raised: a `FileError` as
                it is, others as a `StreamError`.

        Raises:
            ValueError: A number below 1 or an unknown `on_error`.
        """
        for argument, value in (("workers", workers), ("ahead", ahead)):
            check_least(argument, value, 1)
        if on_error not in ("raise", "skip"):
            raise ArgumentError(f"on_error: expected 'raise' or 'skip', got {on_error!r}")
        self.skipped: list[Skipped] = []
        self._function = function
        self._names = iter(names)
        self._skip = on_error == "skip"
        self._ahead = ahead
        self._waiting: deque[tuple[str, Future[Result]]] = deque()
        self._awaited: Future[Result] | None = None
        self._closed = False
        self._pool = ThreadPoolExecutor(max_workers=min(workers, ahead), thread_name_prefix="fastadv-stream")

    def __iter__(self) -> Stream[Result]:
        return self

    def __next__(self) -> Result:
        try:
            while True:
                self._fill()
                if not self._waiting:
                    raise StopIteration
                name, future = self._waiting.popleft()
                self._awaited = future
                if not future.done() and not wait([future], _PATIENCE).done:
                    notify(f"{name}: still being read after {_PATIENCE:.0f} s; Ctrl-C stops the run")
                try:
                    return future.result()
                except ValueError as error:
                    if not self._skip:
                        raise
                    self.skipped.append(Skipped(name=name, reason=str(error)))
                except (MemoryError, FileError):  # which say themselves what is to be said
                    raise
                except Exception as error:
                    raise StreamError(f"{name}: {type(error).__name__}: {error}") from error
        except BaseException:  # the end, an error, or Ctrl-C while waiting
            self.close()
            raise

    def _fill(self) -> None:
        while not self._closed and len(self._waiting) < self._ahead:
            name = next(self._names, None)
            if name is None:
                return
            self._waiting.append((name, self._pool.submit(self._function, name)))

    def close(self) -> None:
        """Drops what was prepared and ends the threads; the stream is then exhausted."""
        self._closed = True
        futures = [future for _, future in self._waiting]
        self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        started = [future for future in (*futures, self._awaited) if future is not None and not future.cancelled()]
        if not wait(started, _GRACE).not_done:
            self._pool.shutdown(wait=True)

    def __del__(self) -> None:
        # Not waiting: a destructor may run in any thread, even in a worker.
        with contextlib.suppress(AttributeError):
            self._pool.shutdown(wait=False, cancel_futures=True)
