"""The one evaluator of all runs: success in float32, on 8-bit images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.engine import THRESHOLD
from bench.peers.calls import Given
from bench.peers.tasks import Task
from fastadv.attacks.budget import Box
from fastadv.models import FaceModel
from fastadv.models.float32_math import float32_math


def rounded(made: Tensor, x: Tensor, *, outward: bool) -> Tensor:
    """8-bit images: by the nearest level, or away from the clean image, as the engine rounds smallest changes."""
    made = made.to(x).clamp(0, 1)
    return Box().round8(made, x) if outward else torch.round(made * 255) / 255


def evaluate(task: Task, model: FaceModel, given: Given, made: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Success and norm of each change: L2 where the smallest is looked for, else L-infinity in grey levels."""
    made = made.to(given.x)
    with torch.no_grad(), float32_math(model.device, tf32=False):
        parts = zip(made.split(16), given.split(16), strict=True)
        success = torch.cat([_reached(task, model, images, part) for images, part in parts])
    change = (made - given.x).flatten(1)
    norm = change.norm(dim=1) if task.by_length else 255 * change.abs().amax(1)
    return success.cpu().numpy(), norm.double().cpu().numpy()


def _reached(task: Task, model: FaceModel, images: Tensor, given: Given) -> Tensor:
    if task.output == "embedding":
        return (model(images) * model(given.target)).sum(1) >= THRESHOLD
    said = model.logits(images).argmax(1)
    return said == given.wanted if task.goal == "classify-as" else said != given.label
