"""Matplotlib figures as SVG for a page, in its light colours: the style sheet inverts them where it is dark."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastadv.core.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#1a1e23", "#59636e", "#d5dae0"
COLOURS = ("#0072b2", "#d55e00", "#00855f", "#7a4b94", "#a87500", "#6b7280")
_STYLE: Any = {
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "fastadv",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
}


def colour(series: int | None) -> str:
    """The colour of a series, 0 to 5 and around again; of the text for None."""
    return INK if series is None else COLOURS[series % len(COLOURS)]


@contextmanager
def drawing() -> Iterator[None]:
    """The settings under which a figure is built and turned into SVG.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise MissingPackageError(
            "figures: expected the package matplotlib, got no such package; pip install 'fastadv[report]'"
        ) from error
    with rc_context(_STYLE):
        yield


def new_figure(width: float, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """A free-standing figure of a size in inches and its axes; pyplot is not touched. Inside of `drawing`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**subplots)


def svg_of(figure: Figure) -> str:
    """The figure as an SVG file; the same figure gives the same text. Inside of `drawing`."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return buffer.getvalue().decode()
