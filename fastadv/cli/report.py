"""``fastadv report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastadv.cli.fields import takes_groups
from fastadv.cli.options import Landmarks


@takes_groups
def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a run of attack, verify, transfer, detect, defend or demo.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Read the original images from here, to show them and the changes (default: show none)."),
    ] = None,
    landmarks: Landmarks = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the page to this file (default: report.html in the folder).")
    ] = None,
    examples: Annotated[int, typer.Option(help="Show this many faces.")] = 12,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Compare with the changes of this other run; may be given several times."),
    ] = None,
) -> None:
    """Redraw the page of a run from its files: one HTML file with numbers, curves and faces."""
    from fastadv.report.pages import defences as defend_page
    from fastadv.report.pages import detection as detect_page
    from fastadv.report.pages import run as reporting
    from fastadv.report.pages import transfer as transfer_page
    from fastadv.runs import inputs
    from fastadv.studies.detection import study as detect_study

    if any((folder / name).is_file() for name in (transfer_page.TARGETED, transfer_page.UNTARGETED)):
        source = None if data is None else inputs.open_faces(data, size=112, landmarks=landmarks)
        print(transfer_page.render(folder, source=source, out=out))
        return
    if (folder / detect_study.STUDY).is_file():
        print(detect_page.render(folder, out=out))
        return
    if (folder / defend_page.FILE).is_file():
        print(defend_page.render(folder, out=out))
        return
    print(reporting.render(folder, data=data, landmarks=landmarks, out=out, examples=examples, beside=beside or ()))
