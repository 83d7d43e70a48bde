"""The loop: one for every attack. Keeps the slots full, ticks them, judges what is done, and goes on."""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fastadv.attacks import Attack, Goal
from fastadv.engine import tune
from fastadv.engine.evaluate import outputs_of
from fastadv.engine.job import Job, Result, notices, same_kind
from fastadv.engine.judge import Entered, Finished, Judge
from fastadv.engine.slots import Slots
from fastadv.models import FaceModel, prepare

PRECISIONS = ("fp32", "tf32", "bf16", "auto")
_log = logging.getLogger("fastadv")


class AttackWarning(UserWarning):
    """Something about a run that a reader of its numbers must know."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How an attack is run. What it finds does not depend on slots, order, neighbours or restarts.

    Attributes:
        slots: Images in flight, a multiple of ``batch``; None takes ``batch``.
        batch: Images per evaluation. Convolutions may round differently in another batch shape, so results are
            bit-identical for a fixed batch, whatever the slots. None: 16 on a CPU, the slots (or 64) on CUDA.
            0: measured on the model at hand.
        precision: Of the gradient: ``"fp32"``, ``"tf32"`` (CUDA), ``"bf16"``, or ``"auto"`` for the fastest as
            measured. The verdict is always float32.
        channels_last: Run convolutions in the channels-last layout.
        capture: Record the tick as a CUDA graph; None: on CUDA, yes.
        poll: Ticks between two looks at the flags; None: 1 on a CPU, 4 on CUDA.

    Raises:
        ValueError: A field is out of range.
    """

    slots: int | None = None
    batch: int | None = None
    precision: str = "fp32"
    channels_last: bool = True
    capture: bool | None = None
    poll: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.batch is not None and (not isinstance(self.batch, int) or self.batch < 0):
            raise ValueError(f"batch must be a positive integer, 0 (measure) or None, got {self.batch!r}")
        if self.slots is not None and (not isinstance(self.slots, int) or self.slots < 1):
            raise ValueError(f"slots must be a positive integer or None, got {self.slots!r}")
        if self.slots and self.batch and self.slots % self.batch:
            raise ValueError(f"slots must be a multiple of batch = {self.batch}, got {self.slots}")
        if self.poll is not None and (not isinstance(self.poll, int) or self.poll < 1):
            raise ValueError(f"poll must be a positive integer or None, got {self.poll!r}")

    def resolve(self, model: FaceModel) -> Engine:
        """The same engine with every open choice made for this model: what a run records and repeats.

        Raises:
            ValueError: The model is in training mode, or the device cannot do what is asked.
        """
        device = model.device
        on_cuda = device.type == "cuda"
        if self.capture and not on_cuda:
            raise ValueError(f"capture needs a model on a CUDA device, got one on {device}")
        if self.precision == "tf32" and not on_cuda:
            raise ValueError(f"precision 'tf32' exists on CUDA devices only, got a model on {device}")
        batch = self.batch
        if batch is None:
            batch = (self.slots or 64) if on_cuda else min(16, self.slots or 16)
        precision = self.precision
        if precision == "auto":
            precision = tune.best_precision(model, batch=batch or 16, channels_last=self.channels_last)
        if batch == 0:
            ready = prepare(model, precision=precision, channels_last=self.channels_last)
            sizes = tune.CUDA_BATCHES if on_cuda else tune.CPU_BATCHES
            batch = tune.best_batch(ready, sizes, channels_last=self.channels_last)
        slots = self.slots or batch
        if slots % batch:
            raise ValueError(f"slots must be a multiple of batch = {batch}, got {slots}")
        return replace(
            self,
            slots=slots,
            batch=batch,
            precision=precision,
            capture=on_cuda if self.capture is None else self.capture,
            poll=self.poll or (4 if on_cuda else 1),
        )


def _check_image(job: Job, size: tuple[int, int]) -> None:
    image = job.image
    if image.dtype != torch.float32 or tuple(image.shape) != (3, *size):
        raise ValueError(
            f"image {job.name!r} must be float32 of shape {(3, *size)}, got {image.dtype} of shape {tuple(image.shape)}"
        )
    low, high = (float(v) for v in torch.aminmax(image))
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"image {job.name!r} must hold values in [0, 1], got values in [{low:g}, {high:g}]")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class _Run:
    """One run in progress: the models, the queue of images made ready, and the slots."""

    def __init__(
        self,
        attack: Attack[Any],
        goal: Goal,
        model: FaceModel,
        jobs: Iterator[Job],
        seed: int,
        engine: Engine,
    ) -> None:
        engine = engine.resolve(model)
        assert engine.slots is not None
        assert engine.batch is not None
        self._attack, self._goal, self._jobs, self._seed, self._engine = attack, goal, jobs, seed, engine
        self._judging = prepare(model, precision="fp32", channels_last=engine.channels_last)
        self._moving = self._judging
        if engine.precision != "fp32":
            self._moving = prepare(model, precision=engine.precision, channels_last=engine.channels_last)
        self._waiting: deque[Entered] = deque()
        self._done: list[Finished] = []
        self._block: list[Job] = []
        self._last = False
        self._build(engine.slots, engine.batch)

    def _build(self, slots: int, batch: int) -> None:
        layout = torch.channels_last if self._engine.channels_last else torch.contiguous_format
        like = torch.zeros(batch, 3, *self._judging.input_size, device=self._judging.device).contiguous(
            memory_format=layout
        )
        with torch.no_grad():
            width = outputs_of(self._judging, self._goal, like[:1]).shape[1]
        self._layout, self._batch, self._count = layout, batch, slots
        self._judge = Judge(model=self._judging, goal=self._goal, budget=self._attack.budget, batch=batch)
        self._slots = Slots(
            self._attack,
            self._goal,
            self._moving,
            count=slots,
            batch=batch,
            width=width,
            like=like,
            seed=self._seed,
            capture=bool(self._engine.capture),
            tf32=self._engine.precision == "tf32",
        )

    def _shrink(self) -> None:
        """Half the slots and, if need be, half the batch; what was in flight starts again."""
        if self._count == 1:
            raise torch.OutOfMemoryError("not enough memory for a single image; use a smaller model or another device")
        self._waiting.extendleft(reversed(self._slots.evict()))
        del self._slots
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        batch = max(1, self._batch // 2)
        slots = max(batch, self._count // 2 // batch * batch)
        warnings.warn(
            f"out of memory with {self._count} slots in batches of {self._batch}; "
            f"going on with {slots} in batches of {batch}",
            AttackWarning,
            stacklevel=4,
        )
        self._build(slots, batch)

    def _enter(self) -> None:
        """Make images ready, a batch at a time, until the slots can be filled or the input ends."""
        device = self._judging.device
        while len(self._waiting) < self._slots.free:
            if not self._block and not self._last:
                self._block = list(islice(self._jobs, self._engine.batch))
                self._last = len(self._block) < (self._engine.batch or 0)
            block = self._block
            if not block:
                return
            for job in block:
                _check_image(job, self._judging.input_size)
                if not same_kind(job.goal, self._goal):
                    raise ValueError(
                        f"goal of {job.name!r} must be like the first one, {self._goal!r}, got {job.goal!r}"
                    )
            images = torch.stack([job.image for job in block]).to(device).contiguous(memory_format=self._layout)
            self._waiting.extend(self._judge.enter(block, images))
            self._block = []  # only now: out of memory above tries the same block again

    def _advance(self) -> bool:
        """Fill, tick, collect. False when there is nothing left to do."""
        self._enter()
        self._slots.fill(self._waiting)
        if not self._slots.occupied:
            return False
        self._slots.tick(self._engine.poll or 1)
        self._done.extend(self._slots.take_finished())
        return True

    def _judged(self, *, everything: bool) -> list[Result]:
        """Verdicts on full batches of finished images, or on all that are left."""
        ready = len(self._done) if everything else len(self._done) // self._batch * self._batch
        results = []
        for begin in range(0, ready, self._batch):
            results.extend(self._judge.verdicts(self._done[begin : min(begin + self._batch, ready)]))
        del self._done[:ready]
        return results

    def results(self) -> Iterator[Result]:
        """The results as they come, judged in batches."""
        going = True
        while going:
            try:
                more = self._advance()
                results = self._judged(everything=not more)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._shrink()
                continue
            going = more
            yield from results


def stream_jobs(
    attack: Attack[Any], jobs: Iterable[Job], model: FaceModel, *, seed: int = 0, engine: Engine | None = None
) -> Iterator[Result]:
    """Attack a stream of jobs; results come as they are done, in no particular order.

    Memory is bounded by the slots, whatever the length of the stream. Each result is a function of
    (image, goal, attack, seed, id) and the engine's batch and precision.

    Args:
        attack: How to move.
        jobs: Images with goals of one kind.
        model: The model to attack, in evaluation mode.
        seed: Of every random number.
        engine: How to run; None takes the defaults.

    Raises:
        ValueError: An image is not float32 in [0, 1] of the model's size, goals are of different kinds, the model
            is in training mode or has no class head for a goal on logits.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed!r}")
    queue = iter(jobs)
    first = next(queue, None)
    if first is None:
        return

    def everything() -> Iterator[Job]:
        yield first
        yield from queue

    yield from _Run(attack, first.goal, model, everything(), seed, engine or Engine()).results()


@dataclass(frozen=True, kw_only=True)
class Adversarials:
    """The results of ``run``, row i for image i.

    Attributes:
        images: ``(N, 3, H, W)`` float32 on the 8-bit grid.
        success: ``(N,)`` bool, judged in float32 on the 8-bit image.
        success_float: ``(N,)`` bool, before rounding.
        ticks: ``(N,)`` int64, model evaluations consumed.
        linf: ``(N,)`` float32, largest change of a pixel, in [0, 1].
        l2: ``(N,)`` float32.
        score_before: ``(N,)`` float32, the goal's score of the clean image.
        score_after: ``(N,)`` float32, the same of the adversarial image.
        flags: For each image the names of what was noticed.
    """

    images: Tensor
    success: Tensor
    success_float: Tensor
    ticks: Tensor
    linf: Tensor
    l2: Tensor
    score_before: Tensor
    score_after: Tensor
    flags: tuple[tuple[str, ...], ...]


def run(
    attack: Attack[Any],
    goal: Goal,
    model: FaceModel,
    images: Tensor,
    *,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    engine: Engine | None = None,
) -> Adversarials:
    """Attack a batch in memory.

    Args:
        attack: How to move, for example ``attacks.fim(eps=8/255)``.
        goal: What to reach; its tensors have one row an image.
        model: The model to attack, in evaluation mode.
        images: ``(N, 3, H, W)`` float32 RGB in [0, 1].
        seed: Of every random number.
        ids: The number that keys each image's random draws; None takes 0, 1, 2, ...
        engine: How to run; None takes the defaults.

    Raises:
        ValueError: As ``stream_jobs``; also when the goal has not one row an image.

    Warns:
        AttackWarning: An image had no gradient, met non-finite ones, or had reached its goal before.
    """
    if images.dim() != 4:
        raise ValueError(f"images must have the shape (N, 3, H, W), got {tuple(images.shape)}")
    n = len(images)
    rows = _row_count(goal)
    if rows is not None and rows != n:
        raise ValueError(f"goal must have one row for each of the {n} images, got {rows}")
    if ids is not None and len(ids) != n:
        raise ValueError(f"ids must have one entry for each of the {n} images, got {len(ids)}")
    numbers = range(n) if ids is None else ids
    jobs = (Job(name=str(i), id=int(numbers[i]), image=images[i], goal=goal.row(i)) for i in range(n))
    found: dict[int, Result] = {}
    for result in stream_jobs(attack, jobs, model, seed=seed, engine=engine):
        found[int(result.name)] = result
    done = [found[i] for i in range(n)]
    for line in notices((r.name, r.flags) for r in done):
        warnings.warn(line, AttackWarning, stacklevel=2)
    return Adversarials(
        images=torch.stack([r.image for r in done]) if done else images.clone(),
        success=torch.tensor([r.success for r in done], dtype=torch.bool),
        success_float=torch.tensor([r.success_float for r in done], dtype=torch.bool),
        ticks=torch.tensor([r.ticks for r in done], dtype=torch.int64),
        linf=torch.tensor([r.linf for r in done]),
        l2=torch.tensor([r.l2 for r in done]),
        score_before=torch.tensor([r.score_before for r in done]),
        score_after=torch.tensor([r.score_after for r in done]),
        flags=tuple(r.flags for r in done),
    )


def _row_count(goal: Goal) -> int | None:
    if goal.own_reference:
        return None
    held = goal.references if goal.references is not None else goal.labels
    return None if held is None else len(held)
