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
    build_attack,
)
from fastadv.cli.show import attack_title, percent, print_attacks, print_notes, progress_bars, table
from fastadv.core.errors import ArgumentError
from fastadv.engine import Engine
from fastadv.report.pages.curves import IDENTIFICATION, draw_identification
from fastadv.report.pages.identify import figures
from fastadv.runs import RunIdentity, UsedFaces, inputs, list_hash, settle
from fastadv.runs.goals import GoalChoice
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
    given = (goal, eps, steps, stop or None, margin, settings, drop_rate, ensemble, ensemble_weights)
    if attack is None and any(value is not None for value in given):
        raise ArgumentError("--attack: expected it with --goal, --eps and other options of an attack, got none")
    if attack is not None and out is None:
        raise ArgumentError(f"--out: expected a folder for the images of --attack {attack.value}, got none")
    moves = aim = None
    if attack is not None:
        moves = build_attack(
            attack,
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
        aim = GoalChoice(goal="identify-as" if goal is None else goal.value, metric=metric.value)
        aim.check_attack(moves)
    face_model = inputs.open_model(model.value, weights, device=device)
    source = inputs.open_faces(data, size=face_model.input_size[0], landmarks=landmarks)
    roles = identifying.assign(source.names, enrol=enrol, limit=limit)
    source.check((*roles.enrolled, *roles.mated, *roles.unmated))
    engine = Engine(slots=slots, batch=batch, precision=precision.value)
    folder = None
    if out is not None:
        engine = settle(engine, face_model, out) if moves is not None else engine
        identity = RunIdentity.of(
            "identify",
            model=face_model,
            weights=weights,
            attack=moves,
            engine=None if moves is None else engine,
            seed=seed,
            faces=UsedFaces(source=source, names=[*roles.enrolled, *roles.mated, *roles.unmated], landmarks=landmarks),
            out=out,
            rules={
                **({"metric": metric.value} if aim is None else aim.describe()),
                "images by role (--enrol, --limit)": list_hash([roles]),
                "selection": {"enrol": enrol, "neighbours": neighbours, "limit": limit},
            },
        )
        folder = identity.open(out, fresh=fresh)
    begin = time.perf_counter()
    try:
        with progress_bars(quiet=as_json) as progress:
            result = identifying.identify(
                source,
                roles,
                face_model,
                metric=metric.value,
                neighbours=neighbours,
                attack=moves,
                aim=aim,
                folder=folder if moves is not None else None,
                seed=seed,
                engine=engine,
                progress=progress,
            )
        described = {**identifying.describe(result), "seconds": round(time.perf_counter() - begin, 3)}
        title = f"{model.value}, {result.clean.mated} faces of {result.clean.people} people" + (
            f", {attack_title(moves)}, {aim.goal}" if moves and aim else ""
        )
        if out is not None and folder is not None:
            folder.claim()
            identifying.save(result, out)
            draw_identification(result, out / IDENTIFICATION, title=title)
    finally:
        if folder is not None:
            folder.close()
    if as_json:
        print(json.dumps(described))
        return
    header: tuple[str, ...] = ("", "clean", "attacked")
    rows = [(name, percent(before), percent(after)) for name, before, after in figures(described)]
    shown = [row if result.attacked else row[:2] for row in rows]
    console = Console()
    console.print(table(title, shown, header if result.attacked else header[:2]))
    drawn = [rate for rate in result.clean.open_set if rate.threshold is not None]
    if drawn:
        thresholds = ", ".join(f"FPIR {rate.fpir:g} {rate.threshold:.4f}" for rate in drawn)
        console.print(
            f"thresholds from {result.clean.unmated} faces of people who are not enrolled ({metric.value}): "
            f"{thresholds}",
            highlight=False,
            soft_wrap=True,
        )
    print_notes(result.clean.notes)
    print_attacks({result.aim or "": result.summary}, "the attack")
    if out is not None:
        console.print(f"written to {out}", highlight=False, markup=False, soft_wrap=True)
