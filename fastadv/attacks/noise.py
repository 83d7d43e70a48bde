"""Noise that grows until the decision flips: the attack that needs no gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv import ops
from fastadv.attacks.attack import Evaluation
from fastadv.attacks.bracket import SizedState, SmallestSize
from fastadv.attacks.budget import START_LAYER
from fastadv.attacks.state import integer
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_number

_SPREAD = {"uniform": math.sqrt(3.0), "gaussian": 1.0}  # the op's scale at a standard deviation of 1


@dataclass(frozen=True, kw_only=True)
class NoiseState(SizedState):
    """The slots of a ``Noise`` attack.

    Attributes:
        ids: ``(N,)`` int64, the keys of the draws.
        seed: ``(1,)`` int64, the run's.
    """

    ids: Tensor = integer()
    seed: Tensor


@dataclass(frozen=True, kw_only=True)
class Noise(SmallestSize[NoiseState]):
    """``clip(x + sigma z)`` with i.i.d. noise z, one draw an image, and the smallest sigma that reaches the goal.

    sigma grows by a factor until the decision flips, then ``bisections`` halve the interval. The noise of an image is
    the same at every sigma. Where the largest sigma does not reach the goal, its image is the result.

    Attributes:
        kind: ``"uniform"`` (on ``[-sqrt(3), sqrt(3))``, so that its standard deviation is 1) or ``"gaussian"``.
        first: The first sigma, pixels in [0, 1]; the search for the smallest has the fields of ``SmallestSize``.
        margin: In the unit of the goal's score: the decision must flip by as much.
        name: What reports call it.

    Raises:
        ValueError: A field is out of range.

    Source: Mehr and Schroeder, section 4; the bisection is ours.
    """

    slots = NoiseState
    needs_gradient: ClassVar[bool] = False
    kind: str
    first: float = 1 / 255
    margin: float = 0.0
    name: str = "noise"

    def __post_init__(self) -> None:
        if self.kind not in _SPREAD:
            raise ArgumentError(f"kind: expected 'uniform' or 'gaussian', got {brief(self.kind)}")
        super().__post_init__()
        check_number("margin", self.margin)

    def allocate(self, like: Tensor) -> NoiseState:
        """A state of ``len(like)`` idle slots in the layout of ``like``."""
        return NoiseState.allocate(like, seed=torch.zeros(1, dtype=torch.int64, device=like.device))

    def start(self, state: NoiseState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        """Put new images into the slots, and their first noisy version."""
        super().start(state, slots, images, ids=ids, seed=seed)
        state.ids[slots] = ids
        # a seed has 64 bits and no sign, the tensor a sign: the bits are what counts
        state.seed.fill_(seed - (1 << 64) if seed >= 1 << 63 else seed)
        self._write_trial(state)

    def tick(self, state: NoiseState, evaluation: Evaluation) -> None:
        """Take note of one sigma, and try the next."""
        state.ticks.add_(state.active)
        over = self.next_size(state, state.active, evaluation.achieved)
        self._write_trial(state)
        state.active.logical_and_(~over)

    def _write_trial(self, state: NoiseState) -> None:
        # the trial is a function of sigma alone, so a slot that does not move is written with the same bits
        ops.add_noise_(
            state.trial,
            scale=state.size.bracket.value * _SPREAD[self.kind],
            seed=state.seed,
            ids=state.ids,
            layer=START_LAYER,
            kind=self.kind,
            origin=state.origin,
            lo=self.budget.lo,
            hi=self.budget.hi,
        )
