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
    Fresh,
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
    Set,
    Slots,
    Steps,
    Stop,
    Weights,
    build_attack,
)
from fastadv.cli.show import print_attack, progress_bars
from fastadv.engine import Engine
from fastadv.runs.goals import GoalChoice
from fastadv.runs.inputs import RunInputs
from fastadv.studies.attack import AttackPlan, attack_as_planned

_PAPERS = {"features": "match", "gallery": "identify-as"}  # what the paper of an attack wants, by its level


def attack(
    name: Annotated[
        AttackName,
        typer.Argument(help="Run this attack. " + "; ".join(f"{k}: {e.what}" for k, e in CATALOG.items())),
    ],
    data: Data,
    model: Model,
    out: Annotated[
        Path,
        typer.Option(help="Write images, manifest.parquet and run.json to this folder; continue an unfinished run."),
    ],
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Threshold of the verifier, as measured by 'fastadv verify'; needed for evade, impersonate and match. "
            "With --layer: largest distance between the layer's features that counts as a match."
        ),
    ] = None,
    weights: Weights = None,
    goal: Annotated[
        Goal | None,
        typer.Option(
            help="Goal of the attack. evade: not verified as oneself. impersonate: verified as the target. match: the "
            "target's features. identify-as, misidentify: nearest to the target's template in a gallery, or to another "
            "person's than one's own. classify-as, misclassify: the target's class of the network's class head, or "
            "another class than before (default: impersonate; match for df; identify-as for knn-df)."
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Attack the first image of each line of this CSV file (first,second,same), with the second as target."
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Layer whose features --goal match compares, by its name (default: the embedding)."),
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(
            help="Enrol these identities as templates for identify-as and misidentify (default: those of --data)."
        ),
    ] = None,
    neighbours: Annotated[
        int | None,
        typer.Option(help="Number of nearest templates that vote for identify-as and misidentify (default: 1)."),
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
    limit: Limit = None,
    seed: Seed = 0,
    slots: Slots = None,
    batch: Batch = None,
    precision: Prec = Precision.fp32,
    device: Device = "cpu",
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Generate adversarial faces from a data set.

    Without --pairs, the target of every image is the first image of the next identity; with --goal evade every image
    moves away from its own embedding, which needs an attack with a random start, such as pgd. The same command
    continues an interrupted run, which ends with the same bytes as one without interruption.

    Example: fastadv attack fim --data faces/ --model mobilefacenet --weights FILE --threshold 0.31 --out adversarial/
    """
    moves = build_attack(
        name,
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
    papers = _PAPERS.get(CATALOG[name.value].level, "impersonate")
    plan = AttackPlan(
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
        aim=GoalChoice(
            goal=papers if goal is None else goal.value,
            threshold=threshold,
            metric=metric.value,
            layer=layer,
            neighbours=neighbours,
        ),
        pairs=pairs,
        gallery=gallery,
        limit=limit,
    )
    begin = time.perf_counter()
    with progress_bars(quiet=as_json) as progress:
        summary = attack_as_planned(plan, progress=progress)
    print_attack(summary, moves, out, time.perf_counter() - begin, as_json=as_json)
