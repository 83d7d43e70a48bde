"""How CUDA multiplies float32 numbers, and whether it repeats its bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_math(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Let CUDA use TF32 for float32 products, or forbid it, and only algorithms that repeat their bits.

    Without the latter, cuDNN may add up the gradient of a convolution with atomics, in an order that changes from run
    to run, or choose its algorithms by their speed at the time (``benchmark``). What was set is restored. Nothing to do
    on a CPU.

    Args:
        device: where the products are made.
        tf32: whether TF32 is allowed.
    """
    if device.type != "cuda":
        yield
        return
    wanted = "tf32" if tf32 else "ieee"
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.deterministic, cudnn.benchmark)  # type: ignore[attr-defined]
    matmul.fp32_precision = cudnn.conv.fp32_precision = wanted  # type: ignore[attr-defined]
    cudnn.deterministic = True
    cudnn.benchmark = False
    try:
        yield
    finally:
        matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.deterministic, cudnn.benchmark = before  # type: ignore[attr-defined]
