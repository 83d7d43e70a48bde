"""A job on workers that differ in speed and fail, as a discrete-event simulation with SimPy."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core.errors import ArgumentError, MissingPackageError

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The workers of a job, and how they share it.

    Attributes:
        workers: Their number W.
        shared: Whether they take items from one queue; else item i belongs to worker i modulo W, as with ``--shard``.
        slots: Items that a worker has at hand, all in work; a free slot takes the next item at once.
        spread: Standard deviation of the logarithm of the workers' speeds, whose median is 1.
        mtbf: Mean time between the failures of a worker, in seconds, exponentially distributed; none fails while it is
            down or has nothing to do.
        restart: Seconds from a failure until the worker goes on.
        at_stake: Work of an item that a failure loses at most, in seconds at speed 1: what was done before is kept.

    Raises:
        ValueError: A number out of its range.
    """

    workers: int
    shared: bool
    slots: int = 1
    spread: float = 0.0
    mtbf: float = math.inf
    restart: float = 0.0
    at_stake: float = math.inf

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("slots", 1), ("spread", 0), ("restart", 0), ("at_stake", 0)):
            if not getattr(self, name) >= least:
                raise ArgumentError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not self.mtbf > 0:
            raise ArgumentError(f"mtbf: expected seconds above 0, got {self.mtbf}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What became of a job.

    Attributes:
        seconds: Until its last item was finished.
        ideal: Seconds at which the same workers finish it without failures, all at work until the end.
        work: Of all items, in seconds at speed 1.
        lost: Work that was done and begun again, the same.
        failures: Of all workers.
        finished: How often each item was finished.
        ends: When each worker finished its last item, in seconds; 0 of one that had none.
    """

    seconds: float
    ideal: float
    work: float
    lost: float
    failures: int
    finished: NDArray[np.int64]
    ends: Floats

    @property
    def over_ideal(self) -> float:
        """Time to finish over the ideal one: at least 1."""
        return self.seconds / self.ideal

    @property
    def lost_share(self) -> float:
        """Lost work of all work that was done."""
        return self.lost / (self.work + self.lost)

    @property
    def idle(self) -> float:
        """Mean share of the time for which a worker has nothing left to do while others still work: the tail."""
        return 1 - float(self.ends.mean()) / self.seconds


def simulate(work: ArrayLike, cluster: Cluster, *, seed: int) -> Outcome:
    """Let the workers finish all items.

    Args:
        work: Of each item, in seconds at speed 1.
        cluster: The workers.
        seed: Of their speeds and failures.

    Raises:
        ValueError: No items, or work that is not above 0 and finite.
        ImportError: SimPy is not installed.
    """
    items = np.asarray(work, np.float64)
    if items.ndim != 1 or not len(items) or not (np.isfinite(items).all() and (items > 0).all()):
        raise ArgumentError(f"work: expected finite seconds above 0, one an item, got an array {items.shape}")
    return _Job(items, cluster, seed).run()


class _Job:
    """The state of one simulation."""

    def __init__(self, work: Floats, cluster: Cluster, seed: int) -> None:
        try:
            import simpy
        except ImportError as error:
            raise MissingPackageError("scale: expected simpy, got no such package; pip install simpy") from error
        self._draw = np.random.default_rng(seed)
        self._cluster, self._work = cluster, work
        self._left = work.tolist()
        self._finished = [0] * len(work)
        self._speeds = np.exp(cluster.spread * self._draw.standard_normal(cluster.workers)).tolist()
        self._lost, self._failures, self._ends = 0.0, 0, [0.0] * cluster.workers
        count = cluster.workers
        one = deque(range(len(work)))
        self._queues = [one if cluster.shared else deque(range(k, len(work), count)) for k in range(count)]
        self._clock: Any = simpy.Environment()
        self._returned = self._clock.event()

    def run(self) -> Outcome:
        for worker in range(self._cluster.workers):
            self._clock.process(self._life(worker))
        self._clock.run()  # ends where nothing is left to happen
        return Outcome(
            seconds=max(self._ends),
            ideal=float(self._work.sum()) / (self._cluster.slots * sum(self._speeds)),
            work=float(self._work.sum()),
            lost=self._lost,
            failures=self._failures,
            finished=np.array(self._finished),
            ends=np.array(self._ends),
        )

    def _life(self, worker: int) -> Iterator[Any]:
        queue, speed = self._queues[worker], self._speeds[worker]
        at_hand: list[tuple[float, float, int]] = []  # when it ends, when it began, which item
        fails = self._next_failure()
        while True:
            while queue and len(at_hand) < self._cluster.slots:
                item = queue.popleft()
                heapq.heappush(at_hand, (self._clock.now + self._left[item] / speed, self._clock.now, item))
            if not at_hand:
                if not self._cluster.shared:
                    return
                yield self._returned  # of the last items at hand elsewhere one may come back
                fails = self._next_failure()
                continue
            end = at_hand[0][0]
            yield self._clock.timeout(max(0.0, min(end, fails) - self._clock.now))
            if fails < end:
                self._fail(worker, at_hand)
                yield self._clock.timeout(self._cluster.restart)
                fails = self._next_failure()
                continue
            while at_hand and at_hand[0][0] <= end:
                self._finished[heapq.heappop(at_hand)[2]] += 1
                self._ends[worker] = self._clock.now

    def _next_failure(self) -> float:
        mtbf = self._cluster.mtbf
        return math.inf if math.isinf(mtbf) else self._clock.now + self._draw.exponential(mtbf)

    def _fail(self, worker: int, at_hand: list[tuple[float, float, int]]) -> None:
        """Give the items back, the first one first, with the work that is left of each."""
        self._failures += 1
        for _, began, item in sorted(at_hand, key=lambda each: each[2], reverse=True):
            done = (self._clock.now - began) * self._speeds[worker]
            lost = min(done, self._cluster.at_stake)
            self._lost += lost
            self._left[item] -= done - lost
            self._queues[worker].appendleft(item)
        at_hand.clear()
        self._returned.succeed()
        self._returned = self._clock.event()
