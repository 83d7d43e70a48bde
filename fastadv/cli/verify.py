"""``fastadv verify``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

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
from fastadv.cli.show import attack_title, print_verification, print_written, progress_bars
from fastadv.engine import Engine
from fastadv.report.pages.curves import ROC, draw_verification
from fastadv.runs.goals import check_goal
from fastadv.runs.inputs import PairChoice, RunInputs
from fastadv.studies import verify as verifying


def verify(
    data: Data,
    model: Model,
    weights: Weights = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Use the pairs of this CSV file (first,second,same[,fold]) instead of LFW's pairs.txt."),
    ] = None,
    folds: Annotated[str | None, typer.Option(help="Use only these folds, for example 1-2.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use at most N pairs, half of each class, spread over the list.")
    ] = None,
    attack: Annotated[AttackName | None, typer.Option(help="Attack the first image of every pair.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write verification.json, roc.svg and the images to this folder.")
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
    """Verify pairs of faces, clean and under attack.

    Pairs of different people are attacked to match (impersonation), pairs of one person not to match (evasion). Each
    pair is then decided at its fold's threshold from clean pairs, as a deployed verifier would.

    Example: fastadv verify --data lfw/ --model mobilefacenet --weights FILE --attack fim --eps 8/255 --out run/
    """
    moves = optional_attack(
        attack,
        such_as="--eps, --steps",
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
    if moves is not None:
        check_goal(moves, "impersonate")
    plan = verifying.VerifyPlan(
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
        pairs=PairChoice(file=pairs, folds=folds, limit=limit),
        attack=moves,
        metric=metric.value,
    )
    begin = time.perf_counter()
    with progress_bars(quiet=as_json) as progress:
        result = verifying.verify_folder(plan, progress=progress)
    title = f"{model.value}, {len(result.scores)} pairs{f', {attack_title(moves)}' if moves else ''}"
    if out is not None:
        draw_verification(result, out / ROC, title=title)
    if as_json:
        print(json.dumps({**verifying.describe(result), "seconds": round(time.perf_counter() - begin, 3)}))
        return
    print_verification(result, title)
    print_written(out)
