"""The loop: one for every attack. Keeps the slots full, ticks them, judges what is done, and goes on."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Collection, Iterator
from itertools import islice

import torch
from torch import Tensor

from fastadv.attacks import Goal, Recipe, seeks_smallest
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.engine.evaluate import outputs_of
from fastadv.engine.heads import check_head
from fastadv.engine.job import Entered, Finished, Job, Result, check_id, row_count, same_kind
from fastadv.engine.judge import Judge
from fastadv.engine.settings import AttackWarning, Engine, OutOfMemoryError
from fastadv.engine.slots import Slots
from fastadv.models import FaceModel, prepare
from fastadv.models.checks import check_images
from fastadv.models.modes import plain_modes


def _check_job(job: Job, goal: Goal, size: tuple[int, int]) -> None:
    image = job.image
    if not isinstance(image, Tensor):
        raise ArgumentTypeError(f"image {job.name!r} must be a torch.Tensor, got {type(image).__name__}")
    if image.dtype != torch.float32 or tuple(image.shape) != (3, *size):
        raise ArgumentError(
            f"image {job.name!r} must be float32 of shape {(3, *size)}, got {image.dtype} of shape {tuple(image.shape)}"
        )
    check_images(f"image {job.name!r}", image)
    check_id(f"id of {job.name!r}", job.id)
    if not same_kind(job.goal, goal):
        raise ArgumentError(f"goal of {job.name!r} must be like the first one, {goal!r}, got {job.goal!r}")
    rows = row_count(job.goal)
    if rows not in (None, 1):
        raise ArgumentError(f"goal of {job.name!r}: expected one row, for its image, got {rows}; use goal.row(index)")


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
        with plain_modes(model.device):
            self._begin(recipe, goal, model, jobs, seed, engine.resolve(model))

    def _begin(
        self, recipe: Recipe, goal: Goal, model: FaceModel, jobs: Iterator[Job], seed: int, engine: Engine
    ) -> None:
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
        self._build(engine.slots, engine.batch, first=True)

    def _build(self, slots: int, batch: int, *, first: bool = False) -> None:
        layout = torch.channels_last if self._engine.channels_last else torch.contiguous_format
        like = torch.zeros(batch, 3, *self._judging.input_size, device=self._judging.device).contiguous(
            memory_format=layout
        )
        with torch.no_grad():
            outputs = outputs_of(self._judging, self._goal, like[:1])
        if first and self._goal.output == "logits":
            check_head(self._judging, self._goal, outputs)
        width = outputs.shape[1]
        self._layout, self._batch, self._count = layout, batch, slots
        self._judge = Judge(
            model=self._judging,
            surrogate=self._surrogate,
            goal=self._goal,
            budget=self._attack.budget,
            margin=self._attack.margin,
            batch=batch,
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

    def _enter(self, *, all_wait: bool = False) -> None:
        """Make images ready, a batch at a time, until the slots can be filled or the input ends.

        An image that has reached its goal already is done at once where the attack looks for the smallest change,
        unless ``all_wait``. The jobs are the caller's own code: they are taken in the caller's modes.
        """
        device = self._judging.device
        while len(self._waiting) < self._slots.free and len(self._done) < self._count:
            if not self._block and not self._last:
                self._block = list(islice(self._jobs, self._engine.batch))
                self._last = len(self._block) < (self._engine.batch or 0)
            block = self._block
            if not block:
                return
            with plain_modes(device):
                for job in block:
                    _check_job(job, self._goal, self._judging.input_size)
                images = torch.stack([job.image for job in block]).to(device).contiguous(memory_format=self._layout)
                for entered in self._judge.enter(block, images):
                    if entered.reached and seeks_smallest(self._attack) and not all_wait:
                        self._done.append(Finished.unchanged(entered))
                    else:
                        self._waiting.append(entered)
            self._block = []  # only now: out of memory above tries the same block again

    def _advance(self) -> bool:
        """Fill, tick, collect. False when there is nothing left to do."""
        self._enter()
        with plain_modes(self._judging.device):
            self._slots.fill(self._waiting)
            if not self._slots.occupied:
                return bool(self._block) or not self._last
            self._slots.tick(self._engine.poll or 1)
            self._done.extend(self._slots.take_finished())
            return True

    def _judged(self, *, everything: bool) -> list[Result]:
        """Verdicts on full batches of finished images, or on all that are left."""
        ready = len(self._done) if everything else len(self._done) // self._batch * self._batch
        results = []
        with plain_modes(self._judging.device):
            for begin in range(0, ready, self._batch):
                results.extend(self._judge.verdicts(self._done[begin : min(begin + self._batch, ready)]))
        del self._done[:ready]
        return results

    def iterates(self, at: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        """After each number of steps in ``at``, the iterates ``(N, 3, H, W)`` of all images on the 8-bit grid.

        All images must fit into the slots: they run side by side from the first step to the last.
        """
        self._enter(all_wait=True)
        device = self._judging.device
        count = len(self._waiting)
        with plain_modes(device):
            self._slots.fill(self._waiting)
        last = min(max(at), self._attack.steps)
        for step in range(1, last + 1):
            with plain_modes(device):
                self._slots.tick(1)
                if step not in at:
                    continue
                trial, origin = (t[:count] for t in (self._slots.state.trial, self._slots.state.origin))
                rounded = self._attack.budget.round8(trial, origin)
            yield step, rounded

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
                with plain_modes(self._judging.device):
                    self._shrink()
                continue
            going = more
            yield from results
