"""Attackers who know the detector: what they make of the test's images, and what the detector says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks.spec import AttackSpec
from fastadv.core.errors import ArgumentError
from fastadv.defences.evade_detector import EvadeDetector, WatchedModel
from fastadv.detection import Detector
from fastadv.models.identity import tensors_hash
from fastadv.runs import list_hash
from fastadv.studies.detection.adaptive_goals import CLASS, AdaptiveGoal
from fastadv.studies.detection.attacks import AttackedImages, Task, carry_out, each_of
from fastadv.studies.detection.measure import Measured, measure
from fastadv.studies.detection.setting import kind

FALSE_ALARM = 0.05
"""The rate whose threshold an attacker who knows the detector wants to stay below."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveRow:
    """An attacker who knows the detector, or, with the weight 0, who does not.

    Attributes:
        attack: Its label.
        goal: ``"class"`` or ``"verifier"``.
        targeted: Whether it has a target.
        weight: Of the detector's logit.
        tried: Images that were attacked.
        met_before_images: How many of them met the attacker's goal before; these are in none of the shares.
        reached: Share of the rest that reaches the goal; None where there is no rest.
        hidden: Share of the rest that does and stays below the detector's threshold at a false-alarm rate of 5 %.
        measured: The detector on those that reach the goal, hidden or not; None where none does.
    """

    attack: str
    goal: str
    targeted: bool
    weight: float
    tried: int
    met_before_images: int
    reached: float | None
    hidden: float | None
    measured: Measured | None


def adaptive_rows(
    goal: AdaptiveGoal,
    detector: Detector,
    name: str,
    attacks: Sequence[AttackSpec],
    weights: Sequence[float],
    known: Mapping[tuple[str, bool], AttackedImages],
) -> tuple[AdaptiveRow, ...]:
    """Every attack, targeted and not, with every weight and without knowledge.

    Args:
        goal: What they are to reach besides.
        detector: What is to be evaded; calibrated.
        name: The detector's.
        attacks: Those that can adapt (``check_adapts``).
        weights: Of the detector's logit in the attacker's loss.
        known: By label and kind: what the study has made already to reach a class, without knowledge of the detector.

    Raises:
        ImageError, AlignmentError, OSError: A file cannot be read or written.
    """
    if not attacks:
        return ()
    line = threshold_of(detector)
    setting = goal.setting
    natural = goal.clean.natural.of(setting.splits.natural["test"])
    names = set(goal.sources())
    rows = []
    for spec in attacks:
        for targeted in (True, False):
            calm = goal.scores(detector, natural, targeted=targeted, natural=True)
            for weight in (0.0, *weights):
                if weight:
                    cell = make_adaptive(goal, spec, detector, name, weight=weight, targeted=targeted)
                    own = cell.features
                else:
                    blind = known.get((spec.label, targeted)) if goal.name == CLASS else None
                    cell = blind or goal.unaware(spec, targeted=targeted)
                    own = cell.part(setting.splits.attacked["test"])
                scores, found = None, None
                met = len(cell.met & names)
                rest = len(names) - met
                if own is not None:
                    scores = goal.scores(detector, own, targeted=targeted)
                    pair = natural.names, own.names
                    found = measure(name, calm, scores, names=pair, family=spec.name, targeted=targeted, seen=False)
                rows.append(
                    AdaptiveRow(
                        attack=spec.label,
                        goal=goal.name,
                        targeted=targeted,
                        weight=weight,
                        tried=len(names),
                        met_before_images=met,
                        reached=(0 if own is None else len(own)) / rest if rest else None,
                        hidden=(0 if scores is None else int((scores < line).sum())) / rest if rest else None,
                        measured=found,
                    )
                )
    return tuple(rows)


def make_adaptive(
    goal: AdaptiveGoal,
    spec: AttackSpec,
    detector: Detector,
    name: str,
    *,
    weight: float,
    targeted: bool,
    by_shortfall: bool = False,
    images: Sequence[str] | None = None,
) -> AttackedImages:
    """Attack the test's images by one who knows the detector: an image counts when it reaches the goal.

    The attacker wants both: the goal, and a score below the threshold of ``FALSE_ALARM``. C&W and others that look
    for the smallest perturbation then look for the smallest one that has both; those that stop at success go on until
    both are there.

    Args:
        goal: What is to be reached besides.
        spec: The attack.
        detector: What is to be evaded; calibrated.
        name: The detector's.
        weight: Of its logit.
        targeted: Whether it has a target.
        by_shortfall: As in ``EvadeDetector``.
        images: Those of the test to attack; None: all.

    Raises:
        ImageError, AlignmentError, OSError: As ``make``.
    """
    setting, line = goal.setting, threshold_of(detector)
    names = goal.sources() if images is None else images
    claims = goal.claims(detector, names, targeted=targeted)
    places = [] if claims is None else sorted(set(claims.tolist()))
    columns = max(1, len(places))
    everything = EvadeDetector(
        goal=goal.goal(names, targeted=targeted, on_logits=spec.on_logits, further=columns),
        weight=weight,
        threshold=line,
        by_shortfall=by_shortfall,
        claimed=None if claims is None else torch.searchsorted(torch.tensor(places), claims),
        columns=columns,
    )
    key = tensors_hash(_tensors(detector))
    loss = f"{'margin-' if by_shortfall else ''}{weight:g}"
    some = "" if images is None else f"-{list_hash(names)[:8]}"
    task = Task(
        # another fit is another detector
        label=f"{spec.label}-{kind(targeted)}{goal.label}-{name}-{loss}-{key[:8]}{some}",
        spec=spec,
        targeted=targeted,
        names=tuple(names),
        goal_of=each_of(everything, names),
        model=WatchedModel(setting.model, detector, places),
        key=f"{detector.trajectory.metric} {line!r} {key}" + (" relative" if detector.trajectory.relative else ""),
        goal=goal.run,
        reaches=lambda features: goal.reaches(features, targeted=targeted, on_logits=spec.on_logits),
    )
    return carry_out(setting, task)


def threshold_of(detector: Detector) -> float:
    """The threshold at ``FALSE_ALARM``.

    Raises:
        ValueError: The detector is not calibrated.
    """
    if detector.thresholds is None:
        raise ArgumentError("detector: expected a calibrated one, got one without thresholds; fit the study again")
    return detector.thresholds.at_false_alarm(FALSE_ALARM)


def _tensors(detector: Detector) -> dict[str, Tensor]:
    return {**detector.trajectory.representatives.tensors(), **detector.network.state_dict()}
