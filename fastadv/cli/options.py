"""The options that commands share, and what is built from them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastadv import models
from fastadv.attacks import CATALOG, Recipe, by_name
from fastadv.attacks.options import with_options
from fastadv.training import LOSSES
from fastadv.workflows import inputs
from fastadv.workflows.aims import GOALS, IDENTIFIED

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
        help="A folder of identities (identity/image.jpg), LFW with its pairs.txt, an InsightFace .bin, or .tar shards."
    ),
]
Model = Annotated[ModelName, typer.Option(help="The architecture to attack.")]
Weights = Annotated[
    Path | None,
    typer.Option(help="Its weights: a safetensors file or a torch checkpoint. The synth-... networks bring theirs."),
]
Eps = Annotated[
    str | None,
    typer.Option(help="Radius of the budget, pixels in [0, 1]: 8/255 or 0.03. Default: the attack's, mostly 8/255."),
]
Steps = Annotated[int | None, typer.Option(help="Steps of an iterative attack. Default: the paper's.")]
Stop = Annotated[bool, typer.Option("--stop-at-success", help="Finish an image as soon as its goal is reached.")]
Margin = Annotated[
    float | None,
    typer.Option(help="How far beyond the goal's border a success must be to count for the attack (C&W's confidence)."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE, another option of the attack's own; may be given several times."),
]
DropRate = Annotated[float | None, typer.Option(help="Of the dfanet attacks. Default: the paper's for the network.")]
EnsembleOf = Annotated[
    list[str] | None,
    typer.Option(help="A further model of an e- attack, NAME or NAME=WEIGHTS; may be given several times."),
]
EnsembleWeights = Annotated[
    str | None, typer.Option(help="Weights of an e- attack such as 2,1,1; --model's first. Default: all alike.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Of every random number.")]
Slots = Annotated[int | None, typer.Option(help="Images in flight. Default: one batch.")]
Batch = Annotated[int | None, typer.Option(help="Images per evaluation; 0 measures. Default: 16 on a CPU, 64 on CUDA.")]
Prec = Annotated[Precision, typer.Option(help="Of the gradient; the verdict is always float32.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Landmarks = Annotated[Path | None, typer.Option(help="Five points per image; LFW's own landmarks.txt is found.")]
MetricOf = Annotated[Metric, typer.Option(help="How two embeddings are compared.")]
Limit = Annotated[int | None, typer.Option(help="Only so many.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Remove the run that --out holds, and begin anew; other files there stay.")
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
        eps=None if eps is None else inputs.parse_eps(eps),
        steps=steps,
        rate=drop_rate,
        others=[inputs.open_named_model(text, device=device) for text in ensemble or ()],
        weights=None if ensemble_weights is None else inputs.parse_weights(ensemble_weights),
    )
    return with_options(made, stop=stop, margin=margin, settings=inputs.parse_settings(settings or ()))
