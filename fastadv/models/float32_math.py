"""How CUDA multiplies float32 numbers, and whether it repeats its bits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def float32_math(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Let CUDA use TF32 for float32 products, or forbid it, and only algorithms that repeat their bits.

    Without the latter, cuDNN may add up the gradient of a convolution with atomics, in an order that changes from run
    to run, or choose its algorithms by their speed at the time (``benchmark``). PyTorch has one setting for the whole
    process: threads that want the same one go on side by side, one that wants the other waits until they have left.
    What was set before the first is restored after the last. Nothing to do
    on a CPU.

    Args:
        device: where the products are made.
        tf32: whether TF32 is allowed.
    """
    if device.type != "cuda":
        yield
        return
    wanted = "tf32" if tf32 else "ieee"
    outer = _setting.of_threads.get(threading.get_ident())
    try:  # around the first change too: Ctrl-C may end its wait
        _change(wanted)
        yield
    finally:
        _change(outer)


class _Setting:
    """The process's one setting: what our threads want of it, each by its number, and what was there before."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.wanted: str | None = None
        self.of_threads: dict[int, str] = {}
        self.before: tuple[Any, ...] = ()


_setting = _Setting()


def _change(new: str | None) -> None:
    """This thread wants `new`, when it can have it; it never holds another setting while it waits."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    here = threading.get_ident()
    with _setting.changed:
        if _setting.of_threads.pop(here, None) is not None:
            if not _setting.of_threads:
                matmul.fp32_precision, cudnn.conv.fp32_precision = _setting.before[:2]  # type: ignore[attr-defined]
                cudnn.deterministic, cudnn.benchmark = _setting.before[2:]
                _setting.wanted = None
            _setting.changed.notify_all()
        if new is None:
            return
        _setting.changed.wait_for(lambda: _setting.wanted in (None, new))
        if not _setting.of_threads:
            precisions = matmul.fp32_precision, cudnn.conv.fp32_precision  # type: ignore[attr-defined]
            _setting.before = (*precisions, cudnn.deterministic, cudnn.benchmark)
        _setting.of_threads[here] = new  # from here on, what is changed is restored
        if _setting.wanted is None:
            matmul.fp32_precision = cudnn.conv.fp32_precision = new  # type: ignore[attr-defined]
            cudnn.deterministic, cudnn.benchmark = True, False
            _setting.wanted = new
