"""The figure of ``docs/scale.md``: evaluations, time, what saturates, and what slow and failing workers add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.scale_tables import RESOURCES, part

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#7A4B94", "#B8860B", "#444444", "#CC79A7")
_SMALL = 7.5


def draw_scale(results: Mapping[str, Any]) -> Any:
    """Four panels of one result."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained", facecolor="white")
    axes = figure.subplots(2, 2).flat
    for axis, draw in zip(axes, (_evaluations, _days, _loads, _simulation), strict=True):
        draw(axis, results)
        axis.tick_params(labelsize=_SMALL)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure


def _named(results: Mapping[str, Any]) -> dict[str, str]:
    """The workers by name, with a mark on those that nobody has measured."""
    return {
        row["worker"]: f"{row['worker']}{' (assumed)' if row['source'] == 'assumed' else ''}"
        for row in part(results, "device")
    }


def _workers(axis: Any, counts: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set_xlabel("workers", fontsize=8)


def _evaluations(axis: Any, results: Mapping[str, Any]) -> None:
    rows = part(results, "ticks")
    total = sum(row["images"] for row in rows)
    axis.bar([r["evaluations"] for r in rows], [100 * r["images"] / total for r in rows], color=_COLOURS[0])
    axis.set_yscale("log")
    axis.set_xlabel("gradient evaluations of an image, at most 40", fontsize=8)
    axis.set_ylabel("% of images", fontsize=8)
    axis.set_title(f"Measured: PGD, stop at success, {total:,} synthetic faces, synth-mobile", fontsize=9, loc="left")


def _days(axis: Any, results: Mapping[str, Any]) -> None:
    rows, names = part(results, "load"), _named(results)
    for colour, worker in zip(_COLOURS, dict.fromkeys(row["worker"] for row in rows), strict=False):
        own = [row for row in rows if row["worker"] == worker]
        counts = [row["workers"] for row in own]
        axis.plot(counts, [row["days"] for row in own], "o-", markersize=4, color=colour, label=names[worker])
        axis.plot(counts, [row["days_in_shards"] for row in own], "s--", markersize=4, color=colour)
    _workers(axis, counts)
    axis.set_yscale("log")
    axis.set_ylabel("days", fontsize=8)
    axis.legend(fontsize=6.5, frameon=False)
    axis.set_title("10⁹ images; dashed: as shards of one run", fontsize=9, loc="left")


def _loads(axis: Any, results: Mapping[str, Any]) -> None:
    rows = part(results, "load")
    worker = next(reversed(dict.fromkeys(row["worker"] for row in rows)))
    own = [row for row in rows if row["worker"] == worker]
    for colour, (name, label) in zip(_COLOURS, RESOURCES.items(), strict=True):
        style = "s--" if name in ("list", "merge") else "o-"
        axis.plot(
            [r["workers"] for r in own], [100 * r[name] for r in own], style, markersize=4, color=colour, label=label
        )
    axis.axhline(100, color="#444444", linewidth=0.8)
    _workers(axis, [row["workers"] for row in own])
    axis.set_yscale("log")
    axis.set_ylabel("% of what there is", fontsize=8)
    axis.legend(fontsize=6.5, frameon=False)
    axis.set_title(f"Loads; each worker {_named(results)[worker]}", fontsize=9, loc="left")


def _simulation(axis: Any, results: Mapping[str, Any]) -> None:
    rows = part(results, "simulation")
    first, *_, last = dict.fromkeys(row["scenario"] for row in rows)
    for colour, way in zip(_COLOURS, dict.fromkeys(row["way"] for row in rows), strict=False):
        for scenario, style in ((last, "o-"), (first, "s:")):
            own = [row for row in rows if (row["scenario"], row["way"]) == (scenario, way)]
            counts, over = [row["workers"] for row in own], [row["over_ideal"] for row in own]
            bars = [[abs(row[f"over_ideal_{end}"] - row["over_ideal"]) for row in own] for end in ("low", "high")]
            label = way if scenario == last else None
            axis.errorbar(counts, over, bars, fmt=style, markersize=4, capsize=2, color=colour, label=label)
    _workers(axis, counts)
    axis.set_ylabel("simulated time over ideal", fontsize=8)
    axis.legend(fontsize=_SMALL, frameon=False)
    axis.set_title("Solid: speeds differ by 10 %, a failure a day; dotted: equal, none", fontsize=9, loc="left")
