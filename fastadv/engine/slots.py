"""The slots: a batch of fixed shape in which every image runs for as long as it needs, and no longer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastadv.attacks import Attack, Goal
from fastadv.attacks.attack import most_steps
from fastadv.engine.evaluate import Evaluator, layout_of
from fastadv.engine.job import InFlight
from fastadv.engine.rows import SlotRows
from fastadv.engine.transfers import HostCopy, to_device
from fastadv.models.capture import Captured
from fastadv.models.float32_math import float32_math
from fastadv.surrogates import BoundSurrogate


class Slots:
    """N slots of one attack: filled, ticked and emptied; results do not depend on N.

    Args:
        attack: How to move.
        goal: A goal of the run's kind.
        surrogate: The networks that are differentiated.
        count: Number of slots, a multiple of ``batch``.
        batch: Images per evaluation.
        width: Length of the model's output.
        like: A batch ``(batch, 3, H, W)`` with the device and the memory layout to use.
        seed: The run's seed.
        capture: Record the tick as a CUDA graph.
        tf32: Let the ticks use TF32 products.
    """

    def __init__(
        self,
        attack: Attack[Any],
        goal: Goal,
        surrogate: BoundSurrogate,
        *,
        count: int,
        batch: int,
        width: int,
        like: Tensor,
        seed: int,
        capture: bool,
        tf32: bool,
    ) -> None:
        self.count, self.batch = count, batch
        self._attack, self._seed, self._tf32 = attack, seed, tf32
        shape = (count, *like.shape[1:])
        self.state = attack.allocate(torch.empty(shape, device=like.device, memory_format=layout_of(like)))
        trial = self.state.trial
        self._rows = SlotRows.build(attack, goal, surrogate, trial, width)
        self._evaluator = Evaluator.build(attack, goal, surrogate, seed=seed, batch=batch, trial=trial, width=width)
        self._occupant: list[InFlight | None] = [None] * count
        self._ticked = 0
        self._since = [0] * count  # what `_ticked` was when the slot was filled
        self._status: tuple[int, HostCopy] | None = None  # of the last look, and what `_ticked` was then
        # No method of its own is kept: in a cycle the buffers would outlive the slots, which go when memory runs out.
        self._recorded: Captured[None] | None = None
        if capture:
            with float32_math(like.device, tf32=tf32):
                self._recorded = Captured(self._everything)

    @property
    def occupied(self) -> bool:
        """Whether any slot holds an image."""
        return any(o is not None for o in self._occupant)

    @property
    def free(self) -> int:
        """How many slots are empty."""
        return sum(o is None for o in self._occupant)

    def fill(self, waiting: deque[InFlight]) -> None:
        """Move waiting images into empty slots, lowest slot first."""
        empty = [i for i, o in enumerate(self._occupant) if o is None][: len(waiting)]
        if not empty:
            return
        slots = to_device(torch.tensor(empty, device="cpu"), self.state.trial.device)
        # nothing is allocated in between: an image is in one of the two places if memory runs out
        new = [waiting.popleft() for _ in empty]
        for slot, entered in zip(empty, new, strict=True):
            self._occupant[slot] = entered
            self._since[slot] = self._ticked
        images = torch.stack([e.image for e in new])
        self._rows.put(slots, new, images)
        self._attack.start(self.state, slots, images, ids=self._rows.ids[slots], seed=self._seed)

    def _everything(self) -> None:
        self._run(range(0, self.count, self.batch))

    def _run(self, starts: Sequence[int]) -> None:
        self._attack.tick(self.state, self._evaluator(self.state, self._rows, starts))

    def _eager(self) -> None:
        every, held = range(0, self.count, self.batch), self._occupant
        self._run([s for s in every if any(o is not None for o in held[s : s + self.batch])])

    def tick(self, times: int) -> None:
        """Evaluate and step ``times`` times; a slot that finishes in between waits."""
        with float32_math(self.state.trial.device, tf32=self._tf32):
            for _ in range(times):
                self._eager() if self._recorded is None else self._recorded()
        self._ticked += times

    def take_finished(self, *, late: bool = False) -> list[InFlight]:
        """Empty the slots whose image is done. This is the only place where the host waits for the ticks.

        Args:
            late: Go by what was so at the last call, so that the host need not wait for the ticks since then; not where
                an image has taken as many steps as any can. A slot that is done stays as it is.
        """
        seen, self._status = self._status, (self._ticked, self._look())
        if not late or seen is None or self._may_all_be_done():
            seen = self._status
        at, rows = seen[0], seen[1].get().tolist()
        done = [i for i, o in enumerate(self._occupant) if o is not None and self._since[i] < at and not rows[i][0]]
        if not done:
            return []
        trials = self.state.trial[to_device(torch.tensor(done, device="cpu"), self.state.trial.device)]
        finished = []
        for k, slot in enumerate(done):
            entered = self._occupant[slot]
            assert entered is not None
            self._occupant[slot] = None
            _, ticks, nonfinite, zero = rows[slot]
            finished.append(replace(entered, trial=trials[k], ticks=ticks, nonfinite=nonfinite, zero=zero))
        return finished

    def _look(self) -> HostCopy:
        """Of each slot: whether it is active, its ticks, and its numbers of non-finite and zero gradient elements."""
        state = self.state
        return HostCopy(torch.cat([state.active[:, None].long(), state.ticks[:, None], state.stats], 1))

    def _may_all_be_done(self) -> bool:
        """Whether some image has taken the most steps that one can: then others probably have too."""
        held = [since for since, o in zip(self._since, self._occupant, strict=True) if o is not None]
        return bool(held) and self._ticked - min(held) >= most_steps(self._attack)

    def evict(self) -> list[InFlight]:
        """Empty every slot and return the images in slot order, to start again elsewhere."""
        left = [o for o in self._occupant if o is not None]
        self._occupant = [None] * self.count
        return left
