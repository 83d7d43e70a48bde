"""The command line: parse, call a workflow, print."""

from __future__ import annotations

import importlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from fastadv._version import __version__
from fastadv.attacks import CATALOG
from fastadv.cli.options import (
    AsJson,
    AttackName,
    Batch,
    Data,
    Device,
    Eps,
    Goal,
    Landmarks,
    Limit,
    LossName,
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
from fastadv.cli.show import errors, percent, print_attack, print_verification, progress_bars, table
from fastadv.data import RunFolder
from fastadv.engine import Engine
from fastadv.training import HeadConfig, TrainConfig
from fastadv.workflows import attack as attacking
from fastadv.workflows import demo as demonstrating
from fastadv.workflows import doctor as checking
from fastadv.workflows import inputs
from fastadv.workflows import report as reporting
from fastadv.workflows import train as training
from fastadv.workflows import verify as verifying

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Adversarial attacks on face recognition, at the full speed of the hardware.",
)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has: versions, CPU features, and which backend runs which operation, or why not."""
    report = checking.examine()
    if as_json:
        print(json.dumps(asdict(report)))
        return
    console = Console()
    console.print(table("fastadv doctor", list(report.facts), ("what", "found")))
    rows = [(b.op, b.backend, "yes" if b.available else "no", b.reason) for b in report.backends]
    console.print(table("Backends", rows, ("operation", "backend", "runs", "why")))


@app.command()
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
    moves = build_attack(name, eps, steps, stop, margin)
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


@app.command()
def verify(
    data: Data,
    model: Model,
    weights: Weights = None,
    pairs: Annotated[Path | None, typer.Option(help="CSV first,second,same[,fold] instead of LFW's pairs.txt.")] = None,
    folds: Annotated[str | None, typer.Option(help="Only these folds, for example 1-2.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only so many pairs, half of each class, spread over the list.")
    ] = None,
    attack: Annotated[AttackName | None, typer.Option(help="Attack the first image of every pair.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where verification.json, roc.svg and the images go.")] = None,
    eps: Eps = None,
    steps: Steps = None,
    stop: Stop = False,
    margin: Margin = 0.0,
    metric: MetricOf = Metric.cosine,
    landmarks: Landmarks = None,
    seed: Seed = 0,
    slots: Slots = None,
    batch: Batch = None,
    precision: Prec = Precision.fp32,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Verify pairs of faces, clean and under attack.

    Different people are attacked to match (impersonation), one person's images not to match (evasion); each pair is
    then decided at its fold's threshold from clean pairs, as a deployed verifier would.

    Example: fastadv verify --data lfw/ --model mobilefacenet --weights FILE --attack fim --eps 8/255 --out run/
    """
    if attack is None and (eps, steps, stop, margin) != (None, None, False, 0.0):
        raise ValueError("--eps, --steps, --stop-at-success and --margin need --attack")
    moves = None if attack is None else build_attack(attack, eps, steps, stop, margin)
    face_model = inputs.open_model(model.value, weights, device=device)
    source = inputs.open_faces(data, size=face_model.input_size[0], landmarks=landmarks)
    chosen = inputs.open_pairs(
        source, file=pairs, folds=None if folds is None else inputs.parse_folds(folds), limit=limit
    )
    engine = Engine(slots=slots, batch=batch, precision=precision.value)
    folder = None
    if out is not None and moves is not None:
        engine = inputs.settle(engine, face_model, out)
        config = run_config(
            "verify",
            face_model,
            weights,
            moves,
            engine,
            metric=metric.value,
            seed=seed,
            orders=inputs.list_hash(chosen),
            selection={"pairs": None if pairs is None else pairs.name, "folds": folds, "limit": limit},
        )
        folder = RunFolder.open(out, config)
    begin = time.perf_counter()
    try:
        with progress_bars(quiet=as_json) as progress:
            result = verifying.verify(
                source,
                chosen,
                face_model,
                metric=metric.value,
                attack=moves,
                folder=folder,
                seed=seed,
                engine=engine,
                progress=progress,
            )
        title = f"{model.value}, {len(chosen)} pairs" + (
            f", {moves.name}, {moves.budget.norm} {inputs.show_eps(moves.budget.eps)}" if moves else ""
        )
        described = {**verifying.describe(result), "seconds": round(time.perf_counter() - begin, 3)}
        if out is not None:
            verifying.save(result, out, title=title)
    finally:
        if folder is not None:
            folder.close()
    if as_json:
        print(json.dumps(described))
        return
    print_verification(result, title)
    if out is not None:
        Console().print(f"written to {out}", highlight=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="A new folder, or that of a demo to take up again.")] = Path("fastadv-demo"),
    pairs: Annotated[int, typer.Option(help="Pairs of synthetic faces, a multiple of 20.")] = demonstrating.PAIRS,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """The whole idea in a minute or two: synthetic faces, a shipped network, four attacks, and a report to look at."""
    with progress_bars(quiet=as_json) as progress:
        result = demonstrating.demo(out, seed=seed, pairs=pairs, progress=progress)
    if as_json:
        print(json.dumps({"report": str(result.report), "seconds": round(result.seconds, 1)}))
        return
    rows = [("clean", percent(result.runs[0].verification.clean.accuracy))]
    for made in result.runs:
        attacked = made.verification.attacked
        rows.append((made.label, percent(attacked.accuracy if attacked else None)))
    console = Console()
    console.print(table(f"{result.model}, {len(result.pairs)} pairs of synthetic faces", rows, ("", "accuracy")))
    console.print(f"{result.seconds:.0f} s; open {result.report}", highlight=False)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a run: of verify, attack or demo.")],
    data: Annotated[Path | None, typer.Option(help="Where the originals are; without it none are shown.")] = None,
    landmarks: Landmarks = None,
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in the folder.")] = None,
    examples: Annotated[int, typer.Option(help="Faces in the grid.")] = 12,
) -> None:
    """Draw the page of a run again: one file, no network, numbers, curves and faces."""
    print(reporting.render(folder, data=data, landmarks=landmarks, out=out, examples=examples))


@app.command()
def train(
    data: Annotated[str, typer.Option(help="A folder of identities, or 'synthetic'.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="Where weights, records and the checkpoint go; an unfinished run goes on.")],
    loss: Annotated[LossName | None, typer.Option(help="What is trained for. Default: cosface.")] = None,
    head: Annotated[bool, typer.Option("--head", help="Train a class head on the frozen network instead.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images. Default: 10; 60 for a head.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step. Default: 128; 256 for a head.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. Default: 0.1; 1e-3 for a head.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Start from these; for a head: of the network.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="CSV of pairs to validate on.")] = None,
    identities: Annotated[int, typer.Option(help="Synthetic people to train on.")] = 1000,
    per_identity: Annotated[int, typer.Option(help="Images of each of them.")] = 16,
    landmarks: Landmarks = None,
    cache: Annotated[Path | None, typer.Option(help="A folder for decoded images: faster epochs.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Mixed precision.")] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train a network, or a class head on a frozen one.

    Example: fastadv train --data faces/ --model synth-resnet --loss arcface --out trained/
    """
    where = data if data == "synthetic" else Path(data)
    usual: HeadConfig | TrainConfig = HeadConfig() if head else TrainConfig()
    epochs = usual.epochs if epochs is None else epochs
    batch = usual.batch if batch is None else batch
    lr = usual.lr if lr is None else lr
    with progress_bars(quiet=as_json) as progress:
        if head:
            found = asdict(
                training.train_class_head(
                    data=where,
                    model=model.value,
                    out=out,
                    config=HeadConfig(epochs=epochs, batch=batch, lr=lr, seed=seed),
                    weights=weights,
                    identities=identities,
                    per_identity=per_identity,
                    landmarks=landmarks,
                    device=device,
                    progress=progress,
                )
            )
        else:
            precision = "bf16" if bf16 else "fp32"
            loss_name = "cosface" if loss is None else loss.value
            found = asdict(
                training.train_network(
                    data=where,
                    model=model.value,
                    out=out,
                    config=TrainConfig(
                        loss=loss_name, epochs=epochs, batch=batch, lr=lr, precision=precision, seed=seed
                    ),
                    weights=weights,
                    pairs=pairs,
                    identities=identities,
                    per_identity=per_identity,
                    landmarks=landmarks,
                    cache=cache,
                    device=device,
                    progress=progress,
                )
            )
    if as_json:
        print(json.dumps(found))
        return
    rows = [(k, str(v)) for k, v in found.items() if k not in ("history", "best")]
    best = found.get("best") or {}
    rows += [(f"best {k}", f"{v:.4g}" if isinstance(v, float) else str(v)) for k, v in best.items()]
    Console().print(table("fastadv train", rows, ("", "")))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Run the benchmarks of a source checkout: 'fastadv bench ops'; 'fastadv bench --help' lists them."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        runner = importlib.import_module("bench.run")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the benchmarks are part of the source: run this in a checkout of fastadv ({error})"
        ) from error
    raise typer.Exit(runner.main(context.args))


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; a user's error is one sentence on standard error and exit code 2."""
    try:
        app(standalone_mode=True)
    except (ValueError, OSError, KeyError, ImportError, RuntimeError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        errors.print("[red]error:[/red]", Text(str(text)), highlight=False, soft_wrap=True)
        sys.exit(2)
