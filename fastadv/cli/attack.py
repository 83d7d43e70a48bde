"""``fastadv attack``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fastadv.attacks import CATALOG
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
    Goal,
    Landmarks,
    Limit,
    Margin,
    Metric,
    MetricOf,
    Model,
    Prec,
    Precision,
    Seed,
    Slots,
    Steps,
    Stop,
    Weights,
    build_attack,
    run_config,
)
from fastadv.cli.show import print_attack, progress_bars
from fastadv.data import RunFolder
from fastadv.engine import Engine
from fastadv.workflows import attack as attacking
from fastadv.workflows import inputs


def attack(
    name: Annotated[
        AttackName,
        typer.Argument(help="How to move: " + "; ".join(f"{k}: {e.what}" for k, e in CATALOG.items())),
    ],
    data: Data,
    model: Model,
    out: Annotated[
        Path, typer.Option(help="Where images, manifest.parquet and run.json go; an unfinished run goes on.")
    ],
    threshold: Annotated[float, typer.Option(help="The verifier's threshold; 'fastadv verify' measures it.")],
    weights: Weights = None,
    goal: Annotated[Goal, typer.Option(help="Not be recognised, or be taken for somebody.")] = Goal.impersonate,
    pairs: Annotated[
        Path | None, typer.Option(help="CSV first,second,same: attack first, with second as target.")
    ] = None,
    eps: Eps = None,
    steps: Steps = None,
    stop: Stop = False,
    margin: Margin = 0.0,
    drop_rate: DropRate = None,
    ensemble: EnsembleOf = None,
    ensemble_weights: EnsembleWeights = None,
    metric: MetricOf = Metric.cosine,
    landmarks: Landmarks = None,
    limit: Limit = None,
    seed: Seed = 0,
    slots: Slots = None,
    batch: Batch = None,
    precision: Prec = Precision.fp32,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Make adversarial faces from a folder.

    Without --pairs, every image goes for the first image of the next identity (impersonate), or away from its own
    embedding (evade; take an attack with a random start, such as pgd). A killed run goes on when started again with
    the same command, and ends with the same bytes.

    Example: fastadv attack fim --data faces/ --model mobilefacenet --weights FILE --threshold 0.31 --out adversarial/
    """
    moves = build_attack(
        name,
        eps=eps,
        steps=steps,
        stop=stop,
        margin=margin,
        drop_rate=drop_rate,
        ensemble=ensemble,
        ensemble_weights=ensemble_weights,
        device=device,
    )
    face_model = inputs.open_model(model.value, weights, device=device)
    source = inputs.open_faces(data, size=face_model.input_size[0], landmarks=landmarks)
    attacking.check_goal(goal.value, threshold, metric.value)
    orders = attacking.plan(source, goal=goal.value, pairs=pairs, limit=limit)
    engine = inputs.settle(Engine(slots=slots, batch=batch, precision=precision.value), face_model, out)
    config = run_config(
        "attack",
        face_model,
        weights,
        moves,
        engine,
        goal=goal.value,
        threshold=threshold,
        metric=metric.value,
        seed=seed,
        orders=inputs.list_hash(orders),
    )
    begin = time.perf_counter()
    with RunFolder.open(out, config) as folder, progress_bars(quiet=as_json) as progress:
        summary = attacking.attack_folder(
            source,
            face_model,
            moves,
            goal=goal.value,
            threshold=threshold,
            metric=metric.value,
            folder=folder,
            orders=orders,
            seed=seed,
            engine=engine,
            progress=progress,
        )
    print_attack(summary, moves, out, time.perf_counter() - begin, as_json=as_json)
