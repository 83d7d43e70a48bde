"""Estimate attacks on 10^9 faces: costs, which resource saturates first, and what slow and failing workers add."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cluster import Cluster, Outcome, simulate
from bench.scale_costs import measured
from bench.scale_model import DAY, IMAGES, WORKERS, Assumed, Row, latest, model


@dataclass(frozen=True, kw_only=True)
class Ticks:
    """The measured distribution of the gradient evaluations (ticks) of an image.

    Attributes:
        values: Numbers of evaluations.
        counts: Number of images for each of `values`.
        evaluation: Seconds of one evaluation of one image.
        rest: Seconds of everything else for one image.
        slots: Images that a worker attacks at a time.
        unsaved: Mean number of rows that the journal of a failing worker had not yet synchronised.
    """

    values: NDArray[np.int64]
    counts: NDArray[np.int64]
    evaluation: float
    rest: float
    slots: int = 16
    unsaved: int = 32

    @property
    def shares(self) -> NDArray[np.float64]:
        """The share of all images for each of `values`."""
        return np.asarray(self.counts / self.counts.sum(), np.float64)

    @property
    def mean(self) -> float:
        """Mean number of evaluations of an image."""
        return float(self.shares @ self.values)

    @property
    def age(self) -> float:
        """Evaluations that an image at hand has had at a random moment: half of the mean of squares over the mean."""
        return float(self.shares @ self.values**2) / (2 * self.mean)

    @property
    def at_stake(self) -> float:
        """Seconds of work that a failure of a shard loses: that of the images at hand and of unsaved rows."""
        image = self.evaluation * self.mean + self.rest
        return self.slots * self.age * self.evaluation + self.unsaved * image

    def longest(self, images: int) -> float:
        """The mean of the largest number of evaluations of so many images: what a batch that waits for its last takes.

        With the share F(t) of images of at most t evaluations: the sum over t of ``t (F(t)^n - F(t - 1)^n)``.
        """
        powers = np.cumsum(self.shares) ** images
        return float(self.values @ np.diff(powers, prepend=0))

    def work(self, draw: np.random.Generator, images: int, blocks: int) -> NDArray[np.float64]:
        """Seconds of so many blocks of so many images each, with full slots, drawn from the measured distribution."""
        evaluations = draw.multinomial(images, self.shares, size=blocks) @ self.values
        return np.asarray(self.evaluation * evaluations + self.rest * images, np.float64)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Assumed speeds and failures of the workers.

    Attributes:
        name: Its name in the tables.
        spread: Standard deviation of the logarithm of the workers' speeds.
        mtbf: Mean days between the failures of a worker.
    """

    name: str
    spread: float = 0.0
    mtbf: float = math.inf


SCENARIOS = (
    Scenario(name="equal speeds, no failures"),
    Scenario(name="speeds differ by 10 %", spread=0.1),
    Scenario(name="the same, a failure in 30 days", spread=0.1, mtbf=30),
    Scenario(name="the same, a failure a day", spread=0.1, mtbf=1),
)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and its 95 % interval, by a bootstrap of 10,000 samples."""
    found = np.asarray(values, np.float64)
    means = np.random.default_rng(0).choice(found, (10_000, len(found))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(found.mean()), float(low), float(high)


#: How workers share a job: whether from one queue, and whether a failure leaves finished images finished.
WAYS = {"shards": (False, True), "runs": (True, True), "queue": (True, False)}


def _case(ticks: Ticks, checked: float, assumed: Assumed, scenario: Scenario, way: str, workers: int) -> Cluster:
    shared, kept = WAYS[way]
    return Cluster(
        workers=workers,
        shared=shared,
        spread=scenario.spread,
        mtbf=scenario.mtbf * DAY,
        restart=assumed.restart + (checked * assumed.run / 2 if kept else 0),
        at_stake=ticks.at_stake if kept else math.inf,
    )


def simulated(
    ticks: Ticks, checked: float, assumed: Assumed, *, images: int = IMAGES, counts: Sequence[int] = WORKERS
) -> Iterator[Row]:
    """Simulate each scenario with each number of workers and each way of sharing the job.

    A worker takes a fixed part of the images (shards) or, when it is free, the next run or block of them (runs, queue).

    Args:
        ticks: Evaluations of the images.
        checked: Seconds to check a finished image when its run is resumed.
        assumed: Size of blocks and runs, time of a restart, number of repeats.
        images: Of the job.
        counts: Numbers of workers, divisors of the images.
    """
    for scenario, way, workers in product(SCENARIOS, WAYS, counts):
        case = _case(ticks, checked, assumed, scenario, way, workers)
        size = {"shards": images // workers, "runs": assumed.run, "queue": assumed.block}[way]
        found: list[Outcome] = []
        for seed in range(assumed.repeats):
            work = ticks.work(np.random.default_rng((seed, workers)), size, images // size)
            found.append(simulate(work, case, seed=seed))
        row: dict[str, Any] = {
            "part": "simulation",
            "scenario": scenario.name,
            "way": way,
            "workers": workers,
            "spread": scenario.spread,
            "mtbf_days": None if math.isinf(scenario.mtbf) else scenario.mtbf,
            "repeats": assumed.repeats,
            "failures": float(np.mean([each.failures for each in found])),
            "days": float(np.mean([each.seconds for each in found])) / DAY,
        }
        for name in ("over_ideal", "lost_share", "idle"):
            row[name], row[f"{name}_low"], row[f"{name}_high"] = interval([getattr(o, name) for o in found])
        yield row


def slots(ticks: Ticks, assumed: Assumed, images: int) -> Iterator[Row]:
    """Simulate one worker, image by image: slots that take the next image at once, batches that wait for the last."""
    for count in (16, 64, 256):
        over = []
        for seed in range(assumed.repeats):
            work = np.random.default_rng(seed).choice(ticks.values, images, p=ticks.shares)
            work = work[work > 0]  # without those that met the goal at the start
            over.append(simulate(work, Cluster(workers=1, shared=True, slots=count), seed=seed).over_ideal)
        full, low, high = interval(over)
        row = {"part": "slots", "slots": count, "images": images, "full": full, "low": low, "high": high}
        yield {**row, "batches": ticks.longest(count) / ticks.mean}


def scale(*, data: Path | None, quick: bool) -> list[Row]:
    """Measure, compute and simulate; the field ``part`` of a row names what it belongs to."""
    assumed = Assumed(repeats=2) if quick else Assumed()
    costs, counted = measured(data, quick=quick)
    file, streaming = latest("streaming")
    shares = {row["what"].removeprefix("share of time: "): row["value"] / 100 for row in streaming["rows"]}
    image = 1 / streaming["rows"][0]["images_per_s"]
    values = np.array(sorted(counted))
    counts = np.array([counted[value] for value in values.tolist()])
    step = shares["steps"] * image * counts.sum() / float(counts @ values)
    ticks = Ticks(values=values, counts=counts, evaluation=step, rest=(1 - shares["steps"]) * image)
    host = (shares["rows and files"] + shares["the rest"]) * image
    of_streaming: tuple[tuple[str, str, float, str], ...] = (
        ("τ", "an image: synth-mobile, PGD, stop at success, bf16, 2 CPU cores", 1e3 * image, "ms"),
        ("h", "of it the Python thread: rows and files, the rest", 1e3 * host, "ms"),
        ("a", "of it a gradient evaluation: steps, divided by k", 1e3 * step, "ms"),
    )
    return [
        *(
            {"part": "cost", "symbol": symbol, "what": what, "value": value, "unit": unit, "source": file}
            for symbol, what, value, unit in of_streaming
        ),
        {
            "part": "cost",
            "symbol": "k",
            "what": "gradient evaluations of an image, mean",
            "value": ticks.mean,
            "unit": "",
            "source": "this run",
        },
        *model(costs, host, assumed),
        *(
            {"part": "ticks", "evaluations": value, "images": count}
            for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        ),
        *slots(ticks, assumed, 1_000 if quick else 10_000),
        *simulated(
            ticks,
            costs["checked"],
            assumed,
            images=8 * 10**6 if quick else IMAGES,
            counts=WORKERS[:2] if quick else WORKERS,
        ),
    ]
