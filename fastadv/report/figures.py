"""The figures of the report page, from numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastadv.core.errors import ArgumentError
from fastadv.report.parts import LegendEntry, Plot
from fastadv.report.roc import Curve, steps
from fastadv.report.svg import INK, MUTED, colour, drawing, new_figure, svg_of

DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)), (0, (9, 2)))
_LOG_FROM = 1000  # negatives below which a logarithmic axis would show little but noise
_BINS = 40


def roc_plot(curves: Sequence[Curve], *, negatives: int) -> Plot:
    """ROC curves: those before an attack in the ink of the text, those after in colours of their own.

    Args:
        curves: What to draw; `after` marks the ones under attack.
        negatives: Number of pairs of different people: from 1000 on, the axis of the false accept rate is logarithmic.

    Raises:
        ValueError: No curves.
        ImportError: matplotlib is not installed.
    """
    if not curves:
        raise ArgumentError("curves: expected at least one, got none")
    lowest = 1 / negatives if negatives >= _LOG_FROM else 0.0
    legend, after = [], 0
    with drawing():
        figure, axes = new_figure(4.6, 3.3)
        for curve in curves:
            series = None
            if curve.after:
                series, after = after + 1, after + 1
            dash = DASHES[after % len(DASHES)] if curve.after else "-"
            axes.plot(
                *steps(curve, lowest), color=colour(series), linewidth=1.8, linestyle=dash, clip_on=False, zorder=3
            )
            legend.append(LegendEntry(label=curve.label, series=series, dashed=curve.after))
        ends = np.geomspace(lowest, 1, 100) if lowest else np.array([0.0, 1.0])
        axes.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)))
        if lowest:
            axes.set_xscale("log")
        axes.set_xlim(lowest, 1)
        axes.set_ylim(0, 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_percent)
        axes.set_xlabel("false accept rate")
        axes.set_ylabel("true accept rate")
        svg = svg_of(figure)
    return Plot(
        svg=svg,
        title="ROC before and after",
        alt=f"ROC curves: {', '.join(c.label for c in curves)}",
        legend=tuple(legend),
    )


def similarity_plot(
    title: str,
    before: ArrayLike,
    after: ArrayLike | None,
    same: ArrayLike,
    *,
    threshold: float | None,
    span: tuple[float, float],
    score: str = "cosine similarity",
) -> Plot:
    """Histograms of the scores of genuine and impostor pairs, before an attack above, after it below.

    Args:
        title: Above the figure.
        before: (P,) scores of clean pairs.
        after: (P,) scores under attack, or None for one row only.
        same: (P,) whether a pair shows one person.
        threshold: Drawn as a line, in the scores' unit; None for no line.
        span: The axis of the scores, the same for figures that are compared.
        score: The axis' name.

    Raises:
        ValueError: Arrays of different lengths, or an empty span.
        ImportError: matplotlib is not installed.
    """
    flags = np.asarray(same, bool)
    rows = [("before", np.asarray(before, np.float64))]
    if after is not None:
        rows.append(("after", np.asarray(after, np.float64)))
    if any(values.shape != flags.shape for _, values in rows):
        raise ArgumentError(f"before, after, same: expected arrays of one length, got {[len(v) for _, v in rows]}")
    if not span[0] < span[1]:
        raise ArgumentError(f"span: expected two growing numbers, got {span}")
    edges = np.linspace(*span, _BINS + 1)
    with drawing():
        from matplotlib.ticker import MaxNLocator

        figure, grid = new_figure(4.6, 1.2 + 1.0 * len(rows), nrows=len(rows), sharex=True, squeeze=False)
        for axes, (name, values) in zip(grid[:, 0], rows, strict=True):
            for series, which in ((0, flags), (1, ~flags)):
                if which.any():
                    counts, _ = np.histogram(np.clip(values[which], *span), edges)
                    axes.stairs(counts / which.sum(), edges, fill=True, color=colour(series), alpha=0.55)
                    axes.stairs(counts / which.sum(), edges, color=colour(series), linewidth=1.0)
            if threshold is not None:
                axes.axvline(threshold, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
            axes.set_ylabel(name)
            axes.set_yticks([])
            axes.set_xlim(*span)
            axes.spines["left"].set_visible(False)
        grid[-1, 0].xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        grid[-1, 0].set_xlabel(score)
        svg = svg_of(figure)
    kinds = [("one person", 0, flags.any()), ("two people", 1, not flags.all())]
    legend = [LegendEntry(label=label, series=series, filled=True) for label, series, there in kinds if there]
    if threshold is not None:
        legend.append(LegendEntry(label="threshold", series=None, dashed=True))
    return Plot(svg=svg, title=title, alt=f"{title}: distributions of the {score}", legend=tuple(legend))


def ticks_plot(ticks: ArrayLike, *, title: str) -> Plot:
    """How many model evaluations the images took: a bar per number, or per range where there are many.

    Raises:
        ValueError: No images.
        ImportError: matplotlib is not installed.
    """
    values = np.asarray(ticks, np.int64)
    if not len(values):
        raise ArgumentError("ticks: expected at least one image, got none")
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // _BINS)
    edges = np.arange(low, high + width + 1, width) - 0.5
    with drawing():
        figure, axes = new_figure(4.6, 2.4)
        counts, _ = np.histogram(values, edges)
        axes.bar(edges[:-1] + width / 2, counts, width=0.86 * width, color=colour(0))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(False, axis="x")
        axes.set_xlabel("model evaluations")
        axes.set_ylabel("images")
        svg = svg_of(figure)
    return Plot(svg=svg, title=title)


def _percent(value: float, _: object = None) -> str:
    return f"{100 * value:g} %"
