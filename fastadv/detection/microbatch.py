"""Requests that come one by one, answered in batches, none waiting longer than it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, Error

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Overloaded(Error, RuntimeError):  # noqa: N818
    """There are as many items waiting as there may be."""


class Closed(Error, RuntimeError):  # noqa: N818
    """The batcher takes no more items."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting(Generic[Item, Answer]):
    item: Item
    entered: float
    answer: asyncio.Future[Answer]


class MicroBatcher(Generic[Item, Answer]):
    """Calls a function on batches of what several tasks submit.

    A batch leaves when it is full, or when its oldest item has waited ``max_wait`` seconds; while the function is busy,
    items gather, and what has then waited long enough leaves at once. So under load batches are full, and a single item
    pays ``max_wait`` at most. The function runs in one thread of its own, one batch at a time, and the event loop stays
    free. Items whose task was cancelled are dropped before they are computed.

    Used inside one event loop: :meth:`start`, :meth:`submit` from any of its tasks, :meth:`close`.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], Sequence[Answer]], *, max_batch: int, max_wait: float, max_queue: int
    ) -> None:
        """Prepare; nothing runs before :meth:`start`.

        Args:
            run: gives one answer for each item.
            max_batch: items in a batch, at most.
            max_wait: seconds that an item may wait for others.
            max_queue: items that may wait altogether.

        Raises:
            ValueError: a number is out of its range.
        """
        for name, value in (("max_batch", max_batch), ("max_queue", max_queue)):
            if type(value) is not int or value < 1:
                raise ArgumentError(f"{name}: expected an integer >= 1, got {brief(value)}")
        if not 0 <= max_wait <= 60:
            raise ArgumentError(f"max_wait: expected seconds in [0, 60], got {max_wait}")
        self._run = run
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._waiting: deque[_Waiting[Item, Answer]] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fastadv-batch")

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether items are being answered."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin to answer; inside the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._answer_all())

    async def submit(self, items: Sequence[Item]) -> list[Answer]:
        """Answers to items, which may share batches with those of other tasks.

        Args:
            items: all are taken or none.

        Raises:
            Overloaded: the queue has no room for them.
            Closed: after :meth:`close`.
            Exception: what the function raised for a batch that one of them was in.
        """
        if self._closing:
            raise Closed("this server is stopping")
        if len(self._waiting) + len(items) > self._max_queue:
            raise Overloaded(f"{len(self._waiting)} images are waiting; at most {self._max_queue} may")
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Answer]] = [loop.create_future() for _ in items]
        now = loop.time()
        self._waiting.extend(
            _Waiting(item=item, entered=now, answer=answer) for item, answer in zip(items, answers, strict=True)
        )
        self._changed.set()
        try:
            return list(await asyncio.gather(*answers))
        except asyncio.CancelledError:  # nobody waits for these, and others may take their places at once
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.answer.cancelled())
            raise

    async def close(self) -> None:
        """Answer what is waiting, take nothing more, and stop."""
        self._closing = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _answer_all(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := await self._next():
            try:
                found = await loop.run_in_executor(self._thread, self._run, [waiting.item for waiting in batch])
            except Exception as error:  # whatever it is, those who wait are told, and the next batch is tried
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)
                continue
            for waiting, answer in zip(batch, found, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)

    async def _next(self) -> list[_Waiting[Item, Answer]]:
        """The next batch; empty when everything is answered after the close."""
        loop = asyncio.get_running_loop()
        while True:
            while self._waiting and self._waiting[0].answer.cancelled():
                self._waiting.popleft()
            if not self._waiting and self._closing:
                return []
            left = self._waiting[0].entered + self._max_wait - loop.time() if self._waiting else None
            if left is not None and (left <= 0 or self._closing or len(self._waiting) >= self._max_batch):
                batch: list[_Waiting[Item, Answer]] = []
                while self._waiting and len(batch) < self._max_batch:
                    taken = self._waiting.popleft()
                    if not taken.answer.cancelled():
                        batch.append(taken)
                return batch
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
