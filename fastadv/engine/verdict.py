"""What is measured of finished images, on its way from the device to the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastadv.engine.job import (
    BELOW_A_LEVEL,
    MET_AT_START,
    NONFINITE_GRADIENT,
    OUTSIDE,
    ZERO_GRADIENT,
    InFlight,
    Result,
)
from fastadv.engine.transfers import HostCopy


class Verdict:
    """Measurements of a batch of finished images, computed and copied while the host does something else.

    Args:
        done: The images.
        rounded: ``(N, 3, H, W)``, their 8-bit versions.
        embeddings: ``(N, D)`` of those, with a goal on embeddings; else None.
        columns: ``(N,)`` each: ``success``, ``linf``, ``l2``, ``score_after``, ``inside`` and ``stuck``; also
            ``success_float`` where the engine measures it.
        batch: Images in a gradient evaluation.
    """

    def __init__(
        self,
        done: Sequence[InFlight],
        *,
        rounded: Tensor,
        embeddings: Tensor | None,
        columns: Mapping[str, Tensor],
        batch: int,
    ) -> None:
        self._done, self._batch, self._names = done, batch, tuple(columns)
        # in float64, which holds float32, bool and counts without rounding: one copy for all of them
        self._columns = HostCopy(torch.stack([column.double() for column in columns.values()], 1))
        self._images = HostCopy(rounded.contiguous())
        self._embeddings = None if embeddings is None else HostCopy(embeddings)

    def results(self) -> list[Result]:
        """Wait for the measurements, and describe each image."""
        images = self._images.get()
        embeddings = [None] * len(self._done) if self._embeddings is None else self._embeddings.get()
        measured = [dict(zip(self._names, row, strict=True)) for row in self._columns.get().tolist()]
        return [
            Result(
                name=d.job.name,
                id=d.job.id,
                image=images[i],
                success=bool(m["success"]),
                embedding=embeddings[i],
                success_float=bool(m["success_float"]) if "success_float" in m else None,
                ticks=d.ticks,
                linf=m["linf"],
                l2=m["l2"],
                score_before=d.score_before,
                score_after=m["score_after"],
                nonfinite=d.nonfinite,
                flags=_flags(d, inside=bool(m["inside"]), stuck=bool(m["stuck"])),
                batch=self._batch,
            )
            for i, (d, m) in enumerate(zip(self._done, measured, strict=True))
        ]


def _flags(done: InFlight, *, inside: bool, stuck: bool) -> tuple[str, ...]:
    elements = done.trial.numel()
    noticed = {
        ZERO_GRADIENT: done.zero > 0 and done.zero == done.ticks * elements,
        NONFINITE_GRADIENT: done.nonfinite > 0,
        MET_AT_START: done.met_at_start,
        OUTSIDE: not inside,
        BELOW_A_LEVEL: inside and stuck,
    }
    return tuple(name for name, seen in noticed.items() if seen)
