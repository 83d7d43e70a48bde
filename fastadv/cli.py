"""The command line: parse, call a workflow, print."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fastadv import models
from fastadv._version import __version__
from fastadv.attacks import CATALOG, SignGradient, by_name
from fastadv.data import RunFolder
from fastadv.engine import Engine
from fastadv.workflows import attack as attacking
from fastadv.workflows import doctor as checking
from fastadv.workflows import inputs
from fastadv.workflows import verify as verifying

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Adversarial attacks on face recognition, at the full speed of the hardware.",
)
_err = Console(stderr=True)

AttackName = Enum("AttackName", {name: name for name in CATALOG}, type=str)  # type: ignore[misc]
ModelName = Enum("ModelName", {name: name for name in models.names()}, type=str)  # type: ignore[misc]


class Goal(str, Enum):
    evade = "evade"
    impersonate = "impersonate"


class Metric(str, Enum):
    cosine = "cosine"
    euclidean = "euclidean"


class Precision(str, Enum):
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    auto = "auto"


Data = Annotated[Path, typer.Option(help="A folder of identities (identity/image.jpg), or LFW with its pairs.txt.")]
Model = Annotated[ModelName, typer.Option(help="The architecture to attack.")]
Weights = Annotated[Path, typer.Option(help="Its weights: .safetensors, .pt or .pth.")]
Eps = Annotated[
    str | None,
    typer.Option(help="Radius of the budget, pixels in [0, 1]: 8/255 or 0.03. Default: 8/255; 2.0 for L2."),
]
Steps = Annotated[int | None, typer.Option(help="Steps of an iterative attack. Default: the paper's.")]
Stop = Annotated[bool, typer.Option("--stop-at-success", help="Finish an image as soon as its goal is reached.")]
Margin = Annotated[float, typer.Option(help="With --stop-at-success: how far beyond the threshold to go.")]
Seed = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Of every random number.")]
Slots = Annotated[int | None, typer.Option(help="Images in flight. Default: one batch.")]
Batch = Annotated[int | None, typer.Option(help="Images per evaluation; 0 measures. Default: 16 on a CPU, 64 on CUDA.")]
Prec = Annotated[Precision, typer.Option(help="Of the gradient; the verdict is always float32.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Landmarks = Annotated[Path | None, typer.Option(help="Five points per image; LFW's own landmarks.txt is found.")]
MetricOf = Annotated[Metric, typer.Option(help="How two embeddings are compared.")]
Limit = Annotated[int | None, typer.Option(help="Only so many.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and no progress.")]


class _Rate(ProgressColumn):
    """Images per second since the stage began."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[inputs.Progress]:
    """A progress bar per stage on standard error, where that is a terminal; Ctrl-C inside ends with 130."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    stages: dict[str, Any] = {}
    try:
        with Progress(*columns, console=_err, disable=quiet or not _err.is_terminal) as bars:

            def tell(stage: str, done: int, total: int) -> None:
                if stage not in stages:
                    stages[stage] = bars.add_task(stage, total=total, completed=0)
                bars.update(stages[stage], completed=done)

            yield tell
    except KeyboardInterrupt:
        _err.print("stopped; what was finished is on disk, and the same command goes on from there", soft_wrap=True)
        raise typer.Exit(130) from None


def _attack(name: AttackName, eps: str | None, steps: int | None, stop: bool, margin: float) -> SignGradient:
    made = by_name(name.value, eps=None if eps is None else inputs.parse_eps(eps), steps=steps)
    return replace(made, stop_at_success=stop, margin=margin)


def _config(
    command: str, model: ModelName, weights: Path, attack: SignGradient, engine: Engine, **more: Any
) -> dict[str, Any]:
    """What a run's result depends on: a folder is only resumed with the same."""
    return {
        "command": command,
        "model": model.value,
        "weights": inputs.file_hash(weights),
        "attack": inputs.describe(attack),
        "engine": {
            "batch": engine.batch,
            "precision": engine.precision,
            "channels_last": engine.channels_last,
        },
        **more,
    }


def _table(title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for k, name in enumerate(header):
        table.add_column(name, justify="left" if k == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has: versions, CPU features, and which backend runs which operation, or why not."""
    report = checking.examine()
    if as_json:
        print(json.dumps(asdict(report)))
        return
    console = Console()
    console.print(_table("fastadv doctor", list(report.facts), ("what", "found")))
    rows = [(b.op, b.backend, "yes" if b.available else "no", b.reason) for b in report.backends]
    console.print(_table("Backends", rows, ("operation", "backend", "runs", "why")))


@app.command()
def attack(
    name: Annotated[
        AttackName,
        typer.Argument(help="How to move: " + "; ".join(f"{k}: {e.what}" for k, e in CATALOG.items())),
    ],
    data: Data,
    model: Model,
    weights: Weights,
    out: Annotated[
        Path, typer.Option(help="Where images, manifest.parquet and run.json go; an unfinished run goes on.")
    ],
    threshold: Annotated[float, typer.Option(help="The verifier's threshold; 'fastadv verify' measures it.")],
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
    moves = _attack(name, eps, steps, stop, margin)
    face_model = inputs.open_model(model.value, weights, device=device)
    source = inputs.open_faces(data, size=face_model.input_size[0], landmarks=landmarks)
    attacking.check_goal(goal.value, threshold, metric.value)
    orders = attacking.plan(source, goal=goal.value, pairs=pairs, limit=limit)
    engine = inputs.settle(Engine(slots=slots, batch=batch, precision=precision.value), face_model, out)
    config = _config(
        "attack",
        model,
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
    with RunFolder.open(out, config) as folder, _progress(quiet=as_json) as progress:
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
    _print_attack(summary, moves, out, time.perf_counter() - begin, as_json=as_json)


def _print_attack(
    summary: attacking.AttackSummary, moves: SignGradient, out: Path, seconds: float, *, as_json: bool
) -> None:
    if as_json:
        print(json.dumps({**asdict(summary), "out": str(out), "seconds": round(seconds, 3)}))
        return
    rows = [
        ("images", f"{summary.images}"),
        ("success, 8-bit image", _percent(summary.success)),
        ("success before rounding", _percent(summary.success_float)),
        ("evaluations an image, mean", f"{summary.mean_ticks:.2f}"),
        ("L2, mean", f"{summary.mean_l2:.3f}"),
        ("largest change, mean", f"{255 * summary.mean_linf:.2f}/255"),
        ("time", f"{seconds:.1f} s"),
        ("written to", str(out)),
    ]
    Console().print(_table(f"{moves.name}, {moves.budget.norm} {moves.budget.eps:.4g}", rows, ("", "")))
    _notice(summary.notices)


def _notice(lines: tuple[str, ...]) -> None:
    for line in lines:
        _err.print("[yellow]note:[/yellow]", Text(line), highlight=False, soft_wrap=True)


@app.command()
def verify(
    data: Data,
    model: Model,
    weights: Weights,
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
    moves = None if attack is None else _attack(attack, eps, steps, stop, margin)
    face_model = inputs.open_model(model.value, weights, device=device)
    source = inputs.open_faces(data, size=face_model.input_size[0], landmarks=landmarks)
    chosen = inputs.open_pairs(
        source, file=pairs, folds=None if folds is None else inputs.parse_folds(folds), limit=limit
    )
    engine = Engine(slots=slots, batch=batch, precision=precision.value)
    folder = None
    if out is not None and moves is not None:
        engine = inputs.settle(engine, face_model, out)
        config = _config(
            "verify",
            model,
            weights,
            moves,
            engine,
            metric=metric.value,
            seed=seed,
            orders=inputs.list_hash(chosen),
        )
        folder = RunFolder.open(out, config)
    begin = time.perf_counter()
    try:
        with _progress(quiet=as_json) as progress:
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
        title = f"{model.value}, {len(chosen)} pairs" + (f", {moves.name}" if moves else "")
        described = {**verifying.describe(result), "seconds": round(time.perf_counter() - begin, 3)}
        if out is not None:
            verifying.save(result, out, title=title)
    finally:
        if folder is not None:
            folder.close()
    if as_json:
        print(json.dumps(described))
        return
    _print_verification(result, title)
    if out is not None:
        Console().print(f"written to {out}", highlight=False)


def _print_verification(result: verifying.Verification, title: str) -> None:
    clean, attacked = result.clean, result.attacked
    rows: list[tuple[str, ...]] = [
        (
            "accuracy at clean thresholds",
            _percent(clean.accuracy),
            _percent(attacked.accuracy if attacked else None),
        ),
        ("AUC", _percent(clean.auc), _percent(attacked.auc if attacked else None)),
        ("EER", _percent(clean.eer), _percent(attacked.eer if attacked else None)),
        ("TAR at FAR 1e-3", _percent(clean.tar_at_far_1e3), "–"),
        ("impersonation accepted at EER", "–", _percent(attacked.impersonation_at_eer if attacked else None)),
        (
            "impersonation accepted at FAR 1e-3",
            "–",
            _percent(attacked.impersonation_at_far_1e3 if attacked else None),
        ),
        ("evasion refused at EER", "–", _percent(attacked.evasion_at_eer if attacked else None)),
    ]
    header: tuple[str, ...] = ("", "clean", "attacked")
    if attacked is None:
        rows, header = [row[:2] for row in rows[:4]], header[:2]
    console = Console()
    console.print(_table(title, rows, header))
    at_eer, at_far = clean.eer_threshold, clean.threshold_at_far_1e3
    console.print(
        f"thresholds from clean pairs ({clean.metric}): EER {at_eer:.4f}, FAR 1e-3 {at_far:.4f}", highlight=False
    )
    for part in (result.impersonation, result.evasion):
        if part is not None:
            _notice(part.notices)


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
        _err.print("[red]error:[/red]", Text(str(text)), highlight=False, soft_wrap=True)
        sys.exit(2)
