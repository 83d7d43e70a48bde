"""``fastadv detect fit``: detectors of adversarial faces, fitted on what attacks make of a data set."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastadv.attacks.change import level_notes
from fastadv.core.errors import ArgumentError
from fastadv.core.files import TEMPORARY_SUFFIX, write_atomically
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource
from fastadv.detection import (
    Detector,
    Examples,
    FitConfig,
    Fitted,
    Representatives,
    Trajectory,
    auc,
    centroids,
    fit_network,
    medoids,
)
from fastadv.detection.calibration import images_needed, worst_of
from fastadv.detection.measures import rate_notes
from fastadv.detection.networks import side_by_side
from fastadv.detection.taps import EMBEDDING
from fastadv.distributed.cluster import Cluster, connected
from fastadv.engine import Engine
from fastadv.models import FaceModel
from fastadv.models.identity import state_hash
from fastadv.runs import list_hash
from fastadv.studies.detection import natural
from fastadv.studies.detection.attacks import AttackedImages, failures, made_and_read
from fastadv.studies.detection.configurations import CONFIGURATIONS, Configuration
from fastadv.studies.detection.features import Features, batches, embed
from fastadv.studies.detection.natural import aside
from fastadv.studies.detection.plan import PARTS
from fastadv.studies.detection.score import BACKBONE
from fastadv.studies.detection.setting import Clean, Setting, look
from fastadv.studies.detection.study import STUDY, StudyConfig, begin, identity_of, planned
from fastadv.training import HeadConfig

FITTED = "fit.json"
EVALUATION = "evaluation.json"
_RATES = (0.001, 0.01, 0.05)
_ACCURATE = 0.8
_HEAD_ADVICE = "only those are attacked; train its class head longer, or with more images of each person"


def detector_file(study: Path, label: str) -> Path:
    """Where a study keeps the detector of a label."""
    return study / "detectors" / f"{label}.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedDetector:
    """A detector with how it was found.

    Attributes:
        configuration: What it is.
        detector: Calibrated on the images that validate.
        epochs: That were run; where it is a mean, the most of one network.
        best: The epoch that was kept; where it is a mean, the latest.
        aucs: By group ("bim targeted"): against those natural examples that validate, as they are, changed, noisy,
            outsiders or of another source, against which it is lowest.
    """

    configuration: Configuration
    detector: Detector
    epochs: int
    best: int
    aucs: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The lowest of the AUCs."""
        return min(self.aucs.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectFit:
    """What a fit came to.

    Attributes:
        detectors: One for each configuration.
        cells: The adversarial images.
        accuracy: Share of the natural images, never trained on, that the network classifies rightly.
        naturals: How many natural examples of each kind there are, by part.
        notices: What a reader must know.
    """

    detectors: tuple[FittedDetector, ...]
    cells: tuple[AttackedImages, ...]
    accuracy: float
    naturals: Mapping[str, Mapping[str, int]]
    notices: tuple[str, ...]

    @property
    def best(self) -> FittedDetector:
        """The one whose lowest AUC on the images that validate is the highest; the first of equal ones."""
        return max(self.detectors, key=lambda found: found.worst)


def fit_folder(
    config: StudyConfig,
    source: FaceSource,
    model: FaceModel,
    *,
    path: Path,
    engine: Engine,
    configurations: Sequence[Configuration] = CONFIGURATIONS["relative"],
    fitting: FitConfig | None = None,
    head: HeadConfig | None = None,
    weights: Path | None = None,
    landmarks: Path | None = None,
    fresh: bool = False,
    cluster: Cluster | None = None,
    progress: Progress = silent,
) -> DetectFit:
    """Everything from faces to calibrated detectors, in one folder; killed and called again it goes on.

    A class head where the network has none; the attacks, targeted and untargeted, on the images set aside; class
    representatives; a detector for every configuration, in ``detectors/``; and ``fit.json`` with the figures. Called
    again with other detectors or another ``fitting``, it fits those on the same images, and forgets an evaluation of
    the former ones.

    Args:
        config: Of the study.
        source: The faces.
        model: The network under attack, in evaluation mode.
        path: The study's folder.
        engine: How attacks are run.
        configurations: The detectors.
        fitting: How they are fitted; its ``kind`` is each configuration's own, its seed the study's.
        head: How a class head is trained.
        weights: The network's file, for messages.
        landmarks: The file of the faces' points, for messages.
        fresh: Remove the study that the folder holds, and begin anew.
        cluster: Workers that attack and evaluate; all of them see the faces. Else this process does.
        progress: Told of every stage.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: There is no such cluster, or its workers die again and again.
        ValueError: As ``begin`` and ``fit_detectors``; no configuration.
        RunFolderError: The folder cannot take this study.
        ImageError, AlignmentError, DetectionFileError, OSError: A file cannot be read or written.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", sections 4 to 5.2.
    """
    if not configurations:
        raise ArgumentError("configurations: expected at least one detector, got none")
    with connected(cluster), ExitStack() as held:
        planned(config, source, model)  # refuses what cannot be before a folder is made
        if cluster is not None and (fresh or not (path / STUDY).is_file()):
            engine = cluster.engine(engine, model)
        known: dict[str, Any] = {"path": path, "weights": weights, "landmarks": landmarks, "fresh": fresh}
        own = identity_of(config, source, model, engine, head, **known)
        held.enter_context(own.hold(path, fresh=fresh))
        how: dict[str, Any] = {"engine": own.engine, "workers": cluster, "progress": progress}
        setting = begin(config, source, model, path=path, head=head, **how)
        clean = look(setting)
        cells, notices = fitted_cells(config, setting, clean)
        found, more = fit_detectors(setting, clean, cells, configurations, fitting or FitConfig())
        accuracy = float(setting.right(clean.natural).float().mean())
        if accuracy < _ACCURATE:
            more = (f"the network classifies only {accuracy:.1%} of the natural images rightly: {_HEAD_ADVICE}", *more)
        made = DetectFit(
            detectors=found,
            cells=cells,
            accuracy=accuracy,
            naturals=natural.counts(setting, clean, cells),
            notices=(*notices, *natural.notes(setting, config.outside), *more),
        )
        text = json.dumps(describe(made, setting), indent=1, sort_keys=True).encode() + b"\n"
        if not (path / FITTED).is_file() or (path / FITTED).read_bytes() != text:
            (path / EVALUATION).unlink(missing_ok=True)
            write_atomically(path / FITTED, text)
    return made


def fitted_cells(
    config: StudyConfig, setting: Setting, clean: Clean
) -> tuple[tuple[AttackedImages, ...], tuple[str, ...]]:
    """The images that the detectors are fitted on (and, those of the test, measured on), and notices.

    Raises:
        ValueError: As ``read_cells``.
        ImageError, AlignmentError, OSError: A file cannot be read or written.
    """
    cells, notices = made_and_read(setting, clean, config.attacks, config.runs, parts=PARTS)
    return cells, (*level_notes(spec.recipe().budget for spec in config.attacks), *notices, *failures(cells))


def fit_detectors(
    setting: Setting,
    clean: Clean,
    cells: Sequence[AttackedImages],
    configurations: Sequence[Configuration],
    fitting: FitConfig,
) -> tuple[tuple[FittedDetector, ...], tuple[str, ...]]:
    """Fit and calibrate a detector for every configuration, on the same examples; and notices.

    Examples of one attack, whatever its steps and budget, and one kind of goal are a group: all groups are drawn alike
    often, and so is every sort of natural examples. A group without an image in the fit or in the validation is left
    out.

    Raises:
        ValueError: No group is left.
        DetectionFileError: A checkpoint is damaged or of another fit.
        OSError: A file cannot be written.
    """
    groups = list(dict.fromkeys(cell.group for cell in cells))
    parts = {part: _parts(setting, clean, cells, part) for part in ("fit", "validate")}
    usable = [group for group in groups if all(group in found for found in parts.values())]
    if not usable:
        right = float(setting.right(clean.natural).float().mean())
        raise ArgumentError(
            "attack: expected successes on images of the fit and of the validation, got none; "
            f"the network classifies {right:.1%} of the natural images rightly: {_HEAD_ADVICE}"
        )
    notices = tuple(
        f"{group} has too few images; the detectors were fitted without it" for group in groups if group not in usable
    )
    calm = len(setting.splits.natural["validate"])
    notices += rate_notes(calm, tuple(rate for rate in _RATES if images_needed(rate) > calm))
    chosen = list(dict.fromkeys((c.representatives, c.metric, c.reading) for c in configurations))
    represented = {
        (name, reading): represent(setting, clean.rest, name, reading)
        for name, reading in dict.fromkeys((name, reading) for name, _, reading in chosen)
    }
    by_label: dict[str, FittedDetector] = {}
    for name, metric, reading in chosen:
        head = setting.classes if reading == "relative" else None
        own = represented[name, reading]
        trajectory = Trajectory(representatives=own, metric=metric, reading=reading, head=head)
        trajectory = trajectory.to(setting.model.device)
        seen, held = (_examples(trajectory, parts[part], usable) for part in ("fit", "validate"))
        for one in configurations:
            if (one.representatives, one.metric, one.reading) == (name, metric, reading):
                by_label[one.label] = _fitted(setting, one, trajectory, seen, held, fitting)
    return tuple(by_label[c.label] for c in configurations), notices


def represent(setting: Setting, rest: Features, name: str, reading: str) -> Representatives:
    """Centroids or medoids of the people of the data, of the images that are not set aside.

    **choice**: ``relative`` has the embedding as a further layer, where an image between two classes is near to none.
    """
    layers = (*setting.layers, EMBEDDING) if reading == "relative" else setting.layers
    build = medoids if name == "medoid" else centroids
    return build(
        batches(rest, setting.places(rest.names), layers),
        layers=layers,
        classes=setting.splits.people,
        model=setting.model.name,
        provenance={"weights": setting.weights, "images": str(len(rest))},
    )


def _parts(setting: Setting, clean: Clean, cells: Sequence[AttackedImages], part: str) -> dict[str, list[Features]]:
    """The natural examples of a part by sort, those as they are first, and the adversarial ones by group."""
    found: dict[str, list[Features]] = {}
    for kind in natural.kinds(setting, clean, cells, part):
        found.setdefault(kind.sort, []).append(kind.make())
    for cell in cells:
        own = cell.part(aside(setting, part))
        if own is not None:
            found.setdefault(cell.group, []).append(own)
    return found


def _examples(trajectory: Trajectory, found: Mapping[str, Sequence[Features]], groups: Sequence[str]) -> Examples:
    embeddings: list[Tensor] = []
    numbers: list[Tensor] = []
    # **choice**: every sort of natural examples is drawn alike often: of changed images there are the most
    numbered = [(-k, sort) for k, sort in enumerate(_sorts(found))] + list(enumerate(groups, 1))
    for number, group in numbered:
        for features in found[group]:
            embeddings.append(embed(trajectory, features))
            numbers.append(torch.full((len(features),), number, dtype=torch.int64))
    return Examples(embeddings=torch.cat(embeddings), groups=torch.cat(numbers), attacks=tuple(groups))


def _sorts(found: Mapping[str, Sequence[Features]]) -> tuple[str, ...]:
    return tuple(sort for sort in natural.SORTS if sort in found)


def _fitted(
    setting: Setting, chosen: Configuration, trajectory: Trajectory, seen: Examples, held: Examples, fitting: FitConfig
) -> FittedDetector:
    # **choice**: networks for each distance, and the mean of their scores: one network that reads both flags more of
    # the natural images that it has not seen
    count, kinds = len(trajectory.metrics), chosen.network.split("+")
    groups = [
        [_network(setting, replace(chosen, network=name, metric=metric), own, left, fitting) for name in kinds]
        for metric, own, left in zip(trajectory.metrics, seen.parts(count), held.parts(count), strict=True)
    ]
    found = [each for group in groups for each in group]
    network = found[0].network if len(found) == 1 else side_by_side(*([e.network for e in group] for group in groups))
    with torch.no_grad():
        blocks = held.embeddings.split(1024)
        scores = torch.cat([network(block.to(setting.model.device)).cpu() for block in blocks])
    calm = [scores[held.groups == -sort] for sort in range(held.kinds)]
    facts = {"attacks": ", ".join(seen.attacks), BACKBONE: state_hash(setting.model.backbone)}
    detector = Detector(trajectory=trajectory, network=network, provenance=facts)
    # **choice**: a rate is kept on every sort of natural examples, not only on those as they are, which come first
    worst, attacked = torch.from_numpy(worst_of(calm)), scores[held.groups > 0]
    detector = detector.calibrated(worst, attacked, rates=tuple(r for r in _RATES if images_needed(r) <= len(worst)))
    _replace(detector, setting.path, chosen.label)
    return FittedDetector(
        configuration=chosen,
        detector=detector,
        epochs=max(len(each.history) for each in found),
        best=max(each.best.epoch for each in found),
        aucs={
            group: min(auc(natural, scores[held.groups == k]) for natural in calm)
            for k, group in enumerate(held.attacks, 1)
        },
    )


def _network(setting: Setting, chosen: Configuration, seen: Examples, held: Examples, fitting: FitConfig) -> Fitted:
    stage = f"fitting {chosen.label}"
    how = replace(fitting, kind=chosen.network, seed=setting.seed % 2**63).for_reading(chosen.reading)
    checkpoint = setting.path / "fits" / f"{chosen.label}-{list_hash([how])[:8]}.pt"
    checkpoint.parent.mkdir(exist_ok=True)
    return fit_network(
        how,
        seen,
        held=held,
        device=setting.model.device,
        checkpoint=checkpoint,
        progress=lambda done, total: setting.progress(stage, done, total),
    )


def _replace(detector: Detector, study: Path, label: str) -> None:
    """Write a detector; the figures of the study go before another one of this name does, whose figures they are."""
    file = detector_file(study, label)
    file.parent.mkdir(exist_ok=True)
    new = file.with_name(f".{label}{TEMPORARY_SUFFIX}")
    try:
        detector.save(new)
        if not file.is_file() or file.read_bytes() != new.read_bytes():
            (study / EVALUATION).unlink(missing_ok=True)
            (study / FITTED).unlink(missing_ok=True)
            os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)


def describe(made: DetectFit, setting: Setting) -> dict[str, Any]:
    """The figures of a fit as plain JSON values."""
    splits = setting.splits
    return {
        "best": made.best.configuration.label,
        "detectors": [
            {
                **asdict(found.configuration),
                "label": found.configuration.label,
                "epochs": found.epochs,
                "best_epoch": found.best,
                "validation_auc": dict(found.aucs),
                "validation_worst": found.worst,
                "thresholds": None if found.detector.thresholds is None else found.detector.thresholds.described(),
            }
            for found in made.detectors
        ],
        "cells": [cell.described() for cell in made.cells],
        "people": len(splits.people),
        "layers": list(setting.layers),
        "rest": len(splits.rest),
        "natural": {part: len(names) for part, names in splits.natural.items()},
        "natural_kinds": {part: dict(found) for part, found in made.naturals.items()},
        "attacked": {part: len(names) for part, names in splits.attacked.items()},
        "accuracy": made.accuracy,
        "notices": list(made.notices),
    }
