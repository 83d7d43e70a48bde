"""How an attack is run: slots, batch, precision, layout, capture."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.notices import Notice
from fastadv.engine import tune
from fastadv.models import FaceModel, prepare
from fastadv.models.modes import plain_modes

PRECISIONS = ("fp32", "tf32", "bf16", "auto")


class AttackWarning(Notice):
    """Something about a run that a reader of its numbers must know."""


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How an attack is run. What it finds does not depend on slots, order, neighbours or restarts.

    Attributes:
        slots: Images in flight, a multiple of ``batch``; None takes ``batch``.
        batch: Images per evaluation. Convolutions may round differently in another batch shape, so results are
            bit-identical for a fixed batch, whatever the slots. None: 16 on a CPU, the slots (or 64) on CUDA.
            0: measured on the model at hand.
        precision: Of the gradient: ``"fp32"``, ``"tf32"`` (CUDA), ``"bf16"``, or ``"auto"`` for the fastest as
            measured. The verdict is always float32.
        channels_last: Run convolutions in the channels-last layout.
        capture: Record the tick as a CUDA graph; None: on CUDA, yes.
        poll: Ticks between two looks at the flags; None: 1 on a CPU, 4 on CUDA.

    Raises:
        ValueError: A field is out of range.
    """

    slots: int | None = None
    batch: int | None = None
    precision: str = "fp32"
    channels_last: bool = True
    capture: bool | None = None
    poll: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ArgumentError(f"precision must be one of {', '.join(PRECISIONS)}, got {brief(self.precision)}")
        if self.batch is not None and (not _is_int(self.batch) or self.batch < 0):
            raise ArgumentError(f"batch must be a positive integer, 0 (measure) or None, got {brief(self.batch)}")
        if self.slots is not None and (not _is_int(self.slots) or self.slots < 1):
            raise ArgumentError(f"slots must be a positive integer or None, got {brief(self.slots)}")
        if self.slots and self.batch and self.slots % self.batch:
            raise ArgumentError(f"slots must be a multiple of batch = {self.batch}, got {self.slots}")
        if self.poll is not None and (not _is_int(self.poll) or self.poll < 1):
            raise ArgumentError(f"poll must be a positive integer or None, got {brief(self.poll)}")

    def resolve(self, model: FaceModel) -> Engine:
        """The same engine with every open choice made for this model: what a run records and repeats.

        Raises:
            ValueError: The model is in training mode, or the device cannot do what is asked.
        """
        with plain_modes(model.device):
            return self._resolve(model)

    def _resolve(self, model: FaceModel) -> Engine:
        device = model.device
        on_cuda = device.type == "cuda"
        if self.capture and not on_cuda:
            raise ArgumentError(f"capture needs a model on a CUDA device, got one on {device}")
        if self.precision == "tf32" and not on_cuda:
            raise ArgumentError(f"precision 'tf32' exists on CUDA devices only, got a model on {device}")
        batch = self.batch
        if batch is None:
            batch = (self.slots or 64) if on_cuda else min(16, self.slots or 16)
        precision = self.precision
        if precision == "auto":
            precision = tune.best_precision(model, batch=batch or 16, channels_last=self.channels_last)
        if batch == 0:
            ready = prepare(model, precision=precision, channels_last=self.channels_last)
            sizes = tune.CUDA_BATCHES if on_cuda else tune.CPU_BATCHES
            batch = tune.best_batch(ready, sizes, channels_last=self.channels_last)
        slots = self.slots or batch
        if slots % batch:
            raise ArgumentError(f"slots must be a multiple of batch = {batch}, got {slots}")
        return replace(
            self,
            slots=slots,
            batch=batch,
            precision=precision,
            capture=on_cuda if self.capture is None else self.capture,
            poll=self.poll or (4 if on_cuda else 1),
        )
