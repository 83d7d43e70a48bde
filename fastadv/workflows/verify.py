"""``fastadv verify``: face verification, clean and with one image of every pair attacked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadv.attacks import Attack, Evade, Goal, Impersonate, Recipe, as_recipe
from fastadv.core.errors import ArgumentError
from fastadv.data import Face, FaceSource, ManifestRow, Pair, RunFolder
from fastadv.data.files import write_atomically
from fastadv.engine import Engine
from fastadv.models import FaceModel, fixed_batches, prepare
from fastadv.recognition import (
    AttackedReport,
    VerificationReport,
    cosine_scores,
    euclidean_scores,
    evaluate,
    roc,
    under_attack,
)
from fastadv.report.roc import Curve, far_axis, roc_figure, save_figure
from fastadv.workflows.aims import check_goal
from fastadv.workflows.attack import AttackSummary, check_unique, pair_name, summarise
from fastadv.workflows.inputs import Progress, silent
from fastadv.workflows.production import Order, produce

_BATCH = 32
_SCORES = {"cosine": cosine_scores, "euclidean": euclidean_scores}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A verifier on clean pairs and, where an attack was given, on attacked ones.

    Attributes:
        clean: The report on clean pairs.
        attacked: The report at the clean thresholds with the first image of each pair attacked, or None.
        threshold: The clean threshold that the attack's goals used, in the metric's own unit.
        impersonation: The attacks on negative pairs, or None.
        evasion: The attacks on positive pairs, or None.
        scores: The clean scores, higher for more alike.
        attacked_scores: The scores under attack, or None.
        same: Whether each pair shows one person.
    """

    clean: VerificationReport
    attacked: AttackedReport | None
    threshold: float
    impersonation: AttackSummary | None
    evasion: AttackSummary | None
    scores: np.ndarray
    attacked_scores: np.ndarray | None
    same: np.ndarray


def embed(
    source: FaceSource, names: Sequence[str], model: FaceModel, *, progress: Progress = silent
) -> Mapping[str, Tensor]:
    """The float32 embeddings of the named faces, in batches of one fixed shape.

    Raises:
        ValueError: An embedding is zero or not finite.
        ImageError, AlignmentError: A face cannot be read.
    """
    ready = prepare(model, precision="fp32", channels_last=True)
    found: dict[str, Tensor] = {}
    waiting: list[Face] = []

    def flush() -> None:
        images = torch.stack([f.image for f in waiting]).to(model.device).contiguous(memory_format=torch.channels_last)
        for face, row in zip(waiting, fixed_batches(ready, images, _BATCH).cpu(), strict=True):
            if not (bool(row.isfinite().all()) and bool(row.any())):
                raise ArgumentError(
                    f"{face.name}: expected a finite embedding that is not zero, got another from "
                    f"{model.name}; check the weights"
                )
            found[face.name] = row
        waiting.clear()
        progress("embedding", len(found), len(names))

    with source.stream(names) as faces:
        for face in faces:
            waiting.append(face)
            if len(waiting) == _BATCH:
                flush()
    if waiting:
        flush()
    return found


def _scores(pairs: Sequence[Pair], embeddings: Mapping[str, Tensor], metric: str) -> np.ndarray:
    first = torch.stack([embeddings[p.first] for p in pairs]).numpy()
    second = torch.stack([embeddings[p.second] for p in pairs]).numpy()
    return _SCORES[metric](first, second)


def _attack_pairs(
    pairs: Sequence[Pair],
    embeddings: Mapping[str, Tensor],
    source: FaceSource,
    model: FaceModel,
    attack: Attack[Any] | Recipe,
    *,
    threshold: float,
    metric: str,
    folder: RunFolder | None,
    seed: int,
    engine: Engine,
    progress: Progress,
) -> list[ManifestRow]:
    """Negative pairs are made to match, positive ones not to; the rows come in the order of the pairs."""
    orders = check_unique([Order(name=pair_name(p.first, p.second), source=p.first, target=p.second) for p in pairs])
    by_name: dict[str, ManifestRow] = {}

    moves = as_recipe(attack)

    def target(order: Order) -> Tensor:
        found = source.load(order.target).image if moves.surrogate.needs_images else embeddings[order.target]
        return found[None]

    def impersonate(order: Order, face: Face) -> Goal:
        return Impersonate(target(order), threshold=threshold, metric=metric)

    def evade(order: Order, face: Face) -> Goal:
        return Evade(references=target(order), threshold=threshold, metric=metric)

    for name, same, goal_of in (("impersonate", False, impersonate), ("evade", True, evade)):
        chosen = [o for o, p in zip(orders, pairs, strict=True) if p.same is same]
        rows = produce(
            chosen,
            goal_of,
            source,
            attack,
            model,
            goal_name=name,
            seed=seed,
            engine=engine,
            folder=folder,
            progress=progress,
            stage=f"{moves.name}: {name}",
        )
        by_name.update((row.name, row) for row in rows)
    if folder is not None:
        folder.finish([o.name for o in orders])
    return [by_name[o.name] for o in orders]


def verify(
    source: FaceSource,
    pairs: Sequence[Pair],
    model: FaceModel,
    *,
    metric: str = "cosine",
    attack: Attack[Any] | Recipe | None = None,
    folder: RunFolder | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    progress: Progress = silent,
) -> Verification:
    """Verify pairs of faces, clean and, with an attack, with the first image of each replaced by an adversarial one.

    The goals use the threshold of the clean equal error rate; the report then decides every pair at its fold's
    clean threshold, as a deployed system would.

    Args:
        source: The faces.
        pairs: What to compare, with folds.
        model: The verifier.
        metric: ``"cosine"`` or ``"euclidean"``.
        attack: How to attack, or None for clean figures only.
        folder: Where the adversarial images go, or None.
        seed: Of every random number.
        engine: How to run the attack.
        progress: Told of every stage.

    Raises:
        ValueError: The metric is not known, a pair occurs twice, or one class of pairs is missing.
        ImageError, AlignmentError: A face cannot be read.
    """
    if metric not in _SCORES:
        raise ArgumentError(f"metric: expected one of {', '.join(_SCORES)}, got {metric!r}")
    if attack is not None:
        check_goal(attack, "impersonate")
    names = list(dict.fromkeys(n for p in pairs for n in (p.first, p.second)))
    same = np.array([p.same for p in pairs])
    folds = np.array([p.fold for p in pairs])
    embeddings = embed(source, names, model, progress=progress)
    scores = _scores(pairs, embeddings, metric)
    clean = evaluate(scores, same, folds if len(set(folds.tolist())) > 1 else None, metric=metric)
    # a score is minus the distance for the Euclidean metric, the goals take the distance itself
    sign = 1.0 if metric == "cosine" else -1.0
    threshold = sign * clean.eer_threshold
    if attack is None:
        return Verification(
            clean=clean,
            attacked=None,
            threshold=threshold,
            impersonation=None,
            evasion=None,
            scores=scores,
            attacked_scores=None,
            same=same,
        )
    rows = _attack_pairs(
        pairs,
        embeddings,
        source,
        model,
        attack,
        threshold=threshold,
        metric=metric,
        folder=folder,
        seed=seed,
        engine=engine or Engine(),
        progress=progress,
    )
    after = sign * np.array([row.score_after for row in rows])
    if not np.isfinite(after).all():
        name = rows[int((~np.isfinite(after)).argmax())].name
        raise ArgumentError(f"{name}: expected a finite score of the attacked image, got another from {model.name}")
    kinds = {kind: [r for r in rows if r.goal == kind] for kind in ("impersonate", "evade")}
    return Verification(
        clean=clean,
        attacked=under_attack(clean, after, same, folds if clean.fold_thresholds else None),
        threshold=threshold,
        impersonation=summarise(kinds["impersonate"]),
        evasion=summarise(kinds["evade"]),
        scores=scores,
        attacked_scores=after,
        same=same,
    )


def draw_roc(result: Verification, path: Path, *, title: str = "") -> Path:
    """The ROC of the clean pairs and, dashed, of the attacked ones; SVG or PNG by the path's ending.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    curves = [_curve(f"clean, EER {result.clean.eer:.2%}", result.scores, result.same)]
    if result.attacked_scores is not None and result.attacked is not None and result.attacked.eer is not None:
        label = f"attacked, EER {result.attacked.eer:.2%}"
        curves.append(_curve(label, result.attacked_scores, result.same, after=True))
    log, lowest = far_axis(int((~result.same).sum()))
    return save_figure(roc_figure(curves, log_far=log, lowest_far=lowest, title=title), path)


def _curve(label: str, scores: np.ndarray, same: np.ndarray, *, after: bool = False) -> Curve:
    found = roc(scores, same)
    return Curve(label=label, far=found.far, tar=found.tar, after=after)


def describe(result: Verification) -> dict[str, Any]:
    """The figures as plain JSON values, without the scores."""
    parts = {name: getattr(result, name) for name in ("clean", "attacked", "impersonation", "evasion")}
    described = {name: None if part is None else asdict(part) for name, part in parts.items()}
    return {**described, "threshold": result.threshold}


def save(result: Verification, folder: Path, *, title: str = "") -> None:
    """Write ``verification.json`` and ``roc.svg`` into the folder; each is whole or absent.

    Raises:
        ImportError: matplotlib is not installed; the figures are written all the same.
        OSError: With the file's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(describe(result), indent=2, sort_keys=True)
    write_atomically(folder / "verification.json", text.encode() + b"\n")
    draw_roc(result, folder / "roc.svg", title=title)
