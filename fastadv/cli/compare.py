"""``fastadv compare``: two runs of recipes side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastadv.cli.fields import takes_groups
from fastadv.cli.options import PrintOptions


@takes_groups
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Folder of 'fastadv study run', or of one recipe in it.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one, such as of another network or version.")],
    printing: PrintOptions,
) -> None:
    """Compare the results of two runs of 'fastadv study run': numbers, differences, and findings.

    A difference is that of independent runs, B minus A, with a 95 % interval; "differs" marks one whose interval leaves
    out 0.
    """
    from fastadv.cli.show import print_line, print_table
    from fastadv.report.pages.study import cell_text
    from fastadv.studies.papers.compare import compare_runs

    found = compare_runs(first, second)
    if printing.ends({"recipes": found}):
        return
    for one in found:
        rows = [
            (
                f"{cell['row']}: {cell['column']}",
                cell["networks"],
                *(cell_text(cell[name], percent=one["percent"]) for name in ("first", "second", "difference")),
                "differs" if cell["differs"] else "",
            )
            for cell in one["cells"]
        ]
        print_table(f"{one['recipe']}: {one['title']}", rows, ("", "network", "A", "B", "B - A", ""))
        for claim in one["claims"]:
            print_line(f"{claim['first']} | {claim['second']}: {claim['statement']} ({claim['networks']})")
