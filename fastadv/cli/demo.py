"""``fastadv demo``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Option

from fastadv.cli.fields import takes_groups
from fastadv.cli.options import PrintOptions, Seed


@takes_groups
def demo(
    printing: PrintOptions,
    out: Annotated[Path, Option(help="Write to this new folder, or continue the demo in it.")] = Path("fastadv-demo"),
    pairs: Annotated[int, Option(help="Generate this many pairs of synthetic faces, a multiple of 20.")] = 300,
    seed: Seed = 0,
) -> None:
    """Run a demonstration in a minute or two: synthetic faces, a shipped network, four attacks and a report."""
    from fastadv.cli.show import percent, print_next, print_opened, print_table, progress_bars
    from fastadv.report.pages.demo import write_demo
    from fastadv.studies import demo as demonstrating

    with progress_bars(quiet=printing.without_bars) as progress:
        result = demonstrating.demo(out, seed=seed, pairs=pairs, progress=progress)
    page = write_demo(result)
    attacks = {made.label: asdict(made.summary) for made in (*result.runs, result.stopped)}
    if printing.ends({"report": str(page), "seconds": round(result.seconds, 1), "attacks": attacks}):
        return
    clean = result.runs[0].verification.clean
    rows: list[tuple[str, ...]] = [("clean", percent(clean.accuracy), *("–",) * 3)]
    for made in result.runs:
        attacked, summary = made.verification.attacked, made.summary
        shares = (summary.success, summary.met_before, summary.success_of_rest)
        rows.append((made.label, percent(attacked.accuracy if attacked else None), *map(percent, shares)))
    header = ("", "accuracy", "success", "met before", "success of the rest")
    print_table(f"{result.model}, {len(result.pairs)} pairs of synthetic faces", rows, header)
    print_opened(page, result.seconds)
    faces, threshold = out / demonstrating.FACES, round(clean.eer_threshold, 3)
    print_next("attack", "pgd", data=faces, model=result.model, threshold=threshold, limit=20, out="run")
