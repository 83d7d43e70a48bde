"""Embeddings of the faces of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.data import Face, FaceSource, Pair
from fastadv.models import FaceModel, fixed_batches, prepare
from fastadv.recognition import cosine_scores, euclidean_scores

SCORES = {"cosine": cosine_scores, "euclidean": euclidean_scores}
_BATCH = 32


def embed(
    source: FaceSource, names: Sequence[str], model: FaceModel, *, progress: Progress = silent
) -> Mapping[str, Tensor]:
    """The float32 embeddings of the named faces, in batches of one fixed shape.

    Raises:
        ValueError: An embedding is zero or not finite.
        ImageError, AlignmentError: A face cannot be read.
    """
    return embed_each(source, names, [prepare(model, precision="fp32", channels_last=True)], progress=progress)[0]


def embed_each(
    source: FaceSource, names: Sequence[str], models: Sequence[FaceModel], *, progress: Progress = silent
) -> list[Mapping[str, Tensor]]:
    """As `embed`, by several networks that are prepared in float32; each face is read once.

    Raises:
        ValueError, ImageError, AlignmentError: As `embed`.
    """
    found: list[dict[str, Tensor]] = [{} for _ in models]
    waiting: list[Face] = []

    def flush() -> None:
        faces = torch.stack([f.image for f in waiting])
        for model, rows in zip(models, found, strict=True):
            images = faces.to(model.device).contiguous(memory_format=torch.channels_last)
            for face, row in zip(waiting, fixed_batches(model, images, _BATCH).cpu(), strict=True):
                if not (bool(row.isfinite().all()) and bool(row.any())):
                    raise ArgumentError(
                        f"{face.name}: expected a finite embedding that is not zero, got another from "
                        f"{model.name}; check the weights"
                    )
                rows[face.name] = row
        waiting.clear()
        progress("embedding", len(found[0]), len(names))

    with source.stream(names) as faces:
        for face in faces:
            waiting.append(face)
            if len(waiting) == _BATCH:
                flush()
    if waiting:
        flush()
    return [*found]


def outputs(work: Callable[[Tensor], Tensor], images: Tensor, judge: FaceModel, *, batch: int) -> Tensor:
    """What a prepared network says of images, on the CPU, by batches of one fixed shape: embeddings or logits."""
    layout = torch.channels_last
    return fixed_batches(lambda x: work(x.contiguous(memory_format=layout)), images.to(judge.device), batch).cpu()


def names_of(pairs: Iterable[Pair]) -> list[str]:
    """The images of pairs, in order, each once."""
    return list(dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)))


def folds_of(pairs: Sequence[Pair], threshold: float | None = None) -> NDArray[np.int64] | None:
    """The fold of each pair; without two of them None, or, with a threshold that decides in all folds, one fold."""
    folds = [pair.fold for pair in pairs]
    if len(set(folds)) > 1:
        return np.array(folds)
    return None if threshold is None else np.zeros(len(folds), np.int64)


def pair_scores(pairs: Sequence[Pair], embeddings: Mapping[str, Tensor], metric: str = "cosine") -> NDArray[np.float64]:
    """The score of each pair, higher for more alike."""
    first, second = (torch.stack([embeddings[getattr(p, k)] for p in pairs]).numpy() for k in ("first", "second"))
    return SCORES[metric](first, second)
