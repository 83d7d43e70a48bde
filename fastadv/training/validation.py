"""Verification of held-out pairs, between the epochs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastadv.core.progress import Progress, silent
from fastadv.core.resolution import measurable, unmeasurable
from fastadv.data import FaceSource, Pair
from fastadv.data.dealt_pairs import by_identity
from fastadv.models import FaceModel, fixed_batches, prepare
from fastadv.recognition import VerificationReport, cosine_scores, evaluate

_BATCH = 64
_RESOLVED = 0.01  # accuracies and error rates that the choice of an epoch should be able to tell apart


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a training is validated on.

    Attributes:
        source: The faces.
        pairs: Pairs of them, with two or more folds; people that are not trained on.
    """

    source: FaceSource
    pairs: tuple[Pair, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The images in the pairs, sorted."""
        return tuple(sorted({name for pair in self.pairs for name in (pair.first, pair.second)}))

    def identities(self) -> set[str]:
        """The people in the pairs."""
        return {name.rpartition("/")[0] for pair in self.pairs for name in (pair.first, pair.second)}


def embed_faces(
    model: FaceModel, source: FaceSource, names: Iterable[str], *, progress: Progress = silent
) -> tuple[list[str], Tensor]:
    """The raw features of the named faces, in float32 and batches of a fixed shape.

    Returns:
        The names, each once, and (N, D).
    """
    wanted = list(dict.fromkeys(names))
    was = model.training
    ready = prepare(model.eval())
    model.train(was)
    rows: list[Tensor] = []
    for start in range(0, len(wanted), _BATCH):
        with source.stream(wanted[start : start + _BATCH]) as faces:
            images = torch.stack([face.image for face in faces]).to(model.device)
        rows.append(fixed_batches(ready.features, images.contiguous(memory_format=torch.channels_last), _BATCH).cpu())
        progress("validating", min(start + _BATCH, len(wanted)), len(wanted))
    return wanted, torch.cat(rows)


def few_negatives(pairs: Sequence[Pair]) -> str | None:
    """What a reader of the figures must know where the pairs are too few to tell networks apart, or None."""
    negatives = sum(not pair.same for pair in pairs)
    if not negatives or measurable(_RESOLVED, negatives):
        return None
    images = len({name for pair in pairs for name in (pair.first, pair.second)})
    sentence = unmeasurable(
        f"error rates of {_RESOLVED:.0%}", _RESOLVED, negatives, f"negative pairs of {images} images"
    )
    return f"validation: {sentence}; epochs are chosen by coarser ones: give more with --pairs"


def verify_pairs(
    model: FaceModel, source: FaceSource, pairs: Sequence[Pair], *, progress: Progress = silent
) -> VerificationReport:
    """The verification report of a model on pairs, by the cosine of the embeddings."""
    names, rows = embed_faces(model, source, (n for p in pairs for n in (p.first, p.second)), progress=progress)
    place = {name: k for k, name in enumerate(names)}
    first = rows[[place[p.first] for p in pairs]].numpy()
    second = rows[[place[p.second] for p in pairs]].numpy()
    folds = np.array([-1 if p.fold is None else p.fold for p in pairs])
    same = np.array([p.same for p in pairs])
    return evaluate(cosine_scores(first, second), same, folds if len(set(folds.tolist())) > 1 else None)


def hold_out(names: Sequence[str], held: Held | None) -> tuple[str, ...]:
    """The names whose identities do not occur in the pairs."""
    if held is None:
        return tuple(names)
    out = held.identities()
    return tuple(name for person, found in by_identity(names).items() if person not in out for name in found)
