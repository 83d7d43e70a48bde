"""The figures of a study: a matrix of shares, and curves over a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fastadv.core.errors import ArgumentError
from fastadv.report.figures import DASHES
from fastadv.report.parts import LegendEntry, Plot
from fastadv.report.svg import INK, colour, drawing, new_figure, svg_of


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve.

    Attributes:
        label: In the legend.
        x: Ascending.
        y: As many.
        dashed: Drawn broken: what it differs in stands in the figure's note.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    dashed: bool = False


def heat_plot(
    values: ArrayLike, *, rows: Sequence[str], columns: Sequence[str], title: str, axes_names: tuple[str, str]
) -> Plot:
    """A matrix of shares in [0, 1], each cell as dark as its share, with the number in it.

    Args:
        values: ``(R, C)``; NaN leaves a cell empty.
        rows: R names.
        columns: C names.
        title: Above the figure.
        axes_names: What the rows are, and the columns.

    Raises:
        ValueError: Another shape than the names'.
        ImportError: matplotlib is not installed.
    """
    shares = np.asarray(values, np.float64)
    if shares.shape != (len(rows), len(columns)):
        raise ArgumentError(f"values: expected {(len(rows), len(columns))} by the names, got {shares.shape}")
    with drawing():
        from matplotlib.patches import Rectangle

        names = 1.5 + 0.07 * max(0, max(map(len, rows), default=0) - 24)  # inches; a letter is 0.07 wide
        figure, axes = new_figure(names + 1.15 * len(columns), 0.9 + 0.42 * len(rows))
        for r in range(len(rows)):
            for c in range(len(columns)):
                share = shares[r, c]
                if np.isnan(share):
                    continue
                cell = Rectangle((c, r), 1, 1, facecolor=colour(0), alpha=0.06 + 0.74 * share, linewidth=0)
                axes.add_patch(cell)
                axes.text(c + 0.5, r + 0.5, f"{100 * share:.0f} %", ha="center", va="center", color=INK)
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        axes.set_xticks(np.arange(len(columns)) + 0.5, [name.replace("_", " ") for name in columns])
        axes.set_yticks(np.arange(len(rows)) + 0.5, [name.replace("_", " ") for name in rows])
        axes.tick_params(length=0)
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.xaxis.tick_top()
        axes.set_ylabel(axes_names[0])
        axes.set_xlabel(axes_names[1])
        axes.xaxis.set_label_position("top")
        svg = svg_of(figure)
    return Plot(svg=svg, title=title, alt=f"{title}: {axes_names[0]} against {axes_names[1]}")


def line_plot(
    lines: Sequence[Line],
    *,
    title: str,
    x_name: str,
    y_name: str,
    log_x: bool = False,
    x_ticks: Sequence[float] | None = None,
    y_span: tuple[float, float] | None = None,
    level: tuple[str, float] | None = None,
    note: str = "",
) -> Plot:
    """Curves over a number, each with its own colour and dash.

    Args:
        lines: What to draw.
        title: Above the figure.
        x_name: Of the horizontal axis.
        y_name: Of the vertical axis.
        log_x: Draw the horizontal axis in powers of ten.
        x_ticks: Its marks, where it is one of powers; None: some of the curves' own places.
        y_span: The ends of the vertical axis; None: as the curves need.
        level: A name and a height, drawn across.
        note: Below the figure.

    Raises:
        ValueError: No curves, or one without points.
        ImportError: matplotlib is not installed.
    """
    if not lines or any(len(line.x) != len(line.y) or not line.x for line in lines):
        raise ArgumentError(
            "lines: expected at least one curve, each with as many x as y and at least one, got "
            f"{[(len(line.x), len(line.y)) for line in lines]}"
        )
    legend = []
    with drawing():
        figure, axes = new_figure(4.6, 3.1)
        for k, line in enumerate(lines):
            dash = DASHES[1 + k // 6] if line.dashed else "-"
            mark = "o" if len(line.x) < 12 else None
            axes.plot(line.x, line.y, color=colour(k), linewidth=1.6, linestyle=dash, marker=mark, markersize=3.2)
            legend.append(LegendEntry(label=line.label, series=k, dashed=line.dashed))
        if level is not None:
            axes.axhline(level[1], color=INK, linewidth=1.0, linestyle=(0, (4, 2)))
            legend.append(LegendEntry(label=level[0], series=None, dashed=True))
        if log_x:
            axes.set_xscale("log")
            places = sorted({x for line in lines for x in line.x})
            axes.set_xticks(places[:: -(-len(places) // 8)] if x_ticks is None else list(x_ticks), minor=False)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(lambda value, _: "")
        if y_span is not None:
            axes.set_ylim(*y_span)
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        svg = svg_of(figure)
    return Plot(
        svg=svg, title=title, alt=f"{title}: {', '.join(line.label for line in lines)}", legend=tuple(legend), note=note
    )
