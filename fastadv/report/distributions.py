"""Distributions of what attacks did, one line a series."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core import text
from fastadv.core.errors import ArgumentError
from fastadv.report.figures import DASHES
from fastadv.report.parts import LegendEntry, Plot
from fastadv.report.svg import colour, drawing, new_figure, svg_of

_BINS = (6, 40)  # fewest and most
_FILL = 0.25  # opacity below a line


def distribution_plot(title: str, series: Sequence[tuple[str, ArrayLike]], *, axis: str, note: str = "") -> Plot:
    """The distribution of one number of each image, over bins that all series share.

    Args:
        title: Above the figure.
        series: A label and ``(N,)`` finite numbers each.
        axis: What the numbers are.
        note: Below it.

    Raises:
        ValueError: No series, or one without a number, or with one that is not finite.
        ImportError: matplotlib is not installed.
    """
    values = _checked(series)
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    bins = int(np.clip(2 * np.sqrt(max(len(v) for v in values)), *_BINS))
    edges = np.linspace(low, high if high > low else low + 1e-3, bins + 1)
    shares = [np.histogram(v, edges)[0] / len(v) for v in values]
    svg = _lines([(edges, share) for share in shares], axis=axis, of="share of the images")
    return Plot(svg=svg, title=title, legend=_legend(series), note=note)


def levels_plot(title: str, series: Sequence[tuple[str, ArrayLike]], *, within: int) -> Plot:
    """How much the pixels change: the share of all pixels by grey levels, with what lies within some levels noted.

    Args:
        title: Above the figure.
        series: A label and ``(L,)`` counts each: of the pixels that change by 0, 1, 2, ... levels.
        within: The levels whose share the note gives.

    Raises:
        ValueError: No series, one without a pixel, or with a negative count.
        ImportError: matplotlib is not installed.
    """
    counts = _checked(series)
    for (label, _), each in zip(series, counts, strict=True):
        if (each < 0).any() or not each.sum() > 0:
            raise ArgumentError(f"series {label!r}: expected counts of pixels, got {each.tolist()[:5]}")
    last = max(int(np.flatnonzero(each).max()) for each in counts)
    shares = [np.pad(each, (0, max(0, last + 1 - len(each))))[: last + 1] / each.sum() for each in counts]
    edges = np.arange(last + 2, dtype=np.float64) - 0.5
    svg = _lines(
        [(edges, share.astype(np.float64)) for share in shares],
        axis="largest change of a pixel over its channels, in 1/255",
        of="share of the pixels",
    )
    told = [
        f"{text.percent(float(share[: within + 1].sum()))} ({label})"
        for (label, _), share in zip(series, shares, strict=True)
    ]
    return Plot(svg=svg, title=title, legend=_legend(series), note=f"At most {within}/255: {', '.join(told)}.")


def _checked(series: Sequence[tuple[str, ArrayLike]]) -> list[NDArray[np.float64]]:
    if not series:
        raise ArgumentError("series: expected at least one, got none")
    values = [np.asarray(each, np.float64) for _, each in series]
    for (label, _), each in zip(series, values, strict=True):
        if each.ndim != 1 or not len(each) or not np.isfinite(each).all():
            raise ArgumentError(f"series {label!r}: expected (N,) finite numbers, N of at least 1, got {each.shape}")
    return values


def _legend(series: Sequence[tuple[str, ArrayLike]]) -> tuple[LegendEntry, ...]:
    return tuple(LegendEntry(label=label, series=k, dashed=k > 0) for k, (label, _) in enumerate(series))


def _lines(drawn: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], *, axis: str, of: str) -> str:
    with drawing():
        figure, axes = new_figure(4.6, 2.6)
        for k, (edges, share) in enumerate(drawn):
            axes.stairs(share, edges, fill=True, color=colour(k), alpha=_FILL / len(drawn))
            axes.stairs(share, edges, color=colour(k), linewidth=1.5, linestyle=DASHES[k % len(DASHES)])
        axes.set_xlim(drawn[0][0][0], drawn[0][0][-1])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.grid(False, axis="x")
        axes.set_xlabel(axis)
        axes.set_ylabel(of)
        return svg_of(figure)
