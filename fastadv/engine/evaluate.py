"""One evaluation: surrogate, goal and the gradient of every slot, in batches of a fixed shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastadv.attacks import Attack, Evaluation, Goal, Rows, SlotState
from fastadv.attacks.goal import check_each
from fastadv.core.errors import ArgumentError
from fastadv.engine.rows import SlotRows
from fastadv.models import FaceModel, fixed_batches
from fastadv.models.outputs import output_of
from fastadv.surrogates import BoundSurrogate, Member, StepKey


def outputs_of(model: FaceModel, goal: Goal, images: Tensor) -> Tensor:
    """What the goal looks at: unit embeddings ``(N, D)``, logits ``(N, K)`` or a layer's features ``(N, D)``."""
    return output_of(model, goal.output, images)


def layout_of(images: Tensor) -> torch.memory_format:
    """The layout that images ``(N, 3, H, W)`` lie in."""
    return torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def fixed_outputs(model: FaceModel, goal: Goal, images: Tensor, batch: int) -> Tensor:
    """``outputs_of`` in batches of exactly ``batch``, so that no bit depends on how many images there are."""
    layout = layout_of(images)
    return fixed_batches(lambda part: outputs_of(model, goal, part.contiguous(memory_format=layout)), images, batch)


def _gradient(loss: Tensor, images: Tensor) -> Tensor:
    gradient = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss.sum(), images, allow_unused=True)
    if gradient is None:
        raise ArgumentError(
            "model: expected a network whose outputs have a gradient, got one without; it must not compute under "
            "torch.no_grad() or inference_mode(), use detach(), or be quantised or optimised for inference: wrap the "
            "network that was trained"
        )
    return gradient


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates the slots ``batch`` at a time into buffers that never move.

    Convolutions may give other bits in another batch shape; with a fixed one, an image's gradient does not depend
    on the number of slots.
    """

    attack: Attack[Any]
    goal: Goal
    surrogate: BoundSurrogate
    seed: int
    batch: int
    result: Evaluation

    @staticmethod
    def build(
        attack: Attack[Any],
        goal: Goal,
        surrogate: BoundSurrogate,
        *,
        seed: int,
        batch: int,
        trial: Tensor,
        width: int,
    ) -> Evaluator:
        """Allocate the buffers for the slots of ``trial`` and outputs of ``width`` numbers."""
        n, device = len(trial), trial.device
        result = Evaluation(
            loss=torch.zeros(n, device=device),
            achieved=torch.zeros(n, dtype=torch.bool, device=device),
            gradient=torch.zeros_like(trial),
            outputs=torch.zeros(n, width, device=device),
        )
        return Evaluator(attack=attack, goal=goal, surrogate=surrogate, seed=seed, batch=batch, result=result)

    def __call__(self, state: SlotState, rows: SlotRows, starts: Sequence[int]) -> Evaluation:
        """Evaluate the batches that begin at the given slots; the others keep what they had."""
        for start in starts:
            self._batch(state, rows, slice(start, start + self.batch))
        return self.result

    def _batch(self, state: SlotState, rows: SlotRows, part: slice) -> None:
        key = StepKey(seed=self.seed, ids=rows.ids[part], ticks=state.ticks[part])
        query = None if state.query is None else state.query[part]
        wanted = self.attack.needs_gradient
        leaf = rows.evaluated(state, part).requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            seen = self.surrogate.seen(leaf, key)
            # the networks are differentiated one after the other, so that one graph at a time is in memory
            point = leaf if seen is leaf else seen.detach().requires_grad_(wanted)
            total: Tensor | None = None
            for k, member in enumerate(self.surrogate.members):
                outputs = member.outputs(self.goal.output, point, key)
                own = rows.of(k, part, partial(self._embedded, member, key))
                loss = self.attack.objective(self.goal, outputs, own, query)
                loss = self._weighted(k, check_each(f"loss of {type(self.goal).__name__}", loss, self.batch))
                if wanted:
                    gradient = _gradient(loss, point)
                    total = gradient if total is None else total.add_(gradient)
                self._note(k, part, loss.detach(), outputs.detach(), own)
            if total is not None:
                if seen is not leaf:
                    (total,) = torch.autograd.grad(seen, leaf, total)
                self.result.gradient[part].copy_(self.surrogate.smoothed(total))
        if self.surrogate.bare is not None:
            with torch.no_grad():
                self._reached(part, outputs_of(self.surrogate.bare, self.goal, leaf), rows.bare(part))

    def _weighted(self, k: int, loss: Tensor) -> Tensor:
        return loss if len(self.surrogate.members) == 1 else loss * self.surrogate.shares[k]

    def _embedded(self, member: Member, key: StepKey, images: Tensor) -> Tensor:
        """Images to compare with, by the subnetwork of this evaluation."""
        # a pass of their own: in one with the attacked images, the backward pass would go over both
        with torch.no_grad():
            return member.outputs(self.goal.output, images, key)

    def _note(self, k: int, part: slice, loss: Tensor, outputs: Tensor, own: Rows) -> None:
        into = self.result
        if k == 0:
            into.loss[part].copy_(loss)
            into.outputs[part].copy_(outputs)
            if self.surrogate.bare is None:
                self._reached(part, outputs, own)
        else:
            into.loss[part].add_(loss)

    def _reached(self, part: slice, outputs: Tensor, own: Rows) -> None:
        self.result.achieved[part].copy_(self.goal.achieved(outputs, own, self.attack.margin))
