"""Slots and precision by measurement on the model at hand."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import torch

from fastadv.models import FaceModel, prepare
from fastadv.models.memory import is_out_of_memory

CPU_BATCHES = (8, 16, 32)
CUDA_BATCHES = (32, 64, 128, 256, 512)
_WORTH = 0.95  # a larger batch must save 5% per image to be taken


def seconds_per_image(model: FaceModel, batch: int, *, channels_last: bool = True, repeats: int = 3) -> float:
    """Median time of one forward and backward pass to the input, divided by the batch."""
    device = model.device
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, *model.image_shape, generator=generator).to(device)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    images.requires_grad_(True)
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        torch.autograd.grad(model(images).sum(), images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:]) / batch


def best_batch(model: FaceModel, batches: Sequence[int], *, channels_last: bool = True) -> int:
    """The batch with the best time per image; a larger one only where it is worth 5%, or stops at memory's end.

    Where memory does not suffice for the smallest one, it is that one: the engine then goes on with fewer.
    """
    best, best_time = batches[0], math.inf
    for batch in batches:
        try:
            spent = seconds_per_image(model, batch, channels_last=channels_last)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        if spent < best_time * _WORTH:
            best, best_time = batch, spent
    return best


def best_precision(model: FaceModel, *, batch: int, channels_last: bool = True) -> str:
    """The fastest of the precisions that the device has: bf16 and fp32, and tf32 on CUDA.

    Measured on half as many images where memory does not suffice for ``batch``, and so on.
    """
    device = model.device
    names = ["fp32", "bf16"] if device.type == "cpu" else ["fp32", "tf32", "bf16"]
    while True:
        times = {}
        try:
            for name in names:
                ready = prepare(model, precision=name, channels_last=channels_last)
                times[name] = seconds_per_image(ready, batch, channels_last=channels_last)
            return min(times, key=times.__getitem__)
        except (RuntimeError, MemoryError) as error:
            if batch == 1 or not is_out_of_memory(error):
                raise
        batch //= 2
