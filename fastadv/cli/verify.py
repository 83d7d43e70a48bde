"""``fastadv verify``."""

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
from fastadv.cli.show import attack_title, print_verification, progress_bars
from fastadv.core.errors import ArgumentError
from fastadv.core.numbers import parse_folds
from fastadv.engine import Engine
from fastadv.report.pages.curves import ROC, draw_verification
from fastadv.runs import RunIdentity, UsedFaces, inputs, list_hash, settle
from fastadv.runs.goals import check_goal
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
    given = (eps, steps, stop or None, margin, settings, drop_rate, ensemble, ensemble_weights)
    if attack is None and any(value is not None for value in given):
        raise ArgumentError("--attack: expected it with --eps, --steps and other options of an attack, got none")
    moves = None
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
        check_goal(moves, "impersonate")
    face_model = inputs.open_model(model.value, weights, device=device)
    source = inputs.open_faces(data, size=face_model.input_size[0], landmarks=landmarks)
    chosen = inputs.open_pairs(source, file=pairs, folds=None if folds is None else parse_folds(folds), limit=limit)
    engine = Engine(slots=slots, batch=batch, precision=precision.value)
    folder = None
    if out is not None:
        engine = settle(engine, face_model, out) if moves is not None else engine
        identity = RunIdentity.of(
            "verify",
            model=face_model,
            weights=weights,
            attack=moves,
            engine=None if moves is None else engine,
            seed=seed,
            faces=UsedFaces(source=source, names=[n for p in chosen for n in (p.first, p.second)], landmarks=landmarks),
            out=out,
            rules={
                "metric": metric.value,
                "pairs in order": list_hash(chosen),
                "selection": {"pairs": None if pairs is None else pairs.name, "folds": folds, "limit": limit},
            },
        )
        folder = identity.open(out, fresh=fresh)
    begin = time.perf_counter()
    try:
        with progress_bars(quiet=as_json) as progress:
            result = verifying.verify(
                source,
                chosen,
                face_model,
                metric=metric.value,
                attack=moves,
                folder=folder if moves is not None else None,
                seed=seed,
                engine=engine,
                progress=progress,
            )
        title = f"{model.value}, {len(chosen)} pairs{f', {attack_title(moves)}' if moves else ''}"
        described = {**verifying.describe(result), "seconds": round(time.perf_counter() - begin, 3)}
        if out is not None and folder is not None:
            folder.claim()
            verifying.save(result, out)
            draw_verification(result, out / ROC, title=title)
    finally:
        if folder is not None:
            folder.close()
    if as_json:
        print(json.dumps(described))
        return
    print_verification(result, title)
    if out is not None:
        Console().print(f"written to {out}", highlight=False, markup=False, soft_wrap=True)
