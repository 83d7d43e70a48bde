"""The command ``talfw``."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastadv.cli.options import (
    AsJson,
    AttackName,
    Batch,
    Data,
    Device,
    DropRate,
    EnsembleOf,
    EnsembleWeights,
    Eps,
    Fresh,
    Landmarks,
    Model,
    Prec,
    Precision,
    Seed,
    Slots,
    Steps,
    Weights,
    build_attack,
)
from fastadv.cli.show import attack_title, percent, print_attacks, progress_bars, table
from fastadv.core.errors import ArgumentError
from fastadv.data.stored import QUALITY, ImageFormat
from fastadv.engine import Engine
from fastadv.runs.goals import check_goal
from fastadv.runs.inputs import PairChoice, RunInputs
from fastadv.studies.talfw import measure as building
from fastadv.studies.talfw.folder import TalfwPlan, build_folder


class StoredAs(str, Enum):
    png = "png"
    jpeg = "jpeg"


class Targets(str, Enum):
    all = "all"
    one = "one"


_PAPERS = AttackName("dfanet-di-m-fim")


def talfw(
    data: Data,
    model: Model,
    out: Annotated[Path, typer.Option(help="Write the new data set to this folder; continue an unfinished one.")],
    weights: Weights = None,
    attack: Annotated[AttackName, typer.Option(help="Run this attack.")] = _PAPERS,
    targets: Annotated[
        Targets | None,
        typer.Option(
            help="Move an image of several pairs towards all its partners, or towards one "
            "(default: all; one for dfanet and e- attacks)."
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Use the pairs of this CSV file (first,second,same[,fold]) instead of LFW's pairs.txt."),
    ] = None,
    folds: Annotated[str | None, typer.Option(help="Use only these folds, for example 1-2.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use at most N pairs, half of each class, spread over the list.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Cosine from which two images count as one person (default: at the EER of the clean pairs)."),
    ] = None,
    eps: Eps = None,
    steps: Steps = None,
    drop_rate: DropRate = None,
    ensemble: EnsembleOf = None,
    ensemble_weights: EnsembleWeights = None,
    stored: Annotated[
        StoredAs, typer.Option("--format", help="Write all images, changed or not, in this format.")
    ] = StoredAs.png,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help=f"JPEG quality of --format jpeg (default: {QUALITY}).")
    ] = None,
    grey: Annotated[
        bool,
        typer.Option(
            "--grey",
            help="Change all channels of a grey image alike, so that writing it as grey loses nothing of the change.",
        ),
    ] = False,
    landmarks: Landmarks = None,
    seed: Seed = 0,
    slots: Slots = None,
    batch: Batch = None,
    precision: Prec = Precision.fp32,
    device: Device = "cpu",
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Generate a transferable adversarial copy of a set of pairs, to evaluate black-box verifiers (TALFW).

    Few images that cover all pairs are attacked as aligned crops, and each change is warped back into the original
    image. The images of the pairs, changed or not, are written in one format (see --format) and in LFW's layout, with
    pairs and landmarks; grey images stay grey. Success is measured on the crops and again on the written files. The
    same command continues an interrupted run, which ends with the same bytes as one without interruption.

    Example: fastadv talfw --data lfw/ --model mobilefacenet --weights FILE --eps 10/255 --out talfw/
    """
    if quality is not None and stored is not StoredAs.jpeg:
        raise ArgumentError(f"quality: expected --format jpeg with it, got {quality} for {stored.value}")
    written_as = ImageFormat(name=stored.value, quality=QUALITY if quality is None else quality)
    moves = build_attack(
        attack,
        eps=eps,
        steps=steps,
        drop_rate=drop_rate,
        ensemble=ensemble,
        ensemble_weights=ensemble_weights,
        device=device,
    )
    check_goal(moves, "impersonate")
    wanted = TalfwPlan(
        inputs=RunInputs(
            data=data,
            model=model.value,
            weights=weights,
            landmarks=landmarks,
            seed=seed,
            engine=Engine(slots=slots, batch=batch, precision=precision.value),
            device=device,
            out=out,
            fresh=fresh,
        ),
        attack=moves,
        pairs=PairChoice(file=pairs, folds=folds, limit=limit),
        targets=None if targets is None else targets.value,
        threshold=threshold,
        stored=written_as,
        grey=grey,
    )
    begin = time.perf_counter()
    with progress_bars(quiet=as_json) as progress:
        summary, found = build_folder(wanted, progress=progress)
    seconds = time.perf_counter() - begin
    if as_json:
        print(json.dumps({**asdict(summary), "reader": found, "seconds": round(seconds, 3)}))
        return
    title = f"{attack_title(moves)}, {model.value}"
    _print_summary(summary, title, out, seconds)
    Console().print(
        f"evaluate it with: fastadv verify {shlex.join(found)} --model ...",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _print_summary(summary: building.TalfwSummary, title: str, out: Path, seconds: float) -> None:
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
    Console().print(table(title, rows, ("", "")))
    print_attacks({"towards others": summary.impersonation, "away from their own": summary.evasion}, "the crops")
