"""What a run's attacks did to pixels and to embeddings, beside other runs: figures 6 to 9 of Massoli et al."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastadv.core import text
from fastadv.data import ManifestRow
from fastadv.report.distributions import distribution_plot, levels_plot
from fastadv.report.parts import Plot

_WITHIN = 5  # grey levels, of which the paper gives the share


def series_of(runs: Sequence[tuple[str, Sequence[ManifestRow]]]) -> dict[str, list[ManifestRow]]:
    """The rows by attack, radius and goal, as a legend names them; a folder's name is added where two are alike.

    Args:
        runs: A folder's name and its rows each.
    """
    found: dict[str, list[ManifestRow]] = {}
    for folder, rows in runs:
        own: dict[str, list[ManifestRow]] = {}
        for row in rows:
            radius = f" {text.levels(row.eps)}" if row.eps < 1 else ""
            own.setdefault(f"{row.attack}{radius}, {row.goal}", []).append(row)
        for label, part in own.items():
            while label in found:
                label = f"{label} ({folder})"
            found[label] = part
    return found


def change_figures(series: Mapping[str, Sequence[ManifestRow]]) -> tuple[Plot, ...]:
    """How much pixels change, and how far embeddings end from the template of who they are taken for.

    A series of which nothing was noted is left out, and so is a figure without a series: runs of older versions, and
    goals without a gallery.
    """
    made = []
    levels = {label: [row.levels for row in rows if row.levels] for label, rows in series.items()}
    changed = [(label, _added(noted)) for label, noted in levels.items() if noted]
    if changed:
        made.append(levels_plot("How much the pixels change", changed, within=_WITHIN))
    distances = {
        label: [row.template_distance for row in rows if row.template_distance is not None]
        for label, rows in series.items()
    }
    far = [(label, values) for label, values in distances.items() if values]
    if far:
        made.append(
            distribution_plot(
                "How near the embeddings come",
                far,
                axis="distance to the template of the identified class",
                note=f"In the mean {', '.join(f'{np.mean(values):.2f} ({label})' for label, values in far)}.",
            )
        )
    return tuple(made)


def _added(levels: Sequence[tuple[int, ...]]) -> list[int]:
    """The counts of several images, level by level."""
    total = np.zeros(max(len(each) for each in levels), np.int64)
    for each in levels:
        total[: len(each)] += each
    found: list[int] = total.tolist()
    return found
