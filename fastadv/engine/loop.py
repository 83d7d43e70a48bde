"""The loop: one for every attack. Keeps the slots full, ticks them, judges what is done, and goes on."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from fastadv.attacks import Goal, Recipe, seeks_smallest
from fastadv.attacks.attack import depends_on_success
from fastadv.attacks.objective import as_goal
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.spent import Spent
from fastadv.engine.evaluate import outputs_of
from fastadv.engine.heads import check_further_heads, check_head, class_count
from fastadv.engine.job import InFlight, Job, Result, check_id, same_kind
from fastadv.engine.judge import Judge
from fastadv.engine.settings import AttackWarning, Engine
from fastadv.engine.slots import Slots
from fastadv.engine.transfers import stacked
from fastadv.engine.verdict import Verdict
from fastadv.models import FaceModel, prepare
from fastadv.models.checks import check_images
from fastadv.models.memory import OutOfMemoryError, is_out_of_memory
from fastadv.models.modes import plain_modes
from fastadv.models.outputs import layers_of

Made = TypeVar("Made")


def _check_job(job: Job, goal: Goal, shape: tuple[int, int, int]) -> None:
    image = job.image
    if not isinstance(image, Tensor):
        raise ArgumentTypeError(f"image {job.name!r}: expected a torch.Tensor, got {type(image).__name__}")
    if image.dtype != torch.float32 or tuple(image.shape) != shape:
        raise ArgumentError(
            f"image {job.name!r}: expected float32 of shape {shape}, got {image.dtype} of shape {tuple(image.shape)}"
            + ("; use images.float() / 255" if image.dtype == torch.uint8 else "")
        )
    check_images(f"image {job.name!r}", image)
    check_id(f"id of {job.name!r}", job.id)
    if not same_kind(job.goal, goal):
        raise ArgumentError(f"goal of {job.name!r}: expected one like the first, {brief(goal)}, got {brief(job.goal)}")
    rows = job.goal.row_count
    if rows not in (None, 1):
        raise ArgumentError(f"goal of {job.name!r}: expected one row, for its image, got {rows}; use goal.row(index)")


def _current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A recorded tick is of the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class Loop:
    """One run in progress: the models, the jobs that wait, the images made ready, and the slots."""

    def __init__(
        self,
        recipe: Recipe,
        goal: Goal,
        model: FaceModel,
        jobs: Iterator[Job | None],
        seed: int,
        engine: Engine,
        spent: Spent | None = None,
    ) -> None:
        self._spent = spent or Spent()
        try:
            with self._spent.on("preparation"), plain_modes(model.device):
                self._begin(recipe, goal, model, jobs, seed, engine.resolve(model))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"model: expected one with room for a copy of it on {model.device}, got {model.name!r}, for which "
                "there is not enough memory; use a smaller model or another device"
            ) from error

    def _begin(
        self, recipe: Recipe, goal: Goal, model: FaceModel, jobs: Iterator[Job | None], seed: int, engine: Engine
    ) -> None:
        assert engine.slots is not None
        assert engine.batch is not None
        assert engine.precision is not None
        if as_goal(goal) is not goal:
            raise ArgumentTypeError("goal: expected a goal such as Impersonate(...), got a function; use fa.Objective")
        self._attack, self._goal, self._jobs, self._seed, self._engine = recipe.attack, goal, jobs, seed, engine
        keep = layers_of(goal.output)
        self._judging = prepare(model, precision="fp32", channels_last=engine.channels_last, keep=keep)
        self._surrogate = recipe.surrogate.bind(
            model,
            precision=engine.precision,
            channels_last=engine.channels_last,
            prepared=self._judging,
            keep=keep,
            bare=depends_on_success(recipe.attack),
        )
        self._layout = torch.channels_last if engine.channels_last else torch.contiguous_format
        self._count, self._batch = engine.slots, engine.batch
        self._taken: deque[Job] = deque()
        self._last = False
        self._waiting: deque[InFlight] = deque()
        self._done: list[InFlight] = []
        self._measured: deque[Verdict] = deque()  # what memory running out does not touch
        self._slots: Slots | None = None
        self._head_checked = False

    # -- memory --

    def _fitting(self, work: Callable[[Slots, Judge], Made]) -> Made | None:
        """What ``work`` gives; None where memory ran out: then there are fewer slots, and all that was in flight waits.

        The one place where memory may run out: the slots are built (and their tick recorded), filled, ticked and judged
        in here, and after a failure built anew. It may be the caller's: what ``work`` does can be done again.
        """
        try:
            with plain_modes(self._judging.device), _current(self._judging.device):
                if self._slots is None:
                    with self._spent.on("preparation"):
                        self._build()
                assert self._slots is not None
                return work(self._slots, self._judge)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._count == 1:
                raise OutOfMemoryError(
                    "not enough memory for a single image; use a smaller model or another device"
                ) from error
        self._shrink()  # only here: while the error lives, so do the tensors of the frames that it passed
        return None

    def _build(self) -> None:
        shape = (self._batch, *self._judging.image_shape)
        like = torch.zeros(shape, device=self._judging.device).contiguous(memory_format=self._layout)
        with torch.no_grad():
            outputs = outputs_of(self._judging, self._goal, like[:1])
        if self._goal.output == "logits" and not self._head_checked:
            check_head(self._judging, self._goal, outputs)
            with torch.no_grad():
                check_further_heads(self._surrogate, self._goal, class_count(self._goal, outputs), like[:1])
        self._head_checked = True
        self._judge = Judge(
            model=self._judging,
            surrogate=self._surrogate,
            goal=self._goal,
            budget=self._attack.budget,
            margin=self._attack.margin,
            batch=self._batch,
            before_rounding=self._engine.success_float,
        )
        self._slots = Slots(
            self._attack,
            self._goal,
            self._surrogate,
            count=self._count,
            batch=self._batch,
            width=outputs.shape[1],
            like=like,
            seed=self._seed,
            capture=bool(self._engine.capture),
            tf32=self._engine.precision == "tf32",
        )

    def _shrink(self) -> None:
        """Half the slots and, if need be, half the batch.

        What was in flight starts again, from its clean image: a result is that of one batch shape, which it names.
        """
        flying = [] if self._slots is None else self._slots.evict()
        flying += [*self._done, *self._waiting]
        self._taken.extendleft(entered.job for entered in reversed(flying))
        self._slots = None
        self._done.clear()
        self._waiting.clear()
        if self._judging.device.type == "cuda":
            torch.cuda.empty_cache()
        count, size = self._count, self._batch
        self._batch = max(1, size // 2)
        self._count = max(self._batch, count // 2 // self._batch * self._batch)
        warnings.warn(
            f"out of memory with {count} slots in batches of {size}; "
            f"going on with {self._count} in batches of {self._batch}",
            AttackWarning,
            stacklevel=5,
        )

    # -- one turn --

    def _hungry(self) -> bool:
        """Whether images are wanted: slots are free, and what is done does not wait for more of it."""
        free = self._count if self._slots is None else self._slots.free
        ahead = self._batch if self._engine.overlap else 0  # made ready while the device computes
        return len(self._waiting) < free + ahead and len(self._done) < self._count

    def _take(self) -> None:
        """Take jobs. They are the caller's own code: it runs in the caller's modes, and what it raises is the caller's.

        Not within ``_fitting``: a stream that has raised has ended, and would be taken for a short one. A stream that
        has none at the moment says None: what is there goes on, and the next turn asks again.
        """
        with self._spent.on("images"):
            for job in islice(self._jobs, self._batch):
                if job is None:
                    return
                self._taken.append(job)
        self._last = len(self._taken) < self._batch

    def _enter(self, judge: Judge, *, all_wait: bool = False) -> None:
        """Make a batch of jobs ready.

        An image that has reached its goal already is done at once where the attack looks for the smallest change,
        unless ``all_wait``.
        """
        block = list(islice(self._taken, self._batch))
        for job in block:
            _check_job(job, self._goal, self._judging.image_shape)
        with self._spent.on("evaluation"):
            images = stacked([job.image.detach() for job in block], self._judging.device)
            entered = judge.enter(block, images.contiguous(memory_format=self._layout))
        for each in entered:
            self._taken.popleft()
            done = seeks_smallest(self._attack) and not all_wait and each.reached
            (self._done if done else self._waiting).append(each)

    def _step(self, slots: Slots) -> bool:
        """Fill and tick: whether an image is left in here. On CUDA the host does not wait."""
        with self._spent.on("steps"):
            slots.fill(self._waiting)
            if slots.occupied:
                slots.tick(self._engine.poll or 1)
            return slots.occupied or bool(self._taken)

    def _collect(self, slots: Slots, judge: Judge, *, everything: bool) -> bool:
        """Take what is finished, and begin to measure full batches of it, or all that is left."""
        with self._spent.on("steps"):
            if slots.occupied:
                self._done.extend(slots.take_finished(late=bool(self._engine.overlap)))
        with self._spent.on("evaluation"):
            while len(self._done) >= (1 if everything else self._batch):
                part = self._done[: self._batch]
                self._measured.append(judge.measure(part))
                del self._done[: len(part)]
        return True

    def _results(self) -> Iterator[Result]:
        """The results of what is measured."""
        while self._measured:
            with self._spent.on("evaluation"), plain_modes(self._judging.device):
                results = self._measured.popleft().results()
            for result in results:
                with self._spent.on("results"):
                    yield result

    # -- what a run gives --

    def results(self) -> Iterator[Result]:
        """The results as they come, judged in batches.

        With ``overlap`` the host works on the results of one turn while the device computes the ticks of the next.
        """
        while True:
            if self._hungry():
                if not self._taken and not self._last:
                    self._take()
                if self._taken:
                    self._fitting(lambda _, judge: self._enter(judge))
                    continue
            going = self._fitting(lambda slots, _: self._step(slots))
            if going is None:
                continue
            if self._engine.overlap:
                yield from self._results()
            collected = self._fitting(partial(self._collect, everything=not going))
            if collected and not (going and self._engine.overlap):
                yield from self._results()
            if collected and not going and self._last:
                return

    def iterates(self, at: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        """After each number of steps in ``at``, the iterates ``(N, 3, H, W)`` of all images on the 8-bit grid.

        The images run side by side from the first step to the last, in one group if the slots hold them all. Where
        memory does not suffice for that, they run group by group, and their iterates wait in the machine's memory.
        """
        jobs, left = [job for job in self._jobs if job is not None], sorted(at)
        self._last = True
        while left:
            groups = [jobs[k : k + self._count] for k in range(0, len(jobs), self._count)] or [jobs]
            if len(groups) == 1:
                for found in self._side_by_side(jobs, left):
                    yield found
                    left = left[1:]
                continue
            kept: list[list[Tensor]] = []
            for group in groups:
                kept.append([images.cpu() for _, images in self._side_by_side(group, left)])
                if len(kept[-1]) < len(left):  # memory ran out again
                    break
            else:
                for step, *parts in zip(left, *kept, strict=True):
                    yield step, torch.cat(parts).to(self._judging.device)
                return

    def _side_by_side(self, jobs: list[Job], at: list[int]) -> Iterator[tuple[int, Tensor]]:
        """The iterates of at most as many images as there are slots; it ends early where memory ran out."""

        def start(slots: Slots, judge: Judge) -> bool:
            while self._taken:
                self._enter(judge, all_wait=True)
            slots.fill(self._waiting)
            return True

        def step(slots: Slots, judge: Judge) -> Tensor:
            slots.tick(1)
            trial, origin = (t[: len(jobs)] for t in (slots.state.trial, slots.state.origin))
            return self._attack.budget.round8(trial, origin) if taken in at else trial

        if self._slots is not None:
            self._slots.evict()
        self._waiting.clear()
        self._taken = deque(jobs)
        if self._fitting(start) is None:
            return
        for taken in range(1, at[-1] + 1):
            images = self._fitting(step)
            if images is None:
                return
            if taken in at:
                yield taken, images
