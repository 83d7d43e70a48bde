"""Draw the results of ``ops``: ``python -m bench.plot bench/results/ops-cpu-DATE.json --out FILE.svg``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fastadv.report.roc import save_figure

_COLOURS = {
    "eager": "#9aa0a6",
    "torch.compile": "#c58b2b",
    "reference": "#c9ccd1",
    "cpu": "#1f6fb2",
    "cuda": "#3a8f3a",
    "triton": "#8a4fb0",
}


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
    axes.set_title(f"{results['device']}, {results['date']}, torch {results['torch']}", fontsize=9, loc="left")
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
    print(save_figure(draw(json.loads(args.results.read_text())), args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
