"""One engine for many callers, whose slots stay full from one caller's images to the next caller's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue

from fastadv.attacks import Recipe
from fastadv.core.closing import Closing
from fastadv.engine import Engine, Job, Result, stream_jobs
from fastadv.models import FaceModel


@dataclass(eq=False)
class _Call:
    """The jobs of a caller, and what it gets: results, an error, or None at the end."""

    jobs: Iterator[Job]
    found: SimpleQueue[tuple[int, Result] | BaseException | None] = field(default_factory=SimpleQueue)
    flying: int = 0
    drawn: bool = False  # all jobs have been taken
    left: bool = False  # the caller is gone


class _Name(str):
    """The name of a job with its call, since two calls may have jobs of the same name."""

    call: _Call
    place: int

    @classmethod
    def of(cls, job: Job, call: _Call, place: int) -> _Name:
        made = cls(job.name)
        made.call, made.place = call, place
        return made


class SharedEngine(Closing):
    """An engine in a thread of its own, which callers in other threads share.

    Jobs are taken from one call after the other. While the last images of a call are attacked, those of the next call
    take the free slots. While no call has a job, the images in the slots are attacked to their end; then the thread
    waits.
    """

    def __init__(self, attack: Recipe, model: FaceModel, *, seed: int, engine: Engine) -> None:
        """Start the thread; the arguments are those of ``stream_jobs``."""
        self._attack, self._model, self._seed, self._engine = attack, model, seed, engine
        self._coming: SimpleQueue[_Call | None] = SimpleQueue()
        self._calls: set[_Call] = set()
        self._flying = 0
        self._lock = threading.Lock()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="fastadv-engine")
        self._thread.start()

    def results(self, jobs: Iterator[Job]) -> Iterator[tuple[int, Result]]:
        """The results of one call, in any order, each with the index of its job.

        Args:
            jobs: Drawn in the engine's thread, as they are needed.

        Raises:
            Exception: An error of ``jobs``, in this call only; an error of the engine, in all calls.
        """
        call = _Call(jobs)
        with self._lock:
            if self._failed is not None:
                raise self._failed
            self._calls.add(call)
            self._coming.put(call)
        try:
            while (found := call.found.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            call.left = True

    def close(self) -> None:
        """End the thread when the calls have ended."""
        self._coming.put(None)
        self._thread.join()

    # in the thread

    def _work(self) -> None:
        try:
            found = stream_jobs(self._attack, self._jobs(), self._model, seed=self._seed, engine=self._engine)
            for result in found:
                name = result.name
                assert isinstance(name, _Name)
                name.call.found.put((name.place, replace(result, name=str(name))))
                name.call.flying -= 1
                self._flying -= 1
                self._end(name.call)
        except BaseException as error:
            with self._lock:
                self._failed = error
                for call in self._calls:
                    call.found.put(error)

    def _jobs(self) -> Iterator[Job | None]:
        while True:
            try:
                call = self._coming.get(block=not self._flying)
            except Empty:
                yield None  # the images at hand go on
                continue
            if call is None:
                return
            try:
                for place, job in enumerate(call.jobs):
                    if call.left:
                        break
                    call.flying += 1
                    self._flying += 1
                    yield replace(job, name=_Name.of(job, call, place))
            except Exception as error:
                call.found.put(error)
            call.drawn = True
            self._end(call)

    def _end(self, call: _Call) -> None:
        """Tell a caller that it has all results."""
        if call.drawn and not call.flying:
            call.found.put(None)
            with self._lock:
                self._calls.discard(call)
