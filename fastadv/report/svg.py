"""Matplotlib figures as SVG that lives inside a page: its colours, its font, no address of anything outside."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastadv.core.errors import ArgumentError, MissingPackageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = 6
# Colours that matplotlib takes for real ones; in the SVG each becomes the page's own, light or dark.
INK, MUTED, LINE = "#0a0b01", "#0a0b02", "#0a0b03"
_COLOURS = tuple(f"#0a0c{k:02x}" for k in range(SERIES))
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", **{c: f"--c{k}" for k, c in enumerate(_COLOURS)}}
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
    return INK if series is None else _COLOURS[series % SERIES]


@contextmanager
def drawing() -> Iterator[None]:
    """The settings under which a figure is built and turned into SVG.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise MissingPackageError("figures need matplotlib: pip install 'fastadv[report]'") from error
    with rc_context(_STYLE):
        yield


def new_figure(width: float, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """A free-standing figure of a size in inches and its axes; pyplot is not touched. Inside of `drawing`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**subplots)


def inline_svg(figure: Figure, *, key: str, label: str) -> str:
    """The figure as an `<svg>` element; the same figure gives the same text. Inside of `drawing`.

    Args:
        figure: What was drawn with the colours of this module.
        key: Put before every id, since several figures share a page; letters, digits and "-".
        label: What a screen reader says.

    Raises:
        ValueError: A key that is no id.
    """
    from html import escape

    from matplotlib.backends.backend_svg import FigureCanvasSVG

    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", key):
        raise ArgumentError(f"key: expected letters, digits and '-', got {key!r}")
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :].strip()
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    # the page has the style (a <style> here would be the whole page's); there is nothing of interest in the rest
    text = re.sub(r"<(metadata|style)\b.*?</\1>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<svg[^>]*>", f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(label)}">', text, count=1)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{key}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    return re.sub(r"#0a0[bc][0-9a-f]{2}", lambda match: f"var({_VARIABLES[match[0]]})", text)
