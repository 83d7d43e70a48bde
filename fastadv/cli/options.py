"""The options that commands share, and what is built from them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastadv import models
from fastadv.attacks import CATALOG, Recipe, by_name
from fastadv.attacks.options import with_options
from fastadv.core.errors import ArgumentError
from fastadv.core.numbers import parse_eps, parse_settings, parse_weights
from fastadv.runs import inputs
from fastadv.runs.goals import GOALS, IDENTIFIED
from fastadv.training import LOSSES

AttackName = Enum("AttackName", {name: name for name in CATALOG}, type=str)  # type: ignore[misc]
ModelName = Enum("ModelName", {name: name for name in models.names()}, type=str)  # type: ignore[misc]

LossName = Enum("LossName", {name: name for name in LOSSES}, type=str)  # type: ignore[misc]


Goal = Enum("Goal", {name: name for name in GOALS}, type=str)  # type: ignore[misc]
IdentifyGoal = Enum("IdentifyGoal", {name: name for name in IDENTIFIED}, type=str)  # type: ignore[misc]


class Metric(str, Enum):
    cosine = "cosine"
    euclidean = "euclidean"


class Precision(str, Enum):
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    auto = "auto"


Data = Annotated[
    Path,
    typer.Option(
        help="Read faces from a folder of identities (identity/image.jpg), LFW with its pairs.txt, an InsightFace "
        ".bin, .tar shards, or the folder of a run."
    ),
]
Model = Annotated[ModelName, typer.Option(help="Architecture of the network.")]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Weights of the network: a safetensors file or a torch checkpoint (default for the synth-... networks: "
        "the weights that fastadv ships)."
    ),
]
Eps = Annotated[
    str | None,
    typer.Option(
        help="Largest perturbation (its radius), pixels in [0, 1], such as 8/255 or 0.03 "
        "(default: the attack's own, mostly 8/255)."
    ),
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Number of steps of an iterative attack (default: the attack's own).")
]
Stop = Annotated[bool, typer.Option("--stop-at-success", help="Finish an image as soon as its goal is reached.")]
Margin = Annotated[
    float | None,
    typer.Option(
        help="Margin by which the attack must pass the goal's border to succeed, C&W's confidence "
        "(default: the attack's own)."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set another option of the attack, NAME=VALUE; may be given several times."),
]
DropRate = Annotated[float | None, typer.Option(help="Dropout rate for dfanet attacks (default: per architecture).")]
EnsembleOf = Annotated[
    list[str] | None,
    typer.Option(help="Add a network to an e- attack, NAME or NAME=WEIGHTS; may be given several times."),
]
EnsembleWeights = Annotated[
    str | None,
    typer.Option(help="Weigh the networks of an e- attack, --model's first, such as 2,1,1 (default: all alike)."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Random seed.")]
Slots = Annotated[
    int | None,
    typer.Option(min=1, help="Attack this many images at a time, a multiple of --batch (default: one batch)."),
]
Batch = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Images per gradient evaluation; 0 measures which number is fastest (default: 16 on a CPU, 64 on CUDA).",
    ),
]
Prec = Annotated[
    Precision, typer.Option(help="Compute gradients in this precision; success is always measured in float32.")
]
Device = Annotated[str, typer.Option(help="Run on this device: cpu, cuda or cuda:N.")]
Landmarks = Annotated[
    Path | None,
    typer.Option(help="Align each image by its five points in this file (default: landmarks.txt in LFW's folder)."),
]
MetricOf = Annotated[Metric, typer.Option(help="Compare embeddings by this metric.")]
Limit = Annotated[int | None, typer.Option(help="Process at most N images.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Remove the run that --out holds and start anew; keep other files there.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and no progress.")]


def build_attack(
    name: AttackName,
    *,
    eps: str | None,
    steps: int | None,
    stop: bool = False,
    margin: float | None = None,
    settings: list[str] | None = None,
    drop_rate: float | None,
    ensemble: list[str] | None,
    ensemble_weights: str | None,
    device: str,
) -> Recipe:
    made = by_name(
        name.value,
        eps=None if eps is None else parse_eps(eps),
        steps=steps,
        rate=drop_rate,
        others=[inputs.open_named_model(text, device=device) for text in ensemble or ()],
        weights=None if ensemble_weights is None else parse_weights(ensemble_weights),
    )
    return with_options(made, stop=stop, margin=margin, settings=parse_settings(settings or ()))


def optional_attack(
    name: AttackName | None, *, such_as: str, goal: object = None, stop: bool = False, **given: Any
) -> Recipe | None:
    """The attack of a command that also runs without one; ``such_as`` names options for the message.

    Raises:
        ArgumentError: Options of an attack without the attack.
    """
    if name is not None:
        return build_attack(name, stop=stop, **given)
    given.pop("device")
    if stop or goal is not None or any(value is not None for value in given.values()):
        raise ArgumentError(f"--attack: expected it with {such_as} and other options of an attack, got none")
    return None
