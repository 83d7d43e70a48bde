"""The loop: one for every attack. Keeps the slots full, ticks them, judges what is done, and goes on."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Collection, Iterator
from itertools import islice

import torch
from torch import Tensor

from fastadv.attacks import Goal, Recipe
from fastadv.core.errors import ArgumentError
from fastadv.engine.evaluate import outputs_of
from fastadv.engine.job import Entered, Finished, Job, Result, same_kind
from fastadv.engine.judge import Judge
from fastadv.engine.settings import AttackWarning, Engine, OutOfMemoryError
from fastadv.engine.slots import Slots
from fastadv.models import FaceModel, prepare


def _check_image(job: Job, size: tuple[int, int]) -> None:
    image = job.image
    if image.dtype != torch.float32 or tuple(image.shape) != (3, *size):
        raise ArgumentError(
            f"image {job.name!r} must be float32 of shape {(3, *size)}, got {image.dtype} of shape {tuple(image.shape)}"
        )
    low, high = (float(v) for v in torch.aminmax(image))
    if not (low >= 0.0 and high <= 1.0):
        raise ArgumentError(f"image {job.name!r} must hold values in [0, 1], got values in [{low:g}, {high:g}]")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Loop:
    """One run in progress: the models, the queue of images made ready, and the slots."""

    def __init__(
        self,
        recipe: Recipe,
        goal: Goal,
        model: FaceModel,
        jobs: Iterator[Job],
        seed: int,
        engine: Engine,
    ) -> None:
        engine = engine.resolve(model)
        assert engine.slots is not None
        assert engine.batch is not None
        self._attack, self._goal, self._jobs, self._seed, self._engine = recipe.attack, goal, jobs, seed, engine
        self._judging = prepare(model, precision="fp32", channels_last=engine.channels_last)
        self._surrogate = recipe.surrogate.bind(
            model, precision=engine.precision, channels_last=engine.channels_last, prepared=self._judging
        )
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
        self._judge = Judge(
            model=self._judging, surrogate=self._surrogate, goal=self._goal, budget=self._attack.budget, batch=batch
        )
        self._slots = Slots(
            self._attack,
            self._goal,
            self._surrogate,
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
            raise OutOfMemoryError("not enough memory for a single image; use a smaller model or another device")
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
                    raise ArgumentError(
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

    def iterates(self, at: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        """After each number of steps in ``at``, the iterates ``(N, 3, H, W)`` of all images on the 8-bit grid.

        All images must fit into the slots: they run side by side from the first step to the last.
        """
        self._enter()
        count = len(self._waiting)
        self._slots.fill(self._waiting)
        last = min(max(at), self._attack.steps)
        for step in range(1, last + 1):
            self._slots.tick(1)
            if step in at:
                trial, origin = (t[:count] for t in (self._slots.state.trial, self._slots.state.origin))
                yield step, self._attack.budget.round8(trial, origin)

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
