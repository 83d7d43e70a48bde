"""Answers in batches: every item its own answer, none waiting longer than allowed, nothing lost at the end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fastadv.detection.microbatch import Closed, MicroBatcher, Overloaded


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        select = self._selector.select

        def jump(timeout=None):
            if timeout is None:
                return select()
            self.now += timeout
            return select(0)

        self._selector.select = jump

    def time(self):
        return self.now


def answered(work):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def doubled(batches):
    def run(items):
        batches.append(list(items))
        return [2 * item for item in items]

    return run


class Held:
    """Doubles items, but only after `release`; `begun` tells that it has a batch."""

    def __init__(self):
        self.batches, self._begun, self._release = [], threading.Event(), threading.Event()

    def __call__(self, items):
        self.batches.append(list(items))
        self._begun.set()
        assert self._release.wait(30)
        return [2 * item for item in items]

    async def begun(self):
        assert await asyncio.to_thread(self._begun.wait, 30)

    def release(self):
        self._release.set()


async def with_batcher(work, run, **limits):
    batcher = MicroBatcher(run, **{"max_batch": 4, "max_wait": 0.01, "max_queue": 100, **limits})
    batcher.start()
    try:
        return await work(batcher)
    finally:
        await batcher.close()
        assert not batcher.alive


def test_every_item_gets_its_own_answer():
    batches = []

    async def work(batcher):
        return await asyncio.gather(*(batcher.submit([i, 100 + i]) for i in range(25)))

    found = asyncio.run(with_batcher(work, doubled(batches)))
    assert found == [[2 * i, 2 * (100 + i)] for i in range(25)]
    assert sorted(i for b in batches for i in b) == sorted(i for k in range(25) for i in (k, 100 + k))
    assert max(len(b) for b in batches) == 4


def test_items_gather_while_the_function_is_busy():
    held = Held()

    async def work(batcher):
        first = asyncio.create_task(batcher.submit([0]))
        await held.begun()
        rest = [asyncio.create_task(batcher.submit([i])) for i in range(1, 9)]
        await asyncio.sleep(0)
        held.release()
        await asyncio.gather(first, *rest)

    asyncio.run(with_batcher(work, held))
    assert [len(b) for b in held.batches] == [1, 4, 4]


def test_a_lone_item_waits_no_longer_than_allowed():
    async def work(batcher):
        clock = asyncio.get_running_loop().time
        begin = clock()
        await batcher.submit([1])
        return clock() - begin

    assert answered(with_batcher(work, doubled([]), max_wait=0.2)) == pytest.approx(0.2, abs=1e-9)
    assert answered(with_batcher(work, doubled([]), max_wait=30, max_batch=1)) == 0.0  # full at once


def test_an_error_reaches_those_who_wait_and_nobody_else():
    def run(items):
        if 13 in items:
            raise RuntimeError("thirteen")
        return items

    async def work(batcher):
        with pytest.raises(RuntimeError, match="thirteen"):
            await batcher.submit([13])
        return await batcher.submit([14])

    assert asyncio.run(with_batcher(work, run)) == [14]


def test_a_full_queue_refuses_and_recovers():
    held = Held()

    async def work(batcher):
        first = asyncio.create_task(batcher.submit([1]))
        await held.begun()
        second = asyncio.create_task(batcher.submit([2, 3]))
        await asyncio.sleep(0)
        assert batcher.waiting == 2
        with pytest.raises(Overloaded, match="2 images are waiting; at most 3 may"):
            await batcher.submit([4, 5])
        third = asyncio.create_task(batcher.submit([6]))
        await asyncio.sleep(0)
        held.release()
        return await asyncio.gather(first, second, third)

    assert asyncio.run(with_batcher(work, held, max_queue=3)) == [[2], [4, 6], [12]]


def test_who_has_gone_is_not_computed():
    held = Held()

    async def work(batcher):
        first = asyncio.create_task(batcher.submit([0]))
        await held.begun()
        gone = asyncio.create_task(batcher.submit([1]))
        last = asyncio.create_task(batcher.submit([2]))
        await asyncio.sleep(0)
        gone.cancel()
        held.release()
        return await asyncio.gather(first, last)

    assert asyncio.run(with_batcher(work, held)) == [[0], [4]]
    assert held.batches == [[0], [2]]


def test_closing_answers_what_waits_and_takes_no_more():
    async def main():
        batcher = MicroBatcher(doubled([]), max_batch=2, max_wait=30.0, max_queue=100)
        batcher.start()
        waiting = [asyncio.create_task(batcher.submit([i])) for i in range(5)]
        await asyncio.sleep(0)
        await batcher.close()
        assert asyncio.get_running_loop().time() == 0.0  # none waited for others
        with pytest.raises(Closed):
            await batcher.submit([9])
        return await asyncio.gather(*waiting)

    assert answered(main()) == [[0], [2], [4], [6], [8]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_batch": 0}, "max_batch: expected an integer >= 1, got 0"),
        ({"max_queue": 1.5}, "max_queue: expected .*, got 1.5"),
        ({"max_wait": -1}, r"max_wait: expected seconds in \[0, 60\], got -1"),
    ],
)
def test_wrong_numbers(wrong, message):
    with pytest.raises(ValueError, match=message):
        MicroBatcher(doubled([]), **{"max_batch": 1, "max_wait": 0.0, "max_queue": 1, **wrong})
