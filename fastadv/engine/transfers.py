"""Copies between host and GPU for which neither waits, through pinned memory; on a CPU the tensors as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device; the host goes on before they are there."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def stacked(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    """Rows ``(...)`` as one tensor ``(N, ...)`` on the device, written to pinned memory once."""
    if device.type != "cuda" or any(row.device.type != "cpu" for row in rows):
        return torch.stack([row.to(device) for row in rows])
    pinned = torch.empty((len(rows), *rows[0].shape), dtype=rows[0].dtype, device="cpu", pin_memory=True)
    return torch.stack(list(rows), out=pinned).to(device, non_blocking=True)


class HostCopy:
    """A copy on the host, begun at once; :meth:`get` waits for it.

    Args:
        values: Not to be written to afterwards where it is on the CPU already.
    """

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.device.type == "cuda":
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def get(self) -> Tensor:
        """The values, in ordinary memory: who keeps them keeps no pinned memory."""
        if self._event is not None:
            self._event.synchronize()
            self._values, self._event = self._values.clone(), None
        return self._values
