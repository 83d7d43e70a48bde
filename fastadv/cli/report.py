"""``fastadv report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from fastadv.cli.fields import takes_groups
from fastadv.cli.options import Landmarks, PrintOptions


@takes_groups
def report(
    printing: PrintOptions,
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of a run of attack, verify, transfer, detect, defend or demo, or of a recipe."),
    ],
    data: Annotated[
        Path | None,
        Option(help="Read the original images from here, to show them and the changes (default: show none)."),
    ] = None,
    landmarks: Landmarks = None,
    out: Annotated[
        Path | None, Option(help="Write the page to this file (default: report.html in the folder).")
    ] = None,
    examples: Annotated[int, Option(help="Show this many faces.")] = 12,
    beside: Annotated[
        list[Path] | None, Option(help="Compare with the changes of this other run; may be given several times.")
    ] = None,
) -> None:
    """Redraw the page of a run from its files: one HTML file with numbers, curves and faces.

    Of a run with --align, faces are aligned again by the landmarks that it has kept.
    """
    from fastadv.cli.show import print_line, print_next
    from fastadv.data.kept_landmarks import is_found_list
    from fastadv.data.run_files import FOUND
    from fastadv.report.pages import defences as defend_page
    from fastadv.report.pages import detection as detect_page
    from fastadv.report.pages import run as reporting
    from fastadv.report.pages import study as study_page
    from fastadv.report.pages import transfer as transfer_page
    from fastadv.runs import inputs
    from fastadv.studies.detection import study as detect_study

    if landmarks is None and is_found_list(folder / FOUND[0]):
        landmarks = folder / FOUND[0]
    if any((folder / name).is_file() for name in (transfer_page.TARGETED, transfer_page.UNTARGETED)):
        source = None if data is None else inputs.open_faces(data, size=112, landmarks=landmarks)
        page = transfer_page.render(folder, source=source, out=out)
    elif (folder / detect_study.STUDY).is_file():
        page = detect_page.render(folder, out=out)
    elif (folder / defend_page.FILE).is_file():
        page = defend_page.render(folder, out=out)
    elif (folder / study_page.RESULTS).is_file():
        page = study_page.render(folder, out=out)
    else:
        page = reporting.render(folder, data=data, landmarks=landmarks, out=out, examples=examples, beside=beside or ())
    if printing.ends({"report": str(page)}):
        return
    print_line(f"open {page}")
    if data is None:
        print_next("report", folder, data="FACES")
    else:
        print_next("report", folder, data=data, landmarks=landmarks, beside="RUN")
