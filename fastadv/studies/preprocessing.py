"""``fastadv models check``: pairs verified with the preprocessing that a network is described with, and with others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource, Pair
from fastadv.models import FaceModel, prepare
from fastadv.models.face_model import ORDERS
from fastadv.recognition import evaluate
from fastadv.runs.embedding import embed_each, names_of, pair_scores
from fastadv.runs.inputs import PairChoice, RunInputs

_Floats = NDArray[np.float64]
#: Mean and standard deviation of the usual preprocessings, in units of pixels in [0, 1]; red first.
USUAL: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = (
    ((0.5,) * 3, (0.5,) * 3),
    ((0.5,) * 3, (128 / 255,) * 3),
    ((0.0,) * 3, (1.0,) * 3),
    ((0.0,) * 3, (1 / 255,) * 3),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((131.0912 / 255, 103.8827 / 255, 91.4953 / 255), (1 / 255,) * 3),
)
_DRAWS = 1000
_LEVEL = 0.005
_LEAST = 0.02  # of the separation: less is no reason to change a description


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One preprocessing.

    Attributes:
        channels: Order of the colours.
        mean: Subtracted, of red, green and blue, in units of pixels in [0, 1].
        std: The divisors.
        accuracy: Over the folds, or None.
        auc: Area under the ROC curve.
        eer: Equal error rate.
        separation: ``d' = (m1 - m0) / sqrt((s1^2 + s0^2) / 2)`` of the scores of pairs of one person and of two.
    """

    channels: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracy: float | None
    auc: float
    eer: float
    separation: float


@dataclass(frozen=True, kw_only=True)
class Preprocessings:
    """A check of a network's preprocessing.

    Attributes:
        model: Its name.
        pairs: How many were verified.
        tried: The described preprocessing first.
        best: The one that separates the pairs best.
        fits: Whether the described one does as well: no other's d' is larger by 2 % or more, at a level of 0.5 %.
    """

    model: str
    pairs: int
    tried: tuple[Tried, ...]
    best: int
    fits: bool


def check(
    source: FaceSource, pairs: Sequence[Pair], model: FaceModel, *, progress: Progress = silent
) -> Preprocessings:
    """Verify pairs with a network's own preprocessing and with each usual one, in both orders of the colours.

    The images are the same in all of them, so the comparison is paired: d' of the best other preprocessing less d' of
    the described one, over bootstrap samples of the pairs of each class.

    Args:
        source: The faces.
        pairs: What to compare, with folds.
        model: The network as it is described.

    Raises:
        ValueError: The network does not take three colours, or one class of pairs is missing.
        ImageError, AlignmentError: A face cannot be read.
    """
    if model.image_shape[0] != 3:
        raise ArgumentError(f"model: expected one for three colours, got {model.image_shape[0]} channels")
    ready = prepare(model, precision="fp32", channels_last=True)
    models = [ready, *_others(ready)]
    embeddings = embed_each(source, names_of(pairs), models, progress=progress)
    same, folds = np.array([p.same for p in pairs]), np.array([p.fold for p in pairs])
    scores = [pair_scores(pairs, found) for found in embeddings]
    tried = tuple(
        _tried(each, found, same, folds if len(set(folds.tolist())) > 1 else None)
        for each, found in zip(models, scores, strict=True)
    )
    best = max(range(len(tried)), key=lambda k: tried[k].separation)
    fits = tried[best].separation < (1 + _LEAST) * tried[0].separation or not _is_better(scores[best], scores[0], same)
    return Preprocessings(model=model.name, pairs=len(pairs), tried=tried, best=best, fits=fits)


def check_folder(inputs: RunInputs, pairs: PairChoice, *, progress: Progress = silent) -> Preprocessings:
    """Check as a command is asked for it.

    Raises:
        ValueError, OSError: As opening the network, the faces and the pairs; else as ``check``.
    """
    model = inputs.open_model()
    source = inputs.open_faces(model, progress=progress)
    return check(source, pairs.open(source), model, progress=progress)


def _others(model: FaceModel) -> Iterator[FaceModel]:
    """The usual preprocessings but for the model's own."""
    own = _values(model)
    known = USUAL if own[1:] in [_rounded(*pair) for pair in USUAL] else (own[1:], *USUAL)
    for mean, std in known:
        for channels in ORDERS:
            if (channels, *_rounded(mean, std)) != own:
                yield model.replace(mean=mean, std=std, channels=channels)


def _values(model: FaceModel) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    return (model.channels, *_rounded(model.mean.flatten().tolist(), model.std.flatten().tolist()))


def _rounded(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """In single precision, as a model keeps them."""
    return tuple(float(np.float32(v)) for v in mean), tuple(float(np.float32(v)) for v in std)


def _tried(model: FaceModel, scores: _Floats, same: NDArray[np.bool_], folds: NDArray | None) -> Tried:
    report = evaluate(scores, same, folds)
    channels, mean, std = _values(model)
    return Tried(
        channels=channels,
        mean=mean,
        std=std,
        accuracy=report.accuracy,
        auc=report.auc,
        eer=report.eer,
        separation=float(separation(scores[same], scores[~same])),
    )


def separation(positive: _Floats, negative: _Floats) -> _Floats:
    """d' of two samples along their last axis; 0 where neither varies."""
    spread = np.sqrt((positive.var(-1) + negative.var(-1)) / 2)
    apart = positive.mean(-1) - negative.mean(-1)
    return np.divide(apart, spread, out=np.zeros_like(apart), where=spread > 0)


def _is_better(one: _Floats, other: _Floats, same: NDArray[np.bool_]) -> bool:
    """Whether d' of the one is larger than the other's in nearly all bootstrap samples of the pairs."""
    generator = np.random.default_rng(0)
    rows = [np.flatnonzero(same), np.flatnonzero(~same)]
    drawn = [each[generator.integers(0, len(each), (_DRAWS, len(each)))] for each in rows]
    better = separation(*(one[part] for part in drawn)) > separation(*(other[part] for part in drawn))
    return bool(better.mean() >= 1 - _LEVEL)
