"""``fastadv status``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastadv.cli.fields import takes_groups
from fastadv.cli.options import PrintOptions

if TYPE_CHECKING:
    from fastadv.runs.status import Progressed

_HEADER = ("", "state", "images", "done", "left", "images/s", "latest image")


@takes_groups
def status(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or of its shards.")],
    printing: PrintOptions,
) -> None:
    """Show how far a run is: images done and left, their rate, and the last error.

    Only reads: the run may be written meanwhile. The rate is that of the latest 256 images, by the times of their
    files. The images themselves are not looked at. The last error says why the last call that had begun to write
    failed; a call that fails before its first image prints its error only.

    Example: fastadv status run/
    """
    from fastadv.cli.show import print_line, print_next, print_table
    from fastadv.runs.status import UNMERGED, run_status

    run, shards = run_status(folder)
    if printing.ends({**_plain(run), "shards": [{"name": name, **_plain(each)} for name, each in shards.items()]}):
        return
    rows = [_row(name, each) for name, each in shards.items()]
    print_table(str(folder), [*rows, _row("run", run)], _HEADER)
    if run.last_error is not None:
        print_line(f"last error: {run.last_error}")
    if run.state == UNMERGED:
        print_next("merge", folder)


def _plain(found: Progressed) -> dict[str, object]:
    rate, waited = found.images_per_second, found.seconds_since_image
    return {
        "state": found.state,
        "images": found.images,
        "done": found.done,
        "left": found.left,
        "images_per_second": None if rate is None else round(rate, 3),
        "seconds_since_image": None if waited is None else round(waited, 1),
        "last_error": found.last_error,
    }


def _row(name: str, found: Progressed) -> tuple[str, ...]:
    rate, waited = found.images_per_second, found.seconds_since_image
    counts = ("–" if count is None else f"{count:,}" for count in (found.images, found.done, found.left))
    shown = "–" if rate is None else f"{rate:.1f}", "–" if waited is None else f"{waited:,.0f} s ago"
    return (name, found.state, *counts, *shown)
