"""Threads in which PyTorch computes with one thread each: small operations side by side, and the bits of one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Given = TypeVar("Given")
Made = TypeVar("Made")


class OneThreaded:
    """Calls a function for many things at a time, each call with one thread of PyTorch.

    Two threads of PyTorch gain little on an operation of some microseconds, and change its rounding. The number of
    threads of every other thread of the process stays what it was.

    Attributes:
        count: How many calls are made at a time.
    """

    def __init__(self, count: int) -> None:
        """Starts the threads.

        Args:
            count: How many; with one, calls are made in the caller's thread, which must have one thread of PyTorch.
        """
        self.count = count
        self._pool, self._callers = (_started(count) if count > 1 else None for _ in range(2))

    def map(self, function: Callable[[Given], Made], items: Iterable[Given]) -> list[Made]:
        """`function` of each item, in order; the first error is raised."""
        return list(map(function, items) if self._pool is None else self._pool.map(function, items))

    def call(self, function: Callable[[Given], Made], item: Given) -> Made:
        """`function` of one item, which may itself call `map`.

        A thread of PyTorch's that has helped the caller spins for a while, on a core that is needed then.
        """
        return function(item) if self._callers is None else self._callers.submit(function, item).result()


def _started(count: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(count, thread_name_prefix="fastadv-torch")
    before, started = torch.get_num_threads(), threading.Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # now, not at the first operation, it takes the default, which undoes what was set
        torch.set_num_threads(1)  # of this thread, and the default of threads to come
        started.wait()

    for _ in range(count):
        pool.submit(begin)
    started.wait()
    torch.set_num_threads(before)
    return pool
