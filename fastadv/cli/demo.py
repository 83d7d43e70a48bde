"""``fastadv demo``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastadv.cli.options import AsJson, Seed
from fastadv.cli.show import percent, progress_bars, table
from fastadv.workflows import demo as demonstrating


def demo(
    out: Annotated[Path, typer.Option(help="A new folder, or that of a demo to take up again.")] = Path("fastadv-demo"),
    pairs: Annotated[int, typer.Option(help="Pairs of synthetic faces, a multiple of 20.")] = demonstrating.PAIRS,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """The whole idea in a minute or two: synthetic faces, a shipped network, four attacks, and a report to look at."""
    with progress_bars(quiet=as_json) as progress:
        result = demonstrating.demo(out, seed=seed, pairs=pairs, progress=progress)
    if as_json:
        print(json.dumps({"report": str(result.report), "seconds": round(result.seconds, 1)}))
        return
    rows = [("clean", percent(result.runs[0].verification.clean.accuracy))]
    for made in result.runs:
        attacked = made.verification.attacked
        rows.append((made.label, percent(attacked.accuracy if attacked else None)))
    console = Console()
    console.print(table(f"{result.model}, {len(result.pairs)} pairs of synthetic faces", rows, ("", "accuracy")))
    console.print(f"{result.seconds:.0f} s; open {result.report}", highlight=False, markup=False, soft_wrap=True)
