"""One evaluation: model, goal and the gradient of every slot, in batches of a fixed shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks import Evaluation, Goal, Rows
from fastadv.models import FaceModel, fixed_batches


@contextmanager
def float32_math(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Let CUDA use TF32 for float32 products, or forbid it; restores what was set. Nothing to do on a CPU."""
    if device.type != "cuda":
        yield
        return
    wanted = "tf32" if tf32 else "ieee"
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = conv.fp32_precision = wanted
    try:
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


def outputs_of(model: FaceModel, goal: Goal, images: Tensor) -> Tensor:
    """What the goal looks at: unit embeddings ``(N, D)`` or logits ``(N, K)``."""
    return model.logits(images) if goal.output == "logits" else model(images)


def fixed_outputs(model: FaceModel, goal: Goal, images: Tensor, batch: int) -> Tensor:
    """``outputs_of`` in batches of exactly ``batch``, so that no bit depends on how many images there are."""
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return fixed_batches(lambda part: outputs_of(model, goal, part.contiguous(memory_format=layout)), images, batch)


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates the slots ``batch`` at a time into buffers that never move.

    Convolutions may give other bits in another batch shape; with a fixed one, an image's gradient does not depend
    on the number of slots.
    """

    model: FaceModel
    goal: Goal
    margin: float
    batch: int
    result: Evaluation

    @staticmethod
    def build(model: FaceModel, goal: Goal, margin: float, batch: int, trial: Tensor, width: int) -> Evaluator:
        """Allocate the buffers for the slots of ``trial`` and outputs of ``width`` numbers."""
        n, device = len(trial), trial.device
        result = Evaluation(
            loss=torch.zeros(n, device=device),
            achieved=torch.zeros(n, dtype=torch.bool, device=device),
            gradient=torch.zeros_like(trial),
            outputs=torch.zeros(n, width, device=device),
        )
        return Evaluator(model=model, goal=goal, margin=margin, batch=batch, result=result)

    def __call__(self, trial: Tensor, rows: Rows, starts: Sequence[int]) -> Evaluation:
        """Evaluate the batches that begin at the given slots; the others keep what they had."""
        into = self.result
        for start in starts:
            part = slice(start, start + self.batch)
            leaf = trial[part].detach().requires_grad_(True)
            outputs = outputs_of(self.model, self.goal, leaf)
            own = Rows(
                reference=None if rows.reference is None else rows.reference[part],
                label=None if rows.label is None else rows.label[part],
            )
            loss = self.goal.loss(outputs, own)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            with torch.no_grad():
                into.gradient[part].copy_(gradient)
                into.loss[part].copy_(loss)
                into.outputs[part].copy_(outputs)
                into.achieved[part].copy_(self.goal.achieved(outputs, own, self.margin))
        return into
