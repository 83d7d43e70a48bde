"""The folder of a detection study: what it was begun with, and its setting made again from it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from fastadv.attacks.spec import AttackSpec, check_attacks
from fastadv.core.differences import difference
from fastadv.core.errors import UNREADABLE, ArgumentError
from fastadv.core.files import write_atomically
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource, read_manifest
from fastadv.data.dealt_pairs import by_identity
from fastadv.data.hashes import KEPT
from fastadv.data.run_files import FolderKind, check_images, held
from fastadv.detection import LayerTap
from fastadv.detection.taps import EMBEDDING
from fastadv.engine import Engine
from fastadv.models import FaceModel
from fastadv.models.checkpoints import CheckpointError, read_state_dict
from fastadv.runs import RunIdentity, UsedFaces, list_hash
from fastadv.runs.inputs import open_faces_of
from fastadv.runs.workers import Workers
from fastadv.studies.detection.controls import Control, check_controls, fitted_controls
from fastadv.studies.detection.plan import Selection, Splits, draw_splits, fit_classes
from fastadv.studies.detection.setting import OtherFaces, Setting, open_other
from fastadv.training import HeadConfig, save_weights, train_head

STUDY = "study.json"
HEAD = "head.safetensors"
CLASSES = "classes.json"
_HEAD = "class_head."
_WRITTEN = (
    HEAD,
    CLASSES,
    "features",
    "attacks",
    "fits",
    "detectors",
    "fit.json",
    "evaluation.json",
    "knn.json",
    "report.html",
    KEPT,
    STUDY,
)
STUDY_FOLDER = FolderKind(mark=STUDY, what="study", written=_WRITTEN)

HEAD_EPOCHS, HEAD_LR = 300, 0.1
"""**choice**: the paper's 60 epochs at 1e-3 are for hundreds of images of a person. With the few that a small study
leaves, they are too few steps: 62 % of natural LFW faces were then classified rightly. From random weights these gave
96 % with four images of a person, and 99 % from the class means."""


def default_head(seed: int) -> HeadConfig:
    """How a class head is trained where nothing else is said."""
    return HeadConfig(epochs=HEAD_EPOCHS, lr=HEAD_LR, start="means", seed=seed % 2**63)


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
        split_by: What is shared out: ``"people"`` or ``"images"``.
        controls: Harmless changes of the natural images that are natural examples too, besides noise of the L2 norm of
            each adversarial image; None: ``fitted_controls``; (): neither, as in the paper.
        also_natural: Folders of faces of another source, as ``open_faces`` takes them, that are natural examples too.
        outside: Share of the people who are no class, and natural examples too.
        layers: To tap; None: the network's own.
        new_head: Train a class head although the network has one.
        classes: Who each logit of the network's own head is, or None.
        seed: Of every random number.

    Raises:
        ValueError: No attack and no run, or an attack, a control or a folder twice.
    """

    attacks: tuple[AttackSpec, ...]
    runs: tuple[str, ...] = ()
    natural: int = 10
    attacked: int = 10
    validate: float = 0.15
    test: float = 0.35
    split_by: str = "people"
    controls: tuple[Control, ...] | None = None
    also_natural: tuple[str, ...] = ()
    outside: float = 0.15
    layers: tuple[str, ...] | None = None
    new_head: bool = False
    classes: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_attacks(self.attacks)
        if not self.attacks and not self.runs:
            raise ArgumentError("attack: expected at least one, or a run of one, got none")
        if self.controls is None:
            object.__setattr__(self, "controls", fitted_controls(self.attacks))
        check_controls(self.controls or ())
        for name, folders in (("runs", self.runs), ("also_natural", self.also_natural)):
            if len(set(folders)) != len(folders):
                raise ArgumentError(f"{name}: expected different folders, got {', '.join(folders)}")

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
            outside=self.outside,
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
        plain["controls"] = tuple(Control(**control) for control in plain["controls"])
        for name in ("runs", "also_natural", "layers", "classes"):
            plain[name] = None if plain[name] is None else tuple(plain[name])
        return StudyConfig(**plain)


def claimed(path: Path) -> AbstractContextManager[None]:
    """The study's folder for this process alone; as `run_files.held`."""
    return held(path, STUDY_FOLDER)


def read_study(path: Path) -> dict[str, Any]:
    """What a study was begun with: ``config``, ``shown`` and ``versions``.

    Raises:
        ValueError: The folder holds no study, or its description is damaged.
    """
    file = path / STUDY
    if not file.is_file():
        raise ArgumentError(f"{path}: expected a study of 'fastadv detect fit', got a folder without {STUDY}")
    try:
        found = json.loads(file.read_bytes())
        config, software, shown = found["config"], found["versions"], dict(found.get("shown", {}))
    except UNREADABLE as error:
        raise ArgumentError(f"{file}: expected the description of a study, got {error!r}") from error
    if not isinstance(config, dict) or not isinstance(software, dict):
        raise ArgumentError(f"{file}: expected the description of a study, got one without config or versions")
    return {"config": config, "shown": shown, "versions": software}


def identity_of(
    config: StudyConfig,
    source: FaceSource,
    model: FaceModel,
    engine: Engine,
    head: HeadConfig | None = None,
    *,
    path: Path,
    weights: Path | None = None,
    landmarks: Path | None = None,
    fresh: bool = False,
) -> RunIdentity:
    """What the folder is held by and ``reopen`` reads.

    Args:
        config: Of the study.
        source: The faces.
        model: The network.
        engine: As the user gave it.
        head: How a class head is trained; None: ``default_head``.
        path: The study's folder, where choices and hashes of an earlier call are kept.
        weights: The network's file, for messages.
        landmarks: The file of the points, for messages.
        fresh: Whether the folder is to begin anew.
    """
    trained = model.head is None or config.new_head
    rules = {
        "head training": asdict(head or default_head(config.seed)) if trained else None,
        "contents of runs": {run: list_hash(read_manifest(run)) for run in config.runs},
        **{name: value for name, value in asdict(config).items() if name != "seed"},
    }
    return RunIdentity.of(
        "detect",
        model=model,
        weights=weights,
        engine=engine,
        seed=config.seed,
        faces=UsedFaces(source=source, landmarks=landmarks),
        others=_others(config, model),
        out=path,
        rules=rules,
        kind=STUDY_FOLDER,
        fresh=fresh,
    )


def _others(config: StudyConfig, model: FaceModel) -> dict[str, UsedFaces]:
    return {
        f"also_natural {folder}": UsedFaces(source=open_faces_of(model, Path(folder))) for folder in config.also_natural
    }


def planned(config: StudyConfig, source: FaceSource, model: FaceModel) -> tuple[Splits, tuple[str, ...] | None]:
    """Whose images go where, and who each logit is; None where a head is to be trained. Nothing is written.

    Raises:
        ValueError: The images do not suffice, a layer does not exist, the head does not fit the people, or a run cannot
            be read.
    """
    LayerTap(model=model, layers=config.layers)  # checks them
    if EMBEDDING in (config.layers or ()):
        raise ArgumentError(
            f"layers: expected submodules of the network, got {EMBEDDING!r}, which 'relative' reads anyway"
        )
    for run in config.runs:
        check_images(Path(run), read_manifest(run))
    splits = config.split(source.names)
    _opened(config, source, model, splits)
    if model.head is None or config.new_head:
        return splits, None
    if not isinstance(model.head, nn.Linear):
        raise ArgumentError(f"model: expected a linear class head, got {type(model.head).__name__}; train a new head")
    people = tuple(sorted(by_identity(source.names))) if config.classes is None else splits.people
    return splits, fit_classes(model.head.out_features, people, config.classes)


def _opened(config: StudyConfig, source: FaceSource, model: FaceModel, splits: Splits) -> tuple[OtherFaces, ...]:
    shares, seed = (config.validate, config.test), config.seed
    return tuple(open_other(each, model, source, splits, shares=shares, seed=seed) for each in config.also_natural)


def begin(
    config: StudyConfig,
    source: FaceSource,
    model: FaceModel,
    *,
    path: Path,
    engine: Engine,
    head: HeadConfig | None = None,
    workers: Workers | None = None,
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
        workers: Other processes that attack and evaluate; None: this one does.
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
        controls=config.controls or (),
        others=_opened(config, source, model, splits),
        path=path,
        engine=engine,
        seed=config.seed,
        workers=workers,
        progress=progress,
    )


def reopen(
    path: Path, source: FaceSource, model: FaceModel, *, progress: Progress = silent
) -> tuple[StudyConfig, Setting]:
    """The setting of a study that was fitted, from its folder, its faces and its network.

    Raises:
        ValueError: The folder holds no study, or the faces or the network are not the study's.
    """
    study = read_study(path)
    saved = study["config"]
    try:
        config = StudyConfig.from_json(saved)
        engine = Engine(**saved["engine"]).resolve(model)
    except (KeyError, TypeError, ValueError) as error:
        raise ArgumentError(f"{path / STUDY}: expected the description of a study, got {error!r}") from error
    faces, others = UsedFaces(source=source), _others(config, model)
    own = RunIdentity.of("detect", model=model, seed=config.seed, faces=faces, others=others, out=path)
    found = difference(
        {name: saved.get(name) for name in own.config},
        json.loads(json.dumps(dict(own.config))),
        where=STUDY,
        shown=(study["shown"], own.shown),
        remedy="give the study's own",
    )
    if found:
        raise ArgumentError(f"{path}: {found}")
    return config, begin(config, source, model, path=path, engine=engine, progress=progress)


def _with_head(
    model: FaceModel, source: FaceSource, splits: Splits, path: Path, config: HeadConfig, progress: Progress
) -> FaceModel:
    file = path / HEAD
    if file.is_file():
        state = read_state_dict(file)
        weight, bias = state.get(f"{_HEAD}weight"), state.get(f"{_HEAD}bias")
        if weight is None or bias is None or weight.shape != (len(splits.people), model.embedding_size):
            raise CheckpointError(
                f"{file}: expected a class head for {len(splits.people)} people, got another; remove the file"
            )
        head = nn.Linear(weight.shape[1], weight.shape[0])
        head.load_state_dict({"weight": weight, "bias": bias})
        model.head = head.to(model.device).requires_grad_(False).eval()
        return model
    result = train_head(config, model, Selection(source, splits.rest), progress=progress)
    classes = json.dumps(result.classes, ensure_ascii=False).encode() + b"\n"
    write_atomically(path / CLASSES, classes, fsync=True)  # the same call does not write it again where there is a head
    save_weights(result.model, file)
    return result.model
