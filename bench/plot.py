"""Draw results of ``ops``, ``peers``, ``growth`` or ``scale``: ``python -m bench.plot RESULTS.json --out FILE.svg``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.scale_plot import draw_scale
from fastadv.report.roc import save_figure

_COLOURS = {
    "eager": "#9aa0a6",
    "torch.compile": "#c58b2b",
    "reference": "#c9ccd1",
    "cpu": "#1f6fb2",
    "cuda": "#3a8f3a",
    "triton": "#8a4fb0",
}


_LABELS = {
    "images in a stream": "images in a stream",
    "images in memory": "images in memory",
    "slots": "slots",
    "image size": "height and width, pixels",
    "classes": "classes",
    "templates": "gallery templates",
}


def draw_growth(results: dict[str, Any]) -> Any:
    """The time per image along each axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained", facecolor="white")
    axes = figure.subplots(2, 3)
    for place, (name, label) in zip(axes.flat, _LABELS.items(), strict=True):
        own = [r for r in results["rows"] if r["axis"] == name]
        place.plot([r["value"] for r in own], [r["ms_per_image"] for r in own], "o-", color=_COLOURS["cpu"])
        if name != "image size":
            place.set_xscale("log")
        if max(r["value"] for r in own) < 20 * min(r["value"] for r in own):
            place.set_xticks([r["value"] for r in own], [f"{r['value']}" for r in own])
            place.minorticks_off()
        place.set_ylim(0, 1.15 * max(r["ms_per_image"] for r in own))
        place.set_xlabel(label, fontsize=8)
        place.set_ylabel("ms per image", fontsize=8)
        place.tick_params(labelsize=7)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    figure.suptitle(_title(results), fontsize=9, x=0.01, ha="left")
    return figure


def draw_peers(results: dict[str, Any]) -> Any:
    """For each attack the runs of fastadv, in images per second relative to the fastest other implementation."""
    from matplotlib.figure import Figure

    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in results["rows"]:
        groups.setdefault((row["attack"], row["network"]), []).append(row)
    bars: list[tuple[str, float, str, bool]] = []
    ticks, labels = [], []
    for (attack, network), rows in groups.items():
        fastest = max((r for r in rows if not r["run"].startswith("fastadv")), key=lambda r: r["images_per_s"])
        own = [r for r in rows if r["run"].startswith("fastadv") and "compat" not in r["run"]]
        first = len(bars)
        for row in (fastest, *sorted(own, key=lambda r: r["images_per_s"])):
            colour = _COLOURS["eager" if row is fastest else "cpu"]
            bars.append((row["run"], row["images_per_s"] / fastest["images_per_s"], colour, bool(row["lost"])))
        ticks.append((first + len(bars) - 1) / 2)
        labels.append(f"{attack}\n{network}")
        bars.append(("", 0, "none", False))  # a gap
    figure = Figure(figsize=(9, 0.19 * len(bars) + 1), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for at, (name, ratio, colour, lost) in enumerate(bars):
        if name:
            axes.barh(at, ratio, 0.8, color=colour, alpha=0.45 if lost else 1)
            axes.text(ratio * 1.03, at, f"{ratio:.2g}  {name}{', lost' if lost else ''}", va="center", fontsize=6.5)
    axes.axvline(1, color="#444444", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_ylim(len(bars) - 1, -1)
    axes.set_xlim(left=0.3, right=4 * max(bar[1] for bar in bars))
    axes.set_xlabel("images per second, relative to the fastest other implementation", fontsize=8)
    axes.set_title(_title(results), fontsize=9, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _title(results: dict[str, Any]) -> str:
    return f"{results['device']}, {results['date']}, torch {results['torch']}"


def draw(results: dict[str, Any]) -> Any:
    """A bar for each backend of each operation: how many times as fast as eager PyTorch, on a logarithmic axis."""
    from matplotlib.figure import Figure

    rows = [r for r in results["rows"] if "backend" in r and r["backend"] not in ("eager", "reference")]
    groups = list(dict.fromkeys((r["op"], r["size"]) for r in rows))
    figure = Figure(figsize=(9, 0.62 * len(groups) + 1.2), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    seen: set[str] = set()
    for place, group in enumerate(groups):
        own = [r for r in rows if (r["op"], r["size"]) == group]
        height = 0.8 / len(own)
        for k, row in enumerate(own):
            label = row["backend"] if row["backend"] not in seen else None
            seen.add(row["backend"])
            at = place - 0.4 + (k + 0.5) * height
            axes.barh(at, row["times_eager"], height * 0.9, color=_COLOURS[row["backend"]], label=label)
            axes.text(row["times_eager"] * 1.03, at, f"{row['times_eager']:.2g}", va="center", fontsize=7)
    axes.axvline(1, color="#444444", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(groups)), [f"{op}\n{size}" for op, size in groups], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as eager PyTorch")
    axes.set_title(_title(results), fontsize=9, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def main() -> int:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, required=True, help=".svg or .png")
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    drawn = {"growth": draw_growth, "peers": draw_peers, "scale": draw_scale}.get(results["benchmark"], draw)
    print(save_figure(drawn(results), args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
