"""``fastadv verify``: face verification, clean and with one image of every pair attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastadv.attacks import Recipe
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_one_of
from fastadv.core.files import write_json
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource, Pair
from fastadv.models import FaceModel
from fastadv.recognition import AttackedReport, VerificationReport, evaluate, under_attack
from fastadv.runs import Work, list_hash
from fastadv.runs.attack import AttackSummary, attack_pairs, summarise
from fastadv.runs.embedding import SCORES, embed, names_of, pair_scores
from fastadv.runs.goals import check_goal
from fastadv.runs.inputs import PairChoice, RunInputs
from fastadv.runs.production import Order

JSON = "verification.json"


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
    attacked: AttackedReport | None = None
    threshold: float
    impersonation: AttackSummary | None = None
    evasion: AttackSummary | None = None
    scores: np.ndarray
    attacked_scores: np.ndarray | None = None
    same: np.ndarray


def verify(
    source: FaceSource,
    pairs: Sequence[Pair],
    model: FaceModel,
    *,
    metric: str = "cosine",
    attack: Recipe | None = None,
    work: Work | None = None,
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
        work: How the adversarial images are made, and where they go.

    Raises:
        ValueError: The metric is not known, a pair occurs twice, or one class of pairs is missing.
        ImageError, AlignmentError: A face cannot be read.
    """
    check_one_of("metric", metric, SCORES)
    if attack is not None:
        check_goal(attack, "impersonate")
    work = work or Work()
    same = np.array([p.same for p in pairs])
    folds = np.array([p.fold for p in pairs])
    embeddings = embed(source, names_of(pairs), model, progress=work.progress)
    scores = pair_scores(pairs, embeddings, metric)
    clean = evaluate(scores, same, folds if len(set(folds.tolist())) > 1 else None, metric=metric)
    # a score is minus the distance for the Euclidean metric, the goals take the distance itself
    sign = 1.0 if metric == "cosine" else -1.0
    threshold = sign * clean.eer_threshold
    found = Verification(clean=clean, threshold=threshold, scores=scores, same=same)
    if attack is None:
        return found

    def target(order: Order) -> Tensor:
        found = source.load(order.target).image if attack.surrogate.needs_images else embeddings[order.target]
        return found[None]

    rows = attack_pairs(
        pairs,
        source,
        attack,
        model,
        work,
        target=target,
        threshold=threshold,
        metric=metric,
        known=embeddings,
        stage=attack.name,
    )
    after = sign * np.array([row.score_after for row in rows])
    if not np.isfinite(after).all():
        name = rows[int((~np.isfinite(after)).argmax())].name
        raise ArgumentError(f"{name}: expected a finite score of the attacked image, got another from {model.name}")
    kinds = {kind: [r for r in rows if r.goal == kind] for kind in ("impersonate", "evade")}
    return replace(
        found,
        attacked=under_attack(clean, after, same, folds if clean.fold_thresholds else None),
        impersonation=summarise(kinds["impersonate"]),
        evasion=summarise(kinds["evade"]),
        attacked_scores=after,
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

    def measured(work: Work) -> Verification:
        return verify(source, pairs, model, metric=plan.metric, attack=moves, work=work)

    rules = {"metric": plan.metric, "pairs in order": list_hash(pairs), "selection": plan.pairs.described()}
    return given.measured(
        measured,
        lambda: given.identity("verify", model, given.used(source, names_of(pairs)), attack=moves, rules=rules),
        save,
        progress=progress,
    )


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
    write_json(folder / JSON, describe(result), indent=2)
