"""The figure of what made a detector's score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastadv.report.svg import INK, MUTED, colour, drawing, new_figure, svg_of

_HEIGHT = 0.26  # of a layer, in inches


def explanation_svg(
    layers: Sequence[str], totals: Sequence[float], leading: Sequence[tuple[str, Sequence[float]]], *, title: str
) -> str:
    """Bars of the contribution of each layer, with those of the leading columns inside, as an SVG file.

    Args:
        layers: Names, shallow to deep.
        totals: The contribution of each.
        leading: Names of columns with their contributions to each layer.
        title: Above the figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    places = np.arange(len(layers), dtype=np.float64)
    with drawing():
        figure, axes = new_figure(6.2, 1.5 + _HEIGHT * len(layers))
        axes.barh(places, totals, height=0.8, color=INK, alpha=0.18, label="whole layer")
        thin = 0.6 / max(1, len(leading))
        for k, (name, values) in enumerate(leading):
            axes.barh(
                places - 0.3 + thin * (k + 0.5), values, height=0.9 * thin, color=colour(k), label=f"of which {name}"
            )
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_yticks(places, labels=list(layers))
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel("contribution to the score (right: looks adversarial)")
        axes.set_title(title, fontsize=10.5, loc="left")
        figure.legend(loc="outside lower left", ncols=1 + len(leading), frameon=False)
        return svg_of(figure)
