"""``fastadv verify``: face verification, clean and with one image of every pair attacked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadv.attacks import Attack, Evade, Goal, Impersonate, Recipe, as_recipe
from fastadv.core.errors import ArgumentError
from fastadv.core.files import write_atomically
from fastadv.core.progress import Progress, silent
from fastadv.data import Face, FaceSource, ManifestRow, Pair, RunFolder
from fastadv.engine import Engine
from fastadv.models import FaceModel
from fastadv.recognition import (
    AttackedReport,
    VerificationReport,
    cosine_scores,
    euclidean_scores,
    evaluate,
    under_attack,
)
from fastadv.runs import RunIdentity, UsedFaces, list_hash, settle
from fastadv.runs.attack import AttackSummary, check_unique, pair_name, summarise
from fastadv.runs.embedding import embed
from fastadv.runs.goals import check_goal
from fastadv.runs.inputs import PairChoice, RunInputs
from fastadv.runs.production import Order, produce

JSON = "verification.json"
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


@dataclass(frozen=True, kw_only=True)
class VerifyPlan:
    """A verification as ``fastadv verify`` is asked for it.

    Attributes:
        inputs: Network, faces and folder.
        pairs: Which pairs.
        attack: On the first image of every pair, or None.
        metric: ``"cosine"`` or ``"euclidean"``.
    """

    inputs: RunInputs
    pairs: PairChoice = field(default_factory=PairChoice)
    attack: Recipe | None = None
    metric: str = "cosine"


def verify_folder(plan: VerifyPlan, *, progress: Progress = silent) -> Verification:
    """Verify as planned; with a folder, write there the images of an attack and ``verification.json``.

    Raises:
        ValueError, OSError: As opening the network, the faces, the pairs and the folder; else as ``verify``.
    """
    given, moves = plan.inputs, plan.attack
    model = given.open_model()
    source = given.open_faces(model)
    pairs = plan.pairs.open(source)
    engine, out = given.engine, given.out

    def measured(folder: RunFolder | None) -> Verification:
        return verify(
            source,
            pairs,
            model,
            metric=plan.metric,
            attack=moves,
            folder=folder,
            seed=given.seed,
            engine=engine,
            progress=progress,
        )

    if out is None:
        return measured(None)
    engine = settle(engine, model, out) if moves is not None else engine
    identity = RunIdentity.of(
        "verify",
        model=model,
        weights=given.weights,
        attack=moves,
        engine=None if moves is None else engine,
        seed=given.seed,
        faces=UsedFaces(source=source, names=names_of(pairs), landmarks=given.landmarks),
        out=out,
        rules={"metric": plan.metric, "pairs in order": list_hash(pairs), "selection": plan.pairs.described()},
    )
    with identity.open(out, fresh=given.fresh) as folder:
        result = measured(folder if moves is not None else None)
        folder.claim()
        save(result, out)
    return result


def names_of(pairs: Sequence[Pair]) -> list[str]:
    """The images of pairs, in order, each as often as it comes."""
    return [name for pair in pairs for name in (pair.first, pair.second)]


def describe(result: Verification) -> dict[str, Any]:
    """The figures as plain JSON values, without the scores."""
    parts = {name: getattr(result, name) for name in ("clean", "attacked", "impersonation", "evasion")}
    described = {name: None if part is None else asdict(part) for name, part in parts.items()}
    return {**described, "threshold": result.threshold}


def save(result: Verification, folder: Path) -> None:
    """Write ``verification.json`` into the folder, whole or not at all.

    Raises:
        OSError: With the file's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(describe(result), indent=2, sort_keys=True)
    write_atomically(folder / JSON, text.encode() + b"\n")
