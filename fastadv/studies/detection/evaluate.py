"""``fastadv detect evaluate``: fitted detectors on images, attacks and attackers that they have not met."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fastadv.attacks.change import level_notes
from fastadv.attacks.spec import AttackSpec, check_attacks
from fastadv.core.errors import UNREADABLE, ArgumentError
from fastadv.core.fields import check_one_of
from fastadv.core.files import write_json
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource
from fastadv.defences.evade_detector import check_adapts
from fastadv.detection import AreaUnderCurve, Thresholds, load_detector
from fastadv.detection.knn import COMPONENTS, check_components
from fastadv.detection.measures import rate_notes
from fastadv.models import FaceModel
from fastadv.studies.detection import fit, measure
from fastadv.studies.detection.adaptive import FALSE_ALARM, AdaptiveRow, adaptive_rows
from fastadv.studies.detection.adaptive_curves import (
    AdaptivePoint,
    adaptive_points,
    has_curves,
    masking_notes,
    runs_to_transfer,
)
from fastadv.studies.detection.adaptive_goals import CLASS, GOALS, VERIFIER, AdaptiveGoal, PassVerifier, ReachClass
from fastadv.studies.detection.attacks import AttackedImages, failures, made_and_read
from fastadv.studies.detection.compare import Comparison, Curve, compare
from fastadv.studies.detection.configurations import Configuration
from fastadv.studies.detection.controls import AFTER, UNSEEN, Control, check_controls
from fastadv.studies.detection.directions import Direction, knn_directions, trajectory_directions
from fastadv.studies.detection.knn import KnnRow, knn_rows
from fastadv.studies.detection.natural import kinds
from fastadv.studies.detection.setting import Clean, Setting, kind, look, open_other
from fastadv.studies.detection.study import claimed, read_study, reopen


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to measure besides the attacks that the detectors were fitted on.

    Attributes:
        unseen: Attacks that no detector was fitted on.
        unseen_runs: Folders of ``fastadv attack`` with more of them.
        adaptive: Attacks that one who knows the best detector runs; each with every weight.
        weights: Of the detector's logit in such an attacker's loss, besides 0, which is always run to compare with.
        transfer_from: Folders of evaluated studies of other networks on the same faces: their images of the adaptive
            attacks are tried on this one.
        adaptive_goal: What the adaptive attacks are to reach besides: ``"class"`` or ``"verifier"``.
        adaptive_threshold: The verifier's, a cosine similarity; None: that of ``adaptive_far``.
        adaptive_far: A false accept rate on the study's natural images, which sets the verifier's threshold; None
            without a threshold: 0.001.
        knn_layers: Of the kNN score; none: all that the detectors read.
        k: Neighbours that vote; None: as many as a person has images in the index, in the mean. **choice**: the paper's
            1000 are about as many as its classes have, and a smaller index has less of each.
        dimensions: Of the PCA, as ``fit_knn`` takes them.
        controls: Harmless changes of natural images whose false alarms are counted, besides the study's.
        after: Harmless changes that adversarial images are put under, to detect those that still reach their goal.
        also_natural: Folders of another source's faces whose false alarms are counted, besides the study's.

    Raises:
        ValueError: A number out of range, an attack, control or folder twice, or an adaptive attack that cannot adapt
            to a detector.
    """

    unseen: tuple[AttackSpec, ...] = ()
    unseen_runs: tuple[str, ...] = ()
    adaptive: tuple[AttackSpec, ...] = ()
    weights: tuple[float, ...] = (0.1, 1.0, 10.0)
    transfer_from: tuple[str, ...] = ()
    adaptive_goal: str = CLASS
    adaptive_threshold: float | None = None
    adaptive_far: float | None = None
    knn_layers: tuple[str, ...] = ()
    k: int | None = None
    dimensions: int | float = COMPONENTS
    controls: tuple[Control, ...] = UNSEEN
    after: tuple[Control, ...] = AFTER
    also_natural: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_controls(self.controls)
        check_controls(self.after)
        for name, folders in (("also_natural", self.also_natural), ("transfer_from", self.transfer_from)):
            if len(set(folders)) != len(folders):
                raise ArgumentError(f"{name}: expected different folders, got {', '.join(folders)}")
        if self.transfer_from and not self.adaptive:
            raise ArgumentError("transfer_from: expected an adaptive attack to look for, got none; give --adaptive too")
        self._check_goal()
        check_attacks(self.unseen)
        check_attacks(self.adaptive)
        for spec in self.adaptive:
            check_adapts(spec.recipe())
        if not all(weight > 0 for weight in self.weights) or len(set(self.weights)) != len(self.weights):
            raise ArgumentError(f"weights: expected different positive numbers, got {self.weights}")
        check_components(self.dimensions)
        if self.k is not None and self.k < 1:
            raise ArgumentError(f"k: expected at least 1, got {self.k}")
        if len(set(self.knn_layers)) != len(self.knn_layers):
            raise ArgumentError(f"knn_layers: expected different layers, got {', '.join(self.knn_layers)}")

    def _check_goal(self) -> None:
        check_one_of("adaptive_goal", self.adaptive_goal, GOALS)
        threshold, far = self.adaptive_threshold, self.adaptive_far
        if self.adaptive_goal == VERIFIER and not self.adaptive:
            raise ArgumentError("adaptive_goal: expected an adaptive attack with it, got none; give --adaptive too")
        for name, value in (("adaptive_threshold", threshold), ("adaptive_far", far)):
            if value is not None and self.adaptive_goal != VERIFIER:
                raise ArgumentError(
                    f"{name}: expected none without a verifier, got {value:g}; give --adaptive-goal verifier"
                )
        if threshold is not None and far is not None:
            raise ArgumentError("adaptive_threshold: expected it or adaptive_far, got both")
        if threshold is not None and not -1 <= threshold <= 1:
            raise ArgumentError(f"adaptive_threshold: expected a cosine similarity in [-1, 1], got {threshold:g}")
        if far is not None and not 0 < far < 1:
            raise ArgumentError(f"adaptive_far: expected a rate in (0, 1), got {far:g}")


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionEvaluation:
    """What an evaluation found; everything is measured on images that no detector was fitted on.

    Attributes:
        best: Label of the detector that the fit chose.
        compared: All detectors on all groups of images.
        macro: ``(detector, kind)`` to the mean AUC over the families that it was fitted on.
        knn: The kNN scores.
        adaptive: The attackers who know.
        adaptive_points: What they reach with how many steps and which radius.
        verifier: Threshold and error rates of the verifier that they are to pass; None where they reach a class.
        directions: What the papers found, checked.
        cells: The adversarial images.
        natural: How many natural images of the test.
        notices: What a reader must know.
    """

    best: str
    compared: Comparison
    macro: Mapping[tuple[str, str], float]
    knn: tuple[KnnRow, ...]
    adaptive: tuple[AdaptiveRow, ...]
    adaptive_points: tuple[AdaptivePoint, ...]
    verifier: Mapping[str, float] | None
    directions: tuple[Direction, ...]
    cells: tuple[AttackedImages, ...]
    natural: int
    notices: tuple[str, ...]


def evaluate_folder(
    path: Path, source: FaceSource, model: FaceModel, config: EvaluateConfig, *, progress: Progress = silent
) -> DetectionEvaluation:
    """Measure a study's detectors, and write ``evaluation.json`` into its folder. Killed, it goes on.

    Args:
        path: Of ``fastadv detect fit``, finished.
        source: The same faces.
        model: The same network.
        config: What to measure.
        progress: Told of every stage.

    Raises:
        ValueError: The folder holds no finished study, or faces or network are not its.
        DetectionFileError, ImageError, AlignmentError, OSError: A file cannot be read or written.

    Source:
        Massoli et al. 2021, section 5; Carrara et al. 2017, section 5; Carlini and Wagner 2017, "Adversarial examples
        are not easily detected".
    """
    read_study(path)  # refuses a folder without one
    with claimed(path):
        best, configurations, groups, leaders = _fitted(path)
        study, setting = reopen(path, source, model, progress=progress)
        fitted_on = {spec.label for spec in study.attacks}
        for spec in config.unseen:
            if spec.label in fitted_on:
                raise ArgumentError(f"unseen: expected attacks that the study was not fitted on, got {spec.label}")
        index = len(setting.splits.rest)
        if config.k is not None and config.k > index:
            raise ArgumentError(
                f"k: expected at most {index}, the images in the index of the kNN score, got {config.k}"
            )
        for layer in config.knn_layers:
            check_one_of("knn_layers", layer, setting.layers)
        labels, device = [c.label for c in configurations], setting.model.device
        detectors = {label: load_detector(fit.detector_file(path, label), device=device) for label in labels}
        thresholds = detectors[best].thresholds
        if config.adaptive and thresholds is not None:
            _check_hidden(thresholds)
        for spec, study_of, aimed in product(config.adaptive, config.transfer_from, (True, False)):
            if has_curves(spec):
                runs_to_transfer(
                    setting, Path(study_of), spec, aimed, config.adaptive_goal
                )  # refused before anything is computed
        clean = look(setting)
        goal = _goal(config, setting, clean)
        seen, notices = fit.fitted_cells(study, setting, clean)
        unseen, more = _unseen(config, setting, clean)
        clashing = sorted(groups & {c.group for c in unseen})
        if clashing:
            notices = (*notices, f"{', '.join(clashing)}: the detectors were fitted on other settings of the attack")
        fitted_others = {other.content for other in setting.others}
        others = [
            open_other(folder, model, source, setting.splits, shares=None, seed=setting.seed)
            for folder in config.also_natural
        ]
        others = [other for other in others if other.content not in fitted_others]
        compared = compare(
            setting,
            clean,
            (seen, unseen),
            fitted_on=groups,
            detectors=detectors,
            best=best,
            naturals=kinds(setting, clean, seen, "test", controls=config.controls, others=others, unseen=unseen),
            after=config.after,
        )
        cells = (*seen, *unseen)
        known = {(cell.attack, cell.targeted): cell for cell in cells}
        adaptive = adaptive_rows(goal, detectors[best], best, config.adaptive, config.weights, known)
        pairs = tuple((leader, _other(configurations, leader)) for leader in leaders)
        points = adaptive_points(goal, detectors, pairs, config.adaptive, config.weights, config.transfer_from)
        macro = _macro(compared.measured)
        rows: tuple[KnnRow, ...] = ()
        if any(cell.made for cell in cells):
            layers = config.knn_layers or setting.layers
            rows = knn_rows(setting, clean, cells, layers=layers, k=config.k, dimensions=config.dimensions)
        made = DetectionEvaluation(
            best=best,
            compared=compared,
            macro=macro,
            knn=rows,
            adaptive=adaptive,
            adaptive_points=points,
            verifier=goal.described(),
            directions=(*trajectory_directions(compared.measured, macro, configurations, best), *knn_directions(rows)),
            cells=cells,
            natural=len(setting.splits.natural["test"]),
            notices=(
                *notices,
                *more,
                *masking_notes(points),
                *_unchanged(cells, config),
                *rate_notes(len(setting.splits.natural["test"]), measure.FALSE_ALARMS),
            ),
        )
        write_json(path / fit.EVALUATION, describe(made, config))
    return made


def _goal(config: EvaluateConfig, setting: Setting, clean: Clean) -> AdaptiveGoal:
    """What the adaptive attacks are to reach besides passing the detector."""
    if config.adaptive_goal == CLASS:
        return ReachClass(setting=setting, clean=clean)
    return PassVerifier.at(setting, clean, threshold=config.adaptive_threshold, far=config.adaptive_far)


def _fitted(path: Path) -> tuple[str, tuple[Configuration, ...], frozenset[str], tuple[str, ...]]:
    """The best detector's label, all detectors, the groups that they were fitted on, and the best of each reading."""
    try:
        found = json.loads((path / fit.FITTED).read_bytes())
        configurations = tuple(
            Configuration(
                network=d["network"],
                representatives=d["representatives"],
                metric=d["metric"],
                reading=d.get("reading", "raw"),  # an earlier version has none
            )
            for d in found["detectors"]
        )
        groups = frozenset(group for d in found["detectors"] for group in d["validation_auc"])
        best = str(found["best"])
        ranked = sorted(zip(configurations, found["detectors"], strict=True), key=lambda c: -_validated(c[1]))
    except UNREADABLE as error:
        raise ArgumentError(f"{path}: expected a finished study of 'fastadv detect fit', got {error!r}") from error
    if best not in {c.label for c in configurations}:
        raise ArgumentError(f"{path / fit.FITTED}: expected a best detector that it lists, got {best!r}")
    leaders = {c.reading: c.label for c, _ in reversed(ranked)}
    own = next(c.reading for c in configurations if c.label == best)
    return best, configurations, groups, (best, *(label for reading, label in leaders.items() if reading != own))


def _validated(found: Mapping[str, Any]) -> float:
    """What a detector is chosen by; an earlier version has the mean in place of the lowest AUC."""
    return float(found["validation_worst"] if "validation_worst" in found else found["validation_macro"])


def _other(configurations: Sequence[Configuration], best: str) -> str | None:
    """A detector besides the best, of another network where there is one: its adaptive images are tried on the best."""
    own = next(c for c in configurations if c.label == best)
    others = [c for c in configurations if c.label != best and c.reading == own.reading]
    others.sort(key=lambda c: c.network == own.network)
    return others[0].label if others else None


def _check_hidden(thresholds: Thresholds) -> None:
    """Refuse attackers who know the detector where there is no threshold that they could want to stay below.

    Raises:
        ValueError: The images that validate are too few for it.
    """
    try:
        thresholds.at_false_alarm(FALSE_ALARM)
    except ArgumentError as error:
        raise ArgumentError(
            f"adaptive: expected a detector with a threshold at {FALSE_ALARM:.0%} false alarms, got one "
            f"without ({error})"
        ) from error


def _unseen(
    config: EvaluateConfig, setting: Setting, clean: Clean
) -> tuple[tuple[AttackedImages, ...], tuple[str, ...]]:
    cells, read = made_and_read(setting, clean, config.unseen, config.unseen_runs, parts=("test",))
    budgets = (spec.recipe().budget for spec in (*config.unseen, *config.adaptive))
    return cells, (*level_notes(budgets), *failures(cells), *read)


def _unchanged(cells: Sequence[AttackedImages], config: EvaluateConfig) -> tuple[str, ...]:
    """A sentence where attacked images cannot be changed afterwards: their goal is that of another run."""
    read = sorted({cell.attack for cell in cells if cell.on_logits is None and cell.made}) if config.after else []
    after = " or ".join(control.label for control in config.after)
    return (f"{', '.join(read)}: read from a run, and not measured after {after}",) if read else ()


def _macro(measured: Sequence[measure.Measured]) -> dict[tuple[str, str], float]:
    """The mean AUC over the families that were fitted on, by detector and kind."""
    made: dict[tuple[str, str], list[float]] = {}
    for row in measured:
        if row.seen and not row.variant:
            made.setdefault((row.detector, kind(row.targeted)), []).append(row.area.value)
    return {key: measure.mean(values) for key, values in made.items()}


def describe(made: DetectionEvaluation, config: EvaluateConfig) -> dict[str, Any]:
    """The findings as plain JSON values."""
    compared = made.compared
    return {
        "best": made.best,
        "natural": made.natural,
        "measured": [_described(row) for row in compared.measured],
        "noise": [_described(row) for row in compared.noise],
        "false_alarms": [asdict(row) for row in compared.false_alarms],
        "changed": [{**asdict(row), "area": None if row.area is None else _area(row.area)} for row in compared.changed],
        "histograms": {"edges": list(compared.edges), "groups": [asdict(row) for row in compared.histograms]},
        "macro": [{"detector": d, "kind": k, "auc": value} for (d, k), value in made.macro.items()],
        "curves": _curves(compared.curves),
        "noise_curves": _curves(compared.noise_curves),
        "knn": [asdict(row) for row in made.knn],
        "adaptive": [
            {**asdict(row), "measured": None if row.measured is None else _described(row.measured)}
            for row in made.adaptive
        ],
        "adaptive_points": [point.described() for point in made.adaptive_points],
        "verifier": made.verifier,
        "directions": [asdict(row) for row in made.directions],
        "cells": [cell.described() for cell in made.cells],
        "config": {
            **asdict(config),
            "unseen": [spec.label for spec in config.unseen],
            "adaptive": [spec.label for spec in config.adaptive],
            "controls": [control.label for control in config.controls],
            "after": [control.label for control in config.after],
        },
        "notices": list(made.notices),
    }


def _curves(curves: Mapping[str, Curve]) -> dict[str, Any]:
    return {name: {"false_alarm": list(far), "found": list(tar)} for name, (far, tar) in curves.items()}


def _area(area: AreaUnderCurve) -> dict[str, float]:
    return {"auc": area.value, "low": area.low, "high": area.high}


def _described(row: measure.Measured) -> dict[str, Any]:
    return {
        "detector": row.detector,
        "family": row.family,
        "kind": kind(row.targeted),
        "seen": row.seen,
        "variant": row.variant,
        **_area(row.area),
        "found": list(row.found),
        "intervals": [None if span is None else list(span) for span in row.intervals],
        "images": row.images,
        "natural": row.natural,
    }
