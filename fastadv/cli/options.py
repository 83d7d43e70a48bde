"""The options that commands share, in groups, and what is built from them."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typer import Option

from fastadv.cli.fields import Changed, Without
from fastadv.cli.names import ATTACKS, MODELS, Metric
from fastadv.core.errors import ArgumentError
from fastadv.core.numbers import parse_eps, parse_settings, parse_weights
from fastadv.core.remote import to_path

if TYPE_CHECKING:
    from fastadv.attacks import Recipe
    from fastadv.data import FaceSource
    from fastadv.data.face_search import FaceSearch
    from fastadv.distributed import Cluster
    from fastadv.engine import Engine
    from fastadv.models import MTCNN, FaceModel
    from fastadv.runs.inputs import PairChoice, RunInputs

SYNTHETIC = "synthetic"


class OneFace(str, Enum):
    largest, central = "largest", "central"


class Precision(str, Enum):
    fp32, tf32, bf16, auto = "fp32", "tf32", "bf16", "auto"


Landmarks = Annotated[Path | None, Option(help="Align by the five points in this file (default: LFW's landmarks.txt).")]
Weights = Annotated[Path | None, Option(help="Weights: safetensors, torch or pickle (default: shipped, of synth-...).")]
Model = Annotated[
    str,
    MODELS.option("Network: a name of 'fastadv models', an .onnx, or a .toml about one.", onnx=True),
]
TrainedModel = Annotated[str, MODELS.option("Network, a name of 'fastadv models'.")]
MetricOf = Annotated[Metric, Option(help="Compare embeddings by cosine or euclidean distance.")]
Decided = Annotated[
    float | None,
    Option("--threshold", help="Attack and decide at this threshold (default: those of the clean pairs)."),
]
Seed = Annotated[int, Option(min=0, max=2**64 - 1, help="Random seed.")]
Device = Annotated[str, Option(help="Run on this device: cpu, cuda or cuda:N.")]
_PRINTED = "Output"  # the part of the help
AsJson = Annotated[
    bool, Option("--json", help="Print one JSON object (docs/json.md), no progress.", rich_help_panel=_PRINTED)
]


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """The face detector, MTCNN."""

    panel: ClassVar[str] = "Face detector (MTCNN)"

    detector_weights: Annotated[
        Path | None, Option(help="Weights, a safetensors or torch file (default: an installed facenet-pytorch's).")
    ] = None
    least_face: Annotated[int, Option(min=12, help="Look for faces of at least N pixels.")] = 20
    no_refine: Annotated[
        bool, Option("--no-refine", help="Keep the landmarks of O-Net's first pass, those of facenet-pytorch.")
    ] = False

    def open(self, device: str) -> MTCNN:
        """The detector."""
        from fastadv.models import MTCNN

        return MTCNN(self.detector_weights, device=device, least_face=self.least_face, refine=not self.no_refine)


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """Whether the faces of photographs are detected and aligned, in place of landmarks; a base of groups with data."""

    panel: ClassVar[str] = "Input"

    align: Annotated[
        bool, Option("--align", help="Detect and align the face of each photograph, in place of --landmarks.")
    ] = False
    faces: Annotated[OneFace, Option(help="With --align: take the largest face, or the central.")] = OneFace.largest
    least_face: Annotated[int, Option(min=12, help="With --align: look for faces of at least N pixels.")] = 20
    detector_weights: Annotated[
        Path | None, Option(help="With --align: MTCNN's weights (default: of installed facenet-pytorch).")
    ] = None

    def search(self, data: Path | str, device: str) -> FaceSearch | None:
        """How faces are found; None where they are not.

        Raises:
            ArgumentError: A setting without --align, or --align for synthetic faces.
            CheckpointError: As the detector.
        """
        usual = AlignOptions(align=self.align)
        if not self.align:
            for name in ("faces", "least_face", "detector_weights"):
                if getattr(self, name) != getattr(usual, name):
                    raise ArgumentError(f"--{name.replace('_', '-')}: expected --align with it, got none")
            return None
        if str(data) == SYNTHETIC:
            raise ArgumentError("--align: expected photographs, got synthetic faces")
        from fastadv.data.face_search import FaceSearch

        detector = DetectorOptions(detector_weights=self.detector_weights, least_face=self.least_face)
        return FaceSearch(detector=detector.open(device), choice=self.faces.value)

    def same_faces(self, landmarks: Path | None) -> dict[str, object]:
        """The landmarks, or --align and those of its options that are not the usual ones, for the next command."""
        if not self.align:
            return {"landmarks": landmarks}
        named = {each.name: (getattr(self, each.name), each.default) for each in fields(AlignOptions)}
        return {
            name: value.value if isinstance(value, Enum) else value
            for name, (value, usual) in named.items()
            if value != usual
        }


ALIGNING = tuple(field.name for field in fields(AlignOptions))


@dataclass(frozen=True, kw_only=True)
class InputOptions(AlignOptions):
    """The faces and the network."""

    panel: ClassVar[str] = "Input"

    data: Annotated[Path, Option(help="Read faces: a folder, URL, LFW, .bin, .rec, .tar, image list, run.")]
    model: Model
    weights: Weights = None
    landmarks: Landmarks = None

    @property
    def again(self) -> dict[str, object]:
        """The same faces and network, for the next command."""
        named = {name: getattr(self, name) for name in ("data", "model", "weights")}
        return {**named, **self.same_faces(self.landmarks)}

    def open_model(self, device: str) -> FaceModel:
        """The network."""
        from fastadv.runs import inputs

        return inputs.open_model(self.model, self.weights, device=device)

    def open_faces(self, model: FaceModel, device: str, **kept: Any) -> FaceSource:
        """The faces, at the network's size; ``kept`` as ``open_faces`` takes it."""
        from fastadv.runs import inputs

        search = self.search(self.data, device)
        return inputs.open_faces_of(model, self.data, landmarks=self.landmarks, search=search, **kept)

    def inputs(self, device: str, **more: Any) -> RunInputs:
        """What a study is given, with ``more`` of it."""
        from fastadv.runs.inputs import RunInputs

        return RunInputs(
            data=self.data,
            model=self.model or None,
            weights=self.weights,
            landmarks=self.landmarks,
            search=self.search(self.data, device),
            device=device,
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is computed."""

    panel: ClassVar[str] = "Run"

    seed: Seed = 0
    slots: Annotated[
        int | None, Option(min=1, help="Images attacked at a time, a multiple of --batch (default: one batch).")
    ] = None
    batch: Annotated[
        int | None, Option(min=0, help="Images per gradient evaluation; 0: measure (default: 16; 64 on CUDA).")
    ] = None
    precision: Annotated[
        Precision | None, Option(help="Precision of gradients; auto: measure (default: fp32; bf16 on CUDA).")
    ] = None
    success_float: Annotated[
        bool, Option("--success-float", help="Measure success before rounding to 8 bits too (slower).")
    ] = False
    device: Device = "cpu"

    @property
    def engine(self) -> Engine:
        """How images are attacked, with open choices."""
        from fastadv.engine import Engine

        return Engine(
            slots=self.slots,
            batch=self.batch,
            precision=None if self.precision is None else self.precision.value,
            success_float=self.success_float,
        )

    def inputs(self, given: InputOptions, output: OutputOptions) -> RunInputs:
        """What the command's study is given."""
        return given.inputs(self.device, seed=self.seed, engine=self.engine, out=output.out, fresh=output.fresh)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Which Ray cluster a run is computed on, if any."""

    panel: ClassVar[str] = "Run"

    workers: Annotated[int | None, Option(min=1, help="With --ray: number of workers (default: 1).")] = None
    ray: Annotated[
        str | None, Option(metavar="CLUSTER", help="Compute on Ray: auto (this machine's cluster), local, HOST:PORT.")
    ] = None
    gpus_per_worker: Annotated[
        float | None, Option(min=0, help="With --ray: GPUs of a worker (default: 0; with --device cuda: 1).")
    ] = None

    def on(self, device: str) -> Cluster | None:
        """The cluster of a command with a device; None without one.

        Raises:
            ArgumentError: An option that goes with a cluster only, or a setting of the cluster is out of range.
        """
        if self.ray is None:
            for name in ("workers", "gpus_per_worker"):
                if getattr(self, name) is not None:
                    raise ArgumentError(f"{name}: expected it with --ray only, got {getattr(self, name):g}")
            return None
        from fastadv.distributed import Cluster

        usual = float(device.startswith("cuda"))
        gpus = usual if self.gpus_per_worker is None else self.gpus_per_worker
        return Cluster(address=self.ray, workers=self.workers or 1, gpus_per_worker=gpus)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the files go, and what is printed."""

    panel: ClassVar[str] = _PRINTED

    out: Annotated[Path | None, Option(help="Write to this folder.")]
    fresh: Annotated[bool, Option("--fresh", help="Remove the run that --out holds and start anew.")] = False

    @property
    def folder(self) -> Path:
        """The folder of a command that requires one."""
        assert self.out is not None
        return self.out


@dataclass(frozen=True, kw_only=True)
class PrintOptions:
    """What is printed."""

    panel: ClassVar[str] = _PRINTED

    as_json: AsJson = False
    quiet: Annotated[bool, Option("--quiet", help="Print nothing but errors and warnings.")] = False
    no_progress: Annotated[bool, Option("--no-progress", help="Show no progress bars.")] = False

    @property
    def without_bars(self) -> bool:
        """Whether there are no progress bars."""
        return self.as_json or self.quiet or self.no_progress

    def ends(self, found: object) -> bool:
        """Print what was found as JSON where that is wanted; whether nothing else is to be printed."""
        if self.as_json:
            print(json.dumps(found))
        return self.as_json or self.quiet


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(AlignOptions):
    """What is trained on: a folder, or synthetic images."""

    panel: ClassVar[str] = "Input"

    data: Annotated[str, Option(help="A folder of identities, or 'synthetic'.")]
    identities: Annotated[int, Option(help="With --data synthetic: number of people to train on.")] = 1000
    per_identity: Annotated[int, Option(help="With --data synthetic: images of each person.")] = 16
    landmarks: Landmarks = None
    cache: Annotated[Path | None, Option(help="Keep decoded images in this folder, for faster epochs.")] = None

    @property
    def folder(self) -> Path | str:
        """The folder, or ``"synthetic"``."""
        return self.data if self.data == SYNTHETIC else to_path(self.data)

    def images(self, device: str) -> dict[str, Any]:
        """What every training is given of them, and the device."""
        named = {name: getattr(self, name) for name in ("identities", "per_identity", "landmarks")}
        return {"data": self.folder, "search": self.search(self.folder, device), "device": device, **named}


TrainingRun = Annotated[RunOptions, Without("slots", "batch", "precision", "success_float")]
TrainingOutput = Annotated[
    OutputOptions,
    Changed("out", "Write weights, training.json and the checkpoint to this folder; continue an unfinished run."),
]


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Which pairs are used."""

    panel: ClassVar[str] = "Pairs"

    pairs: Annotated[
        Path | None,
        Option(
            help="Use the pairs of this list (a CSV first,second,same[,fold], or as CALFW, CPLFW and CFP have them) "
            "instead of LFW's pairs.txt."
        ),
    ] = None
    folds: Annotated[str | None, Option(help="Use only these folds, for example 1-2.")] = None
    limit: Annotated[int | None, Option(help="Use at most N pairs, half of each class, spread over the list.")] = None

    def choice(self) -> PairChoice:
        """The pairs of the study."""
        from fastadv.runs.inputs import PairChoice

        return PairChoice(file=self.pairs, folds=self.folds, limit=self.limit)


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """An attack with its settings."""

    panel: ClassVar[str] = "Attack"

    attack: Annotated[str | None, ATTACKS.option("Run this attack, a name of 'fastadv attacks'.")] = None
    eps: Annotated[
        str | None, Option(help="Radius such as 8/255 or 0.03, pixels in [0, 1] (default: the attack's).")
    ] = None
    steps: Annotated[
        int | None, Option(min=1, help="Number of steps of an iterative attack (default: the attack's).")
    ] = None
    stop: Annotated[bool, Option("--stop-at-success", help="Finish an image as soon as its goal is reached.")] = False
    margin: Annotated[
        float | None, Option(help="Margin (C&W's confidence) that success needs (default: the attack's).")
    ] = None
    settings: Annotated[
        list[str] | None, Option("--set", help="Set another parameter of the attack, NAME=VALUE; may be repeated.")
    ] = None
    drop_rate: Annotated[float | None, Option(help="Dropout rate for dfanet attacks (default: per architecture).")] = (
        None
    )
    ensemble: Annotated[
        list[str] | None,
        Option(help="Add NAME, NAME=WEIGHTS or FILE.onnx to an e- attack; may be repeated."),
    ] = None
    ensemble_weights: Annotated[
        str | None,
        Option(metavar="W,W", help="Weights of the networks of an e- attack, such as 2,1 (default: equal)."),
    ] = None

    def build(self, *, device: str) -> Recipe:
        """The attack, with the networks of an ensemble on the device."""
        from fastadv.attacks import by_name
        from fastadv.attacks.options import with_options
        from fastadv.runs.inputs import open_named_model

        assert self.attack is not None
        made = by_name(
            self.attack,
            eps=None if self.eps is None else parse_eps(self.eps),
            steps=self.steps,
            rate=self.drop_rate,
            others=[open_named_model(text, device=device) for text in self.ensemble or ()],
            weights=None if self.ensemble_weights is None else parse_weights(self.ensemble_weights),
        )
        return with_options(made, stop=self.stop, margin=self.margin, settings=parse_settings(self.settings or ()))

    def build_if_given(self, *, device: str, such_as: str, goal: object = None) -> Recipe | None:
        """The attack of a command that also runs without one; ``such_as`` names options for the message.

        Raises:
            ArgumentError: Options of an attack without the attack.
        """
        if self.attack is not None:
            return self.build(device=device)
        if goal is not None or self != AttackOptions():
            raise ArgumentError(f"--attack: expected it with {such_as} and other options of an attack, got none")
        return None

    def of(self, name: str) -> AttackOptions:
        """The options for an attack that the command has by another way."""
        return replace(self, attack=name)
