"""``fastadv verify``: face verification, clean and with one image of every pair attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastadv.attacks import Evade, Recipe
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_one_of
from fastadv.core.files import write_json
from fastadv.core.progress import Progress, silent
from fastadv.core.resolution import measurable
from fastadv.data import FaceSource, Pair
from fastadv.data.template_pairs import TemplatePairs, template_embeddings, template_pairs_of
from fastadv.models import FaceModel
from fastadv.recognition import AttackedReport, VerificationReport, evaluate, tar_at_far, under_attack
from fastadv.runs import Work, list_hash
from fastadv.runs.attack import AttackSummary, attack_pairs, summarise
from fastadv.runs.embedding import SCORES, embed, folds_of, names_of, pair_scores
from fastadv.runs.goals import check_goal
from fastadv.runs.inputs import PairChoice, RunInputs
from fastadv.runs.production import Order

JSON = "verification.json"
FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # of template protocols
_BLOCK = 1 << 16  # pairs that are scored at a time
# of a score in the metric's own unit: a score is minus the distance, goals take the distance itself
_SIGNS = {"cosine": 1.0, "euclidean": -1.0}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A verifier on clean pairs and, where an attack was given, on attacked ones.

    Attributes:
        clean: The report on clean pairs.
        attacked: The report at the clean thresholds with the first image of each pair attacked, or None.
        threshold: What the attack's goals used, in the metric's own unit: that of the clean equal error rate, or the
            one given.
        impersonation: The attacks on negative pairs, or None.
        evasion: The attacks on positive pairs, or None.
        further: TAR at further FARs, (FAR, TAR), as far as so many pairs can show them: with templates only.
        scores: The clean scores, higher for more alike.
        attacked_scores: The scores under attack, or None.
        same: Whether each pair shows one person.
    """

    clean: VerificationReport
    attacked: AttackedReport | None = None
    threshold: float
    impersonation: AttackSummary | None = None
    evasion: AttackSummary | None = None
    further: tuple[tuple[float, float], ...] = ()
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
    threshold: float | None = None,
    work: Work | None = None,
) -> Verification:
    """Verify pairs of faces, clean and, with an attack, with the first image of each replaced by an adversarial one.

    The goals use the threshold of the clean equal error rate; the report then decides every pair at its fold's
    clean threshold, as a deployed system would. A given threshold is used for both.

    Args:
        source: The faces.
        pairs: What to compare, with folds.
        model: The verifier.
        metric: ``"cosine"`` or ``"euclidean"``.
        attack: How to attack, or None for clean figures only.
        threshold: Of goals and decisions, in the metric's own unit; None: from the clean pairs.
        work: How the adversarial images are made, and where they go.

    Raises:
        ValueError: The metric is not known, the threshold is none of it, a pair occurs twice, or one class of pairs is
            missing.
        ImageError, AlignmentError: A face cannot be read.
    """
    given = _score_at(threshold, metric)
    if attack is not None:
        check_goal(attack, "impersonate")
    work = work or Work()
    same = np.array([p.same for p in pairs])
    folds = folds_of(pairs, threshold)
    embeddings = embed(source, names_of(pairs), model, progress=work.progress)
    scores = pair_scores(pairs, embeddings, metric)
    clean = evaluate(scores, same, folds, metric=metric, threshold=given)
    sign = _SIGNS[metric]
    threshold = sign * clean.eer_threshold if threshold is None else threshold
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
        attacked=under_attack(clean, after, same, folds),
        impersonation=summarise(kinds["impersonate"]),
        evasion=summarise(kinds["evade"]),
        attacked_scores=after,
    )


def _score_at(threshold: float | None, metric: str) -> float | None:
    """A given threshold as a score.

    Raises:
        ValueError: The metric is not known, or the threshold is none of it.
    """
    check_one_of("metric", metric, SCORES)
    if threshold is None:
        return None
    Evade(threshold=threshold, metric=metric)  # checks it
    return _SIGNS[metric] * threshold


def verify_templates(
    source: FaceSource,
    protocol: TemplatePairs,
    model: FaceModel,
    *,
    metric: str = "cosine",
    threshold: float | None = None,
    work: Work | None = None,
) -> Verification:
    """Verify pairs of templates: each image is embedded once, a template is the mean over its media.

    Args:
        source: The faces.
        protocol: Templates and pairs, with folds where there are some.
        model: The verifier.
        metric: ``"cosine"`` or ``"euclidean"``.
        threshold: Of the decisions, in the metric's own unit; None: each fold's own.
        work: Told of the progress.

    Raises:
        ValueError: The metric is not known, the threshold is none of it, one class of pairs is missing, or embeddings
            cancel out.
        ImageError, AlignmentError: A face cannot be read.
    """
    given = _score_at(threshold, metric)
    found = embed(source, list(dict.fromkeys(protocol.images)), model, progress=(work or Work()).progress)
    rows = template_embeddings(protocol, {name: row.numpy() for name, row in found.items()})
    places = range(0, len(protocol.same), _BLOCK)
    parts = [
        SCORES[metric](rows[protocol.first[k : k + _BLOCK]], rows[protocol.second[k : k + _BLOCK]]) for k in places
    ]
    scores = np.concatenate(parts)
    folds = protocol.folds
    if folds is None and given is not None:
        folds = np.zeros(len(scores), np.int64)
    clean = evaluate(scores, protocol.same, folds, metric=metric, threshold=given)
    return Verification(
        clean=clean,
        threshold=_SIGNS[metric] * clean.eer_threshold if threshold is None else threshold,
        further=tuple(
            (far, tar_at_far(scores, protocol.same, far)) for far in FARS if measurable(far, clean.negatives)
        ),
        scores=scores,
        same=protocol.same,
    )


@dataclass(frozen=True, kw_only=True)
class VerifyPlan:
    """A verification as ``fastadv verify`` is asked for it.

    Attributes:
        inputs: Network, faces and folder.
        pairs: Which pairs.
        attack: On the first image of every pair, or None.
        metric: ``"cosine"`` or ``"euclidean"``.
        threshold: Of goals and decisions, in the metric's own unit; None: from the clean pairs.
    """

    inputs: RunInputs
    pairs: PairChoice = field(default_factory=PairChoice)
    attack: Recipe | None = None
    metric: str = "cosine"
    threshold: float | None = None

    @property
    def rules(self) -> dict[str, Any]:
        """What of it decides about the figures, and is part of every such run's identity."""
        return {"metric": self.metric, **({} if self.threshold is None else {"threshold": self.threshold})}


def verify_folder(plan: VerifyPlan, *, progress: Progress = silent) -> Verification:
    """Verify as planned; with a folder, write there the images of an attack and ``verification.json``.

    Raises:
        ValueError, OSError: As opening the network, the faces, the pairs and the folder; else as ``verify``.
    """
    given, moves = plan.inputs, plan.attack
    model = given.open_model()
    source = given.open_faces(model, progress=progress)
    protocol = template_pairs_of(source, plan.pairs.file)
    if protocol is not None:
        return _templates(plan, source, protocol, model, progress)
    pairs = plan.pairs.open(source)

    def measured(work: Work) -> Verification:
        return verify(source, pairs, model, metric=plan.metric, attack=moves, threshold=plan.threshold, work=work)

    rules = {**plan.rules, "pairs in order": list_hash(pairs), "selection": plan.pairs.described()}
    return given.measured(
        measured,
        lambda: given.identity("verify", model, given.used(source, names_of(pairs)), attack=moves, rules=rules),
        save,
        progress=progress,
    )


def _templates(
    plan: VerifyPlan, source: FaceSource, protocol: TemplatePairs, model: FaceModel, progress: Progress
) -> Verification:
    given, attack = plan.inputs, plan.attack
    if attack is not None:
        raise ArgumentError(f"attack: expected none with pairs of templates, got {attack.name}; attack pairs of images")
    if plan.pairs.folds is not None or plan.pairs.limit is not None:
        raise ArgumentError("folds, limit: expected none with pairs of templates, got one of them")
    used = sorted(set(protocol.images))
    source.check(used)
    listed = [protocol.template, protocol.media, protocol.first, protocol.second, protocol.same]
    rules = {
        **plan.rules,
        "templates": list_hash([*protocol.images, *(part.tobytes().hex() for part in listed)]),
    }
    return given.measured(
        lambda work: verify_templates(source, protocol, model, metric=plan.metric, threshold=plan.threshold, work=work),
        lambda: given.identity("verify", model, given.used(source, used), rules=rules),
        save,
        progress=progress,
    )


def describe(result: Verification) -> dict[str, Any]:
    """The figures as plain JSON values, without the scores."""
    parts = {name: getattr(result, name) for name in ("clean", "attacked", "impersonation", "evasion")}
    described = {name: None if part is None else asdict(part) for name, part in parts.items()}
    tars = {f"{far:g}": tar for far, tar in result.further}
    return {**described, "threshold": result.threshold, "tar_at_far": tars}


def save(result: Verification, folder: Path) -> None:
    """Write ``verification.json`` into the folder, whole or not at all.

    Raises:
        OSError: With the file's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON, describe(result), indent=2)
