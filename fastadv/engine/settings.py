"""Settings of the engine: slots, batch, precision, memory layout, CUDA graph capture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import is_int
from fastadv.core.notices import Notice
from fastadv.engine import tune
from fastadv.models import FaceModel, prepare
from fastadv.models.modes import plain_modes

PRECISIONS = ("fp32", "tf32", "bf16", "auto")


class AttackWarning(Notice):
    """A property of a run without which its results can be misread."""


def _check_multiple(slots: int, batch: int) -> None:
    if slots % batch:
        raise ArgumentError(f"slots: expected a multiple of batch = {batch}, got {slots}")


def _default_precision(device: torch.device) -> str:
    """``bf16`` or ``tf32`` on CUDA, where PyTorch itself runs convolutions in TF32 by default; ``fp32`` on a CPU."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "tf32"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Settings of the engine. Results do not depend on the slots, the order, the other images or restarts.

    Attributes:
        slots: Images that are attacked at the same time, a multiple of ``batch``; None takes ``batch``.
        batch: Images per gradient evaluation. Convolutions may round differently in another batch shape, so results are
            bit-identical for a fixed batch, whatever the slots. None: 16 on a CPU, the slots (or 64) on CUDA; where
            images are attacked in memory and are fewer, their number. 0: the fastest as measured on the model.
        precision: Of the gradient: ``"fp32"``, ``"tf32"`` (CUDA), ``"bf16"``, or ``"auto"`` for the fastest as
            measured. None: on CUDA ``"bf16"``, or ``"tf32"`` where the device computes no bf16; on a CPU ``"fp32"``.
            Success is always measured in float32.
        channels_last: Run convolutions in the channels-last layout.
        capture: Record a tick (a gradient evaluation of every slot and the attack's update) as a CUDA graph; None: True
            on CUDA, False on a CPU.
        success_float: Also measure success before rounding to 8 bits, with one more float32 pass over the images that
            rounding changes.
        poll: Ticks after which the host reads which slots have finished; None: 1.
        overlap: Let the host read images and work on results while the device computes: it reads one turn late which
            slots have finished. None: True on CUDA, False on a CPU, where both are the same processor.

    Raises:
        ValueError: A field is out of range.
    """

    slots: int | None = None
    batch: int | None = None
    precision: str | None = None
    channels_last: bool = True
    capture: bool | None = None
    poll: int | None = None
    overlap: bool | None = None
    success_float: bool = False

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ArgumentError(f"precision: expected one of {', '.join(PRECISIONS)}, got {brief(self.precision)}")
        for name, value, least, expected in (
            ("batch", self.batch, 0, "integer, 0 (measure)"),
            ("slots", self.slots, 1, "integer"),
            ("poll", self.poll, 1, "integer"),
        ):
            if value is not None and (not is_int(value) or value < least):
                raise ArgumentError(f"{name}: expected a positive {expected} or None, got {brief(value)}")
        if self.batch:
            _check_multiple(self.slots or self.batch, self.batch)

    def resolve(self, model: FaceModel, *, images: int | None = None) -> Engine:
        """The same engine with every None, 0 and ``"auto"`` replaced by its value for this model, as a run records it.

        Args:
            model: What is attacked.
            images: How many images there are, where that is known: no batch is larger unless it is given.

        Raises:
            ValueError: The model is in training mode, or the device does not support a setting.
        """
        with plain_modes(model.device):
            return self._resolve(model, images)

    def _resolve(self, model: FaceModel, images: int | None) -> Engine:
        device = model.device
        on_cuda = device.type == "cuda"
        if self.capture and not on_cuda:
            raise ArgumentError(f"capture: expected a model on a CUDA device with True, got one on {device}")
        if self.precision == "tf32" and not on_cuda:
            raise ArgumentError(f"precision: expected a model on a CUDA device with 'tf32', got one on {device}")
        batch = self.batch
        if batch is None:
            batch = (self.slots or 64) if on_cuda else min(16, self.slots or 16)
            batch = min(batch, images) if images and self.slots is None else batch
        precision = self.precision or _default_precision(device)
        if precision == "auto":
            precision = tune.best_precision(model, batch=batch or 16, channels_last=self.channels_last)
        if batch == 0:
            ready = prepare(model, precision=precision, channels_last=self.channels_last)
            sizes = tune.CUDA_BATCHES if on_cuda else tune.CPU_BATCHES
            batch = tune.best_batch(ready, sizes, channels_last=self.channels_last)
        slots = self.slots or batch
        _check_multiple(slots, batch)
        return replace(
            self,
            slots=slots,
            batch=batch,
            precision=precision,
            capture=on_cuda if self.capture is None else self.capture,
            poll=self.poll or 1,
            overlap=on_cuda if self.overlap is None else self.overlap,
        )
