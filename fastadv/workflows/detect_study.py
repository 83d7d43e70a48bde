"""The folder of a detection study: what it was begun with, and its setting made again from it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from fastadv.core.errors import ArgumentError
from fastadv.data import FaceSource, read_manifest
from fastadv.data.files import write_atomically
from fastadv.data.lock import FolderLock
from fastadv.data.provenance import versions
from fastadv.data.writer import RunFolderError
from fastadv.detection import LayerTap
from fastadv.engine import Engine
from fastadv.models import FaceModel
from fastadv.models.checkpoints import CheckpointError, read_state_dict
from fastadv.training import HeadConfig, save_weights, train_head
from fastadv.workflows.detect_plan import AttackSpec, Selection, Splits, check_attacks, draw_splits, fit_classes
from fastadv.workflows.detect_setting import Setting
from fastadv.workflows.inputs import Progress, list_hash, silent, state_hash

STUDY = "study.json"
HEAD = "head.safetensors"
CLASSES = "classes.json"
_HEAD = "class_head."

HEAD_EPOCHS, HEAD_LR = 300, 0.1
"""**choice**: the paper's 60 epochs at 1e-3 are for hundreds of images of a person. With the few that a small study
leaves, they are too few steps: 62 % of natural LFW faces were then classified rightly, and 99 % with these."""


def default_head(seed: int) -> HeadConfig:
    """How a class head is trained where nothing else is said."""
    return HeadConfig(epochs=HEAD_EPOCHS, lr=HEAD_LR, seed=seed % 2**63)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What a study's findings depend on, besides the faces and the network.

    Attributes:
        attacks: What the detectors are fitted on.
        runs: Folders of ``fastadv attack`` whose images they are fitted on too.
        natural: Images of each person that stay as they are.
        attacked: Images of each person to attack.
        validate: Share that stops the fit and draws the thresholds.
        test: Share that measures.
        split_by: What is shared out: ``"images"`` or ``"people"``.
        layers: To tap; None: the network's own.
        new_head: Train a class head although the network has one.
        classes: Who each logit of the network's own head is, or None.
        seed: Of every random number.

    Raises:
        ValueError: No attack and no run, or an attack twice.
    """

    attacks: tuple[AttackSpec, ...]
    runs: tuple[str, ...] = ()
    natural: int = 10
    attacked: int = 10
    validate: float = 0.15
    test: float = 0.35
    split_by: str = "images"
    layers: tuple[str, ...] | None = None
    new_head: bool = False
    classes: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_attacks(self.attacks)
        if not self.attacks and not self.runs:
            raise ArgumentError("attack must be given at least once, or the run of one")
        if len(set(self.runs)) != len(self.runs):
            raise ArgumentError(f"runs must be different folders, got {', '.join(self.runs)}")

    def split(self, names: Sequence[str]) -> Splits:
        """Whose images go where.

        Raises:
            ValueError: As ``draw_splits``.
        """
        return draw_splits(
            names,
            natural=self.natural,
            attacked=self.attacked,
            validate=self.validate,
            test=self.test,
            by=self.split_by,
            seed=self.seed,
        )

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> StudyConfig:
        """The configuration from what ``asdict`` made of it.

        Raises:
            ValueError, TypeError, KeyError: The values are no configuration.
        """
        plain = {field.name: values[field.name] for field in fields(StudyConfig)}
        plain["attacks"] = tuple(AttackSpec(**spec) for spec in plain["attacks"])
        for name in ("runs", "layers", "classes"):
            plain[name] = None if plain[name] is None else tuple(plain[name])
        return StudyConfig(**plain)


@contextmanager
def claimed(path: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """The study's folder for this process alone: begun with a configuration, or gone on with under the same.

    Raises:
        RunFolderError: The folder holds something else or a study with another configuration (the first differing
            field is named), or another process writes it.
        OSError: The folder cannot be made or written.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path}: this is a file, expected a folder for the study")
    file = path / STUDY
    if path.is_dir() and not file.exists() and any(not p.name.startswith(".") for p in path.iterdir()):
        raise RunFolderError(f"{path}: not empty and not a study (no {STUDY})")
    path.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(path / ".lock")
    except BlockingIOError as error:
        raise RunFolderError(f"{path}: another process is writing this study") from error
    try:
        wanted = json.loads(json.dumps(config))
        if file.exists():
            saved = read_study(path)["config"]
            differing = [key for key in sorted({*saved, *wanted}) if saved.get(key) != wanted.get(key)]
            if differing:
                key = differing[0]
                before, now = (_short(values.get(key)) for values in (saved, wanted))
                raise RunFolderError(
                    f"{path}: holds a study with another configuration: {key}: {before} in the study, {now} now"
                )
        else:
            text = json.dumps({"config": wanted, "versions": versions()}, indent=1, sort_keys=True)
            write_atomically(file, text.encode() + b"\n", fsync=True)
        yield
    finally:
        lock.release()


def read_study(path: Path) -> dict[str, Any]:
    """What a study was begun with: ``config`` and ``versions``.

    Raises:
        ValueError: The folder holds no study, or its description is damaged.
    """
    file = path / STUDY
    if not file.is_file():
        raise ArgumentError(f"{path}: not a study of 'fastadv detect fit': it has no {STUDY}")
    try:
        found = json.loads(file.read_bytes())
        config, software = found["config"], found["versions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"{file}: not the description of a study: {error!r}") from error
    if not isinstance(config, dict) or not isinstance(software, dict):
        raise ArgumentError(f"{file}: not the description of a study: no config or no versions")
    return {"config": config, "versions": software}


def settled(engine: Engine, model: FaceModel, path: Path) -> Engine:
    """The engine with its open choices made; a study that goes on keeps the choices that it began with.

    Raises:
        ValueError: As ``Engine.resolve``; the folder holds a damaged study.
    """
    if (path / STUDY).is_file():
        saved = read_study(path)["config"].get("engine", {})
        if engine.precision == "auto":
            engine = replace(engine, precision=saved.get("precision", "auto"))
        if not engine.batch:
            engine = replace(engine, batch=saved.get("batch"), slots=None)
    return engine.resolve(model)


def configuration(
    config: StudyConfig, source: FaceSource, model: FaceModel, engine: Engine, head: HeadConfig | None = None
) -> dict[str, Any]:
    """What ``claimed`` compares and ``reopen`` reads: plain values."""
    trained = model.head is None or config.new_head
    return {
        "command": "detect",
        "model": model.name,
        "weights": state_hash(model),
        "names": list_hash(source.names),
        "engine": {"batch": engine.batch, "precision": engine.precision, "channels_last": engine.channels_last},
        "head": asdict(head or default_head(config.seed)) if trained else None,
        **asdict(config),
    }


def planned(config: StudyConfig, source: FaceSource, model: FaceModel) -> tuple[Splits, tuple[str, ...] | None]:
    """Whose images go where, and who each logit is; None where a head is to be trained. Nothing is written.

    Raises:
        ValueError: The images do not suffice, a layer does not exist, the head does not fit the people, or a run cannot
            be read.
    """
    LayerTap(model=model, layers=config.layers)  # checks them
    for run in config.runs:
        read_manifest(run)
    splits = config.split(source.names)
    if model.head is None or config.new_head:
        return splits, None
    if not isinstance(model.head, nn.Linear):
        raise ArgumentError(f"model must have a linear class head, got {type(model.head).__name__}; train a new head")
    return splits, fit_classes(model.head.out_features, splits.people, config.classes)


def begin(
    config: StudyConfig,
    source: FaceSource,
    model: FaceModel,
    *,
    path: Path,
    engine: Engine,
    head: HeadConfig | None = None,
    progress: Progress = silent,
) -> Setting:
    """Share the images out, and give the network a class head where it needs one. The folder is claimed already.

    A head is trained on the images that are not set aside, once; ``head.safetensors`` has network and head.

    Args:
        config: Of the study.
        source: The faces.
        model: In evaluation mode; left as it is.
        path: The study's folder.
        engine: With every choice made.
        head: How a head is trained; None: ``default_head``.
        progress: Told of every stage.

    Raises:
        ValueError: As ``planned``.
        TrainingError, CheckpointError: The head cannot be trained, or its file is damaged.
        ImageError, AlignmentError: A face cannot be read.
        OSError: Something cannot be written.
    """
    splits, classes = planned(config, source, model)
    if classes is None:
        model = _with_head(copy.deepcopy(model), source, splits, path, head or default_head(config.seed), progress)
        classes = splits.people
    return Setting(
        source=source,
        model=model,
        classes=classes,
        splits=splits,
        layers=config.layers or model.layers,
        path=path,
        engine=engine,
        seed=config.seed,
        progress=progress,
    )


def reopen(
    path: Path, source: FaceSource, model: FaceModel, *, progress: Progress = silent
) -> tuple[StudyConfig, Setting]:
    """The setting of a study that was fitted, from its folder, its faces and its network.

    Raises:
        ValueError: The folder holds no study, or the faces or the network are not the study's.
    """
    saved = read_study(path)["config"]
    try:
        config = StudyConfig.from_json(saved)
        engine = Engine(**saved["engine"]).resolve(model)
        weights, names, name = saved["weights"], saved["names"], saved["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise ArgumentError(f"{path / STUDY}: not the description of a study: {error!r}") from error
    if (weights, name) != (state_hash(model), model.name):
        raise ArgumentError(
            f"model must be the study's, {name} with the same weights, got {model.name} or other weights"
        )
    if names != list_hash(source.names):
        raise ArgumentError(f"data must be the study's, with the same names, got {len(source)} other images")
    return config, begin(config, source, model, path=path, engine=engine, progress=progress)


def _with_head(
    model: FaceModel, source: FaceSource, splits: Splits, path: Path, config: HeadConfig, progress: Progress
) -> FaceModel:
    file = path / HEAD
    if file.is_file():
        state = read_state_dict(file)
        weight, bias = state.get(f"{_HEAD}weight"), state.get(f"{_HEAD}bias")
        if weight is None or bias is None or weight.shape != (len(splits.people), model.embedding_size):
            raise CheckpointError(f"{file}: expected a class head for {len(splits.people)} people; remove the file")
        head = nn.Linear(weight.shape[1], weight.shape[0])
        head.load_state_dict({"weight": weight, "bias": bias})
        model.head = head.to(model.device).requires_grad_(False).eval()
        return model
    result = train_head(config, model, Selection(source, splits.rest), progress=progress)
    write_atomically(path / CLASSES, json.dumps(result.classes, ensure_ascii=False).encode() + b"\n")
    save_weights(result.model, file)
    return result.model


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
