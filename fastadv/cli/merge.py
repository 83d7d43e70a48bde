"""``fastadv merge``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fastadv.cli.fields import takes_groups
from fastadv.cli.options import PrintOptions


@takes_groups
def merge(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of 'fastadv attack --shard'.")],
    printing: PrintOptions,
) -> None:
    """Merge the finished shards of a run into the run.

    The folder has the bytes that one process would have written, and the shards are removed. Shards that are missing,
    unfinished or of another run are an error, and nothing is changed. The same command continues an interrupted merge.

    Example: fastadv merge run/
    """
    from fastadv.cli.show import print_next, print_summary, timed
    from fastadv.data.manifest import iterate_manifest
    from fastadv.runs.attack import summarise
    from fastadv.runs.merging import merge_shards

    shards, seconds = timed(merge_shards, folder, quiet=printing.without_bars)
    summary = summarise(iterate_manifest(folder))
    if printing.ends({**asdict(summary), "shards": shards, "out": str(folder), "seconds": round(seconds, 3)}):
        return
    print_summary(summary, f"{shards} shards" if shards else "merged already", folder, seconds)
    print_next("report", folder, data="FACES")
