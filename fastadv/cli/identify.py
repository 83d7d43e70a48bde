"""``fastadv identify``."""

from __future__ import annotations

import json
import time
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
    IdentifyGoal,
    Landmarks,
    Margin,
    Metric,
    MetricOf,
    Model,
    Prec,
    Precision,
    Seed,
    Set,
    Slots,
    Steps,
    Stop,
    Weights,
    optional_attack,
)
from fastadv.cli.show import attack_title, percent, print_attacks, print_notes, print_written, progress_bars, table
from fastadv.engine import Engine
from fastadv.report.pages.curves import IDENTIFICATION, draw_identification
from fastadv.report.pages.identify import figures
from fastadv.runs.goals import GoalChoice
from fastadv.runs.inputs import RunInputs
from fastadv.studies import identify as identifying


def identify(
    data: Data,
    model: Model,
    weights: Weights = None,
    enrol: Annotated[
        int,
        typer.Option(help="Form each template from this many images; people without a further image are not enrolled."),
    ] = 2,
    neighbours: Annotated[
        int, typer.Option(help="Identify a face by a vote of this many nearest enrolled images.")
    ] = 3,
    limit: Annotated[
        int | None, typer.Option(help="Use at most N faces of enrolled people, spread over the list.")
    ] = None,
    attack: Annotated[AttackName | None, typer.Option(help="Attack the faces of enrolled people.")] = None,
    goal: Annotated[
        IdentifyGoal | None,
        typer.Option(
            help="Goal of the attack. identify-as: identified as the next enrolled person. misidentify: as any other "
            "person (default: identify-as)."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write identification.json, its figure and the images to this folder; required with --attack."
        ),
    ] = None,
    eps: Eps = None,
    steps: Steps = None,
    stop: Stop = False,
    margin: Margin = None,
    settings: Set = None,
    drop_rate: DropRate = None,
    ensemble: EnsembleOf = None,
    ensemble_weights: EnsembleWeights = None,
    metric: MetricOf = Metric.cosine,
    landmarks: Landmarks = None,
    seed: Seed = 0,
    slots: Slots = None,
    batch: Batch = None,
    precision: Prec = Precision.fp32,
    device: Device = "cpu",
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Identify faces in a gallery, clean and under attack.

    A person's template is the mean of their first --enrol images; their other images are identified. Faces of people
    who are not enrolled set the thresholds. A face is identified by the nearest template (rank 1) and by the nearest
    enrolled images; in the open set (TPIR at FPIR) only where the similarity reaches the threshold. Attacked faces are
    compared with the clean templates at the clean thresholds, as in a deployed system.

    Example: fastadv identify --data lfw/ --model mobilefacenet --weights FILE --attack knn-df --limit 500 --out run/
    """
    moves = optional_attack(
        attack,
        such_as="--goal, --eps",
        goal=goal,
        eps=eps,
        steps=steps,
        stop=stop,
        margin=margin,
        settings=settings,
        drop_rate=drop_rate,
        ensemble=ensemble,
        ensemble_weights=ensemble_weights,
        device=device,
    )
    aim = None
    if moves is not None:
        aim = GoalChoice(goal="identify-as" if goal is None else goal.value, metric=metric.value)
        aim.check_attack(moves)
    plan = identifying.IdentifyPlan(
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
        enrol=enrol,
        limit=limit,
        neighbours=neighbours,
        attack=moves,
        aim=aim,
        metric=metric.value,
    )
    begin = time.perf_counter()
    with progress_bars(quiet=as_json) as progress:
        result = identifying.identify_folder(plan, progress=progress)
    title = f"{model.value}, {result.clean.mated} faces of {result.clean.people} people" + (
        f", {attack_title(moves)}, {aim.goal}" if moves and aim else ""
    )
    if out is not None:
        draw_identification(result, out / IDENTIFICATION, title=title)
    if as_json:
        print(json.dumps({**identifying.describe(result), "seconds": round(time.perf_counter() - begin, 3)}))
        return
    _print(result, title, metric.value)
    print_written(out)


def _print(result: identifying.Identification, title: str, metric: str) -> None:
    header: tuple[str, ...] = ("", "clean", "attacked")
    rows = [(name, percent(before), percent(after)) for name, before, after in figures(identifying.describe(result))]
    shown = [row if result.attacked else row[:2] for row in rows]
    console = Console()
    console.print(table(title, shown, header if result.attacked else header[:2]))
    drawn = [rate for rate in result.clean.open_set if rate.threshold is not None]
    if drawn:
        thresholds = ", ".join(f"FPIR {rate.fpir:g} {rate.threshold:.4f}" for rate in drawn)
        console.print(
            f"thresholds from {result.clean.unmated} faces of people who are not enrolled ({metric}): {thresholds}",
            highlight=False,
            soft_wrap=True,
        )
    print_notes(result.clean.notes)
    print_attacks({result.aim or "": result.summary}, "the attack")
