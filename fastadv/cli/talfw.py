"""The command ``talfw``."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from fastadv.cli.fields import Changed, Without, takes_groups
from fastadv.cli.options import AttackOptions, InputOptions, OutputOptions, PairOptions, PrintOptions, RunOptions
from fastadv.core.errors import ArgumentError

if TYPE_CHECKING:
    from fastadv.studies.talfw import measure as building


class StoredAs(str, Enum):
    png, jpeg = "png", "jpeg"


class Targets(str, Enum):
    all, one = "all", "one"


_PAPERS = "dfanet-di-m-fim"


@takes_groups
def talfw(
    given: InputOptions,
    pairs: PairOptions,
    attack: Annotated[AttackOptions, Changed("attack", default=_PAPERS), Without("stop", "margin", "settings")],
    run: RunOptions,
    output: Annotated[
        OutputOptions, Changed("out", "Write the new data set to this folder; continue an unfinished one.")
    ],
    printing: PrintOptions,
    targets: Annotated[
        Targets | None,
        Option(
            help="Move an image of several pairs towards all its partners, or towards one "
            "(default: all; one for dfanet and e- attacks)."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        Option(help="Cosine from which two images count as one person (default: at the EER of the clean pairs)."),
    ] = None,
    stored: Annotated[
        StoredAs, Option("--format", help="Write all images, changed or not, in this format.")
    ] = StoredAs.png,
    quality: Annotated[int | None, Option(min=1, max=100, help="JPEG quality of --format jpeg (default: 95).")] = None,
    grey: Annotated[
        bool,
        Option(
            "--grey",
            help="Change all channels of a grey image alike, so that writing it as grey loses nothing of the change.",
        ),
    ] = False,
) -> None:
    """Generate a transferable adversarial copy of a set of pairs, to evaluate black-box verifiers (TALFW).

    Few images that cover all pairs are attacked as aligned crops, and each change is warped back into the original
    image. The images of the pairs, changed or not, are written in one format (see --format) and in LFW's layout, with
    pairs and landmarks; grey images stay grey. Success is measured on the crops and again on the written files. The
    same command continues an interrupted run, which ends with the same bytes as one without interruption.

    Example: fastadv talfw --data lfw/ --model mobilefacenet --weights FILE --eps 10/255 --out talfw/
    """
    from fastadv.cli.show import attack_title, print_next, timed
    from fastadv.data.stored import QUALITY, ImageFormat
    from fastadv.runs.goals import check_goal
    from fastadv.studies.talfw.folder import TalfwPlan, build_folder

    if quality is not None and stored is not StoredAs.jpeg:
        raise ArgumentError(f"quality: expected --format jpeg with it, got {quality} for {stored.value}")
    written_as = ImageFormat(name=stored.value, quality=QUALITY if quality is None else quality)
    moves = attack.build(device=run.device)
    check_goal(moves, "impersonate")
    wanted = TalfwPlan(
        inputs=run.inputs(given, output),
        attack=moves,
        pairs=pairs.choice(),
        targets=None if targets is None else targets.value,
        threshold=threshold,
        stored=written_as,
        grey=grey,
    )
    (summary, found), seconds = timed(build_folder, wanted, quiet=printing.without_bars)
    if printing.ends({**asdict(summary), "reader": found, "seconds": round(seconds, 3)}):
        return
    title = f"{attack_title(moves)}, {given.model}"
    _print_summary(summary, title, output.folder, seconds)
    print_next("verify", *found, model="NAME", weights="FILE")


def _print_summary(summary: building.TalfwSummary, title: str, out: Path, seconds: float) -> None:
    from fastadv.cli.show import percent, print_attacks, print_table

    rows = [
        ("pairs", f"{summary.pairs}"),
        ("images changed, of all", f"{summary.changed} of {summary.images}"),
        ("pairs with both changed", f"{summary.both}"),
    ]
    for label, made, written in (
        ("towards others", summary.impersonation, summary.impersonation_written),
        ("away from their own", summary.evasion, summary.evasion_written),
    ):
        if made is not None:
            rows.append((f"written images {label}, success", f"{percent(written)} of {made.images}"))
    rows += [
        ("change left after alignment", percent(summary.kept)),
        ("largest change of a pixel, all changed images", f"{255 * summary.linf:.0f}/255"),
        ("L2, mean of all changed images", f"{summary.l2:.3f}"),
        ("time", f"{seconds:.1f} s"),
        ("images written as", summary.stored),
        ("written to", str(out)),
    ]
    print_table(title, rows)
    print_attacks({"towards others": summary.impersonation, "away from their own": summary.evasion}, "the crops")
