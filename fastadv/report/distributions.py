"""Distributions of what attacks did, one line a series."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core import text
from fastadv.core.errors import ArgumentError
from fastadv.report.figures import DASHES
from fastadv.report.parts import LegendEntry, Plot
from fastadv.report.svg import INK, colour, drawing, new_figure, svg_of

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


def histogram_plot(
    title: str,
    series: Sequence[tuple[str, ArrayLike]],
    *,
    edges: ArrayLike,
    axis: str,
    level: tuple[str, float] | None = None,
    note: str = "",
) -> Plot:
    """The distribution of one number of each image, from counts in bins that all series share.

    Args:
        title: Above the figure.
        series: A label and ``(B,)`` counts each.
        edges: ``(B + 1,)``, ascending.
        axis: What the numbers are.
        level: A name and a number, drawn upright.
        note: Below the figure.

    Raises:
        ValueError: No series, counts of another length, or none but zeros.
        ImportError: matplotlib is not installed.
    """
    ends, counts = np.asarray(edges, np.float64), _checked(series)
    for (label, _), each in zip(series, counts, strict=True):
        if len(each) + 1 != len(ends) or (each < 0).any() or not each.sum() > 0:
            raise ArgumentError(f"series {label!r}: expected counts in {len(ends) - 1} bins, got {each.tolist()[:5]}")
    mark = None if level is None else level[1]
    svg = _lines([(ends, each / each.sum()) for each in counts], axis=axis, of="share of the images", mark=mark)
    legend = _legend(series) + (() if level is None else (LegendEntry(label=level[0], series=None, dashed=True),))
    return Plot(svg=svg, title=title, legend=legend, note=note)


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


def _lines(
    drawn: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], *, axis: str, of: str, mark: float | None = None
) -> str:
    with drawing():
        figure, axes = new_figure(4.6, 2.6)
        for k, (edges, share) in enumerate(drawn):
            axes.stairs(share, edges, fill=True, color=colour(k), alpha=_FILL / len(drawn))
            axes.stairs(share, edges, color=colour(k), linewidth=1.5, linestyle=DASHES[k % len(DASHES)])
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
        axes.set_xlim(drawn[0][0][0], drawn[0][0][-1])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.grid(False, axis="x")
        axes.set_xlabel(axis)
        axes.set_ylabel(of)
        return svg_of(figure)
