"""Embeddings of the faces of a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.data import Face, FaceSource
from fastadv.models import FaceModel, fixed_batches, prepare

_BATCH = 32


def embed(
    source: FaceSource, names: Sequence[str], model: FaceModel, *, progress: Progress = silent
) -> Mapping[str, Tensor]:
    """The float32 embeddings of the named faces, in batches of one fixed shape.

    Raises:
        ValueError: An embedding is zero or not finite.
        ImageError, AlignmentError: A face cannot be read.
    """
    ready = prepare(model, precision="fp32", channels_last=True)
    found: dict[str, Tensor] = {}
    waiting: list[Face] = []

    def flush() -> None:
        images = torch.stack([f.image for f in waiting]).to(model.device).contiguous(memory_format=torch.channels_last)
        for face, row in zip(waiting, fixed_batches(ready, images, _BATCH).cpu(), strict=True):
            if not (bool(row.isfinite().all()) and bool(row.any())):
                raise ArgumentError(
                    f"{face.name}: expected a finite embedding that is not zero, got another from "
                    f"{model.name}; check the weights"
                )
            found[face.name] = row
        waiting.clear()
        progress("embedding", len(found), len(names))

    with source.stream(names) as faces:
        for face in faces:
            waiting.append(face)
            if len(waiting) == _BATCH:
                flush()
    if waiting:
        flush()
    return found
