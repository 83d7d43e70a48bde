"""Curves of figures from numbers, and pictures in files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core.statistics import roc
from fastadv.data.images import write_png
from fastadv.studies.papers.recipe import Trace

_POINTS = 200


def histogram(label: str, values: ArrayLike, span: tuple[float, float], *, bins: int = 30) -> Trace:
    """The share of the numbers in each of equal bins over a span, at the bins' middles; those beyond are in the ends.

    Args:
        label: In the legend.
        values: At least one number.
        span: The ends, the same for curves that are compared.
        bins: How many.
    """
    found = np.asarray(values, np.float64)
    counts, edges = np.histogram(np.clip(found, *span), bins, range=span)
    middles = (edges[:-1] + edges[1:]) / 2
    return Trace(label=label, x=tuple(middles.tolist()), y=tuple((counts / max(1, len(found))).tolist()))


def roc_trace(label: str, negatives: ArrayLike, positives: ArrayLike) -> Trace:
    """The ROC curve of scores, true over false positive rate; thinned where there are many points.

    Args:
        label: In the legend.
        negatives: Scores of clean images, or of pairs of two people.
        positives: Scores of attacked images, or of pairs of one person, which should be higher.

    Raises:
        ValueError: As ``roc``.
    """
    calm, moved = np.asarray(negatives, np.float64), np.asarray(positives, np.float64)
    curve = roc(np.concatenate([calm, moved]), np.repeat([False, True], [len(calm), len(moved)]))
    places = np.unique(np.linspace(0, len(curve.far) - 1, _POINTS).astype(int))
    return Trace(label=label, x=tuple(curve.far[places].tolist()), y=tuple(curve.tar[places].tolist()))


def write_pictures(
    folder: Path, shown: Iterable[tuple[str, NDArray[np.uint8]]], *, prefix: str = ""
) -> list[list[str]]:
    """Write images, by their captions, below a part's folder: captions and files, as of `Pictures`."""
    place = folder / "pictures"
    place.mkdir(exist_ok=True)
    files = []
    for number, (caption, image) in enumerate(shown):
        file = place / f"{prefix}{number}.png"
        write_png(file, image)
        files.append([caption, str(file.relative_to(folder.parents[2]))])
    return files
