"""Attackers who know the detector: what they make of the test's images, and what the detector says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.attacks import Goal
from fastadv.attacks.feature_goals import GalleryClass
from fastadv.attacks.spec import AttackSpec
from fastadv.core.errors import ArgumentError
from fastadv.defences.evade_detector import EvadeDetector, WatchedModel
from fastadv.detection import Detector
from fastadv.models.identity import tensors_hash
from fastadv.runs import list_hash
from fastadv.studies.detection.attacks import (
    AttackedImages,
    Task,
    carry_out,
    class_goal,
    gallery_of,
    make,
    sources,
    wanted,
)
from fastadv.studies.detection.features import Features, scores_of
from fastadv.studies.detection.measure import Measured, measure
from fastadv.studies.detection.setting import Clean, Setting, kind

FALSE_ALARM = 0.05
"""The rate whose threshold an attacker who knows the detector wants to stay below."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveRow:
    """An attacker who knows the detector, or, with the weight 0, who does not.

    Attributes:
        attack: Its label.
        targeted: Whether it went for a class.
        weight: Of the detector's logit.
        tried: Images that were attacked.
        met_before_images: How many of them met the attacker's goal before; these are in none of the shares.
        reached: Share of the rest that reaches the class goal; None where there is no rest.
        hidden: Share of the rest that does and stays below the detector's threshold at a false-alarm rate of 5 %.
        measured: The detector on those that reach the class goal, hidden or not; None where none does.
    """

    attack: str
    targeted: bool
    weight: float
    tried: int
    met_before_images: int
    reached: float | None
    hidden: float | None
    measured: Measured | None


def adaptive_rows(
    setting: Setting,
    clean: Clean,
    detector: Detector,
    name: str,
    attacks: Sequence[AttackSpec],
    weights: Sequence[float],
    known: Mapping[tuple[str, bool], AttackedImages],
) -> tuple[AdaptiveRow, ...]:
    """Every attack, targeted and not, with every weight and without knowledge.

    Args:
        setting: The study.
        clean: Its unchanged images.
        detector: What is to be evaded; calibrated.
        name: The detector's.
        attacks: Those that can adapt (``check_adapts``).
        weights: Of the detector's logit in the attacker's loss.
        known: By label and kind: what the study has made already without knowledge of the detector.

    Raises:
        ImageError, AlignmentError, OSError: A file cannot be read or written.
    """
    if not attacks:
        return ()
    line = threshold_of(detector)
    natural = clean.natural.of(setting.splits.natural["test"])
    calm = scores_of(detector, natural)
    names = set(sources(setting, clean, ("test",)))
    rows = []
    for spec in attacks:
        for targeted in (True, False):
            for weight in (0.0, *weights):
                if weight:
                    cell = make_adaptive(setting, clean, spec, detector, name, weight=weight, targeted=targeted)
                    own = cell.features
                else:
                    blind = known.get((spec.label, targeted))
                    cell = blind or make(setting, clean, spec, targeted=targeted, parts=("test",))
                    own = cell.part(setting.splits.attacked["test"])
                scores, found = None, None
                met = len(cell.met & names)
                rest = len(names) - met
                if own is not None:
                    scores = scores_of(detector, own)
                    pair = natural.names, own.names
                    found = measure(name, calm, scores, names=pair, family=spec.name, targeted=targeted, seen=False)
                rows.append(
                    AdaptiveRow(
                        attack=spec.label,
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
    setting: Setting,
    clean: Clean,
    spec: AttackSpec,
    detector: Detector,
    name: str,
    *,
    weight: float,
    targeted: bool,
    by_shortfall: bool = False,
    images: Sequence[str] | None = None,
) -> AttackedImages:
    """Attack the test's images by one who knows the detector: an image counts when it reaches the class goal.

    The attacker wants both: the class, and a score below the threshold of ``FALSE_ALARM``. C&W and others that look
    for the smallest perturbation then look for the smallest one that has both; those that stop at success go on until
    both are there.

    Args:
        setting: The study.
        clean: Its unchanged images.
        spec: The attack.
        detector: What is to be evaded; calibrated.
        name: The detector's.
        weight: Of its logit.
        targeted: Whether it goes for a class.
        by_shortfall: As in ``EvadeDetector``.
        images: Those of the test to attack; None: all.

    Raises:
        ImageError, AlignmentError, OSError: As ``make``.
    """
    line = threshold_of(detector)
    names = sources(setting, clean, ("test",)) if images is None else images
    bare = class_goal(setting, names, targeted) if spec.on_logits else _gallery_goal(setting, clean, names, targeted)
    everything = EvadeDetector(goal=bare, weight=weight, threshold=line, by_shortfall=by_shortfall)
    place = {source: k for k, source in enumerate(names)}
    key = tensors_hash(_tensors(detector))
    loss = f"{'margin-' if by_shortfall else ''}{weight:g}"
    some = "" if images is None else f"-{list_hash(names)[:8]}"
    task = Task(
        label=f"{spec.label}-{kind(targeted)}-{name}-{loss}-{key[:8]}{some}",  # another fit is another detector
        spec=spec,
        targeted=targeted,
        names=tuple(names),
        goal_of=lambda order, face: everything.row(place[order.source]),
        model=WatchedModel(setting.model, detector),
        key=f"{detector.trajectory.metric} {line!r} {key}" + (" relative" if detector.trajectory.relative else ""),
        reaches=lambda features: reaches(setting, clean, features, on_logits=spec.on_logits, targeted=targeted),
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


def _gallery_goal(setting: Setting, clean: Clean, names: Sequence[str], targeted: bool) -> Goal:
    labels, gallery = wanted(setting, names, targeted), gallery_of(setting, clean)
    if not targeted:
        return GalleryClass(gallery=gallery, labels=labels, any_other=True)
    # a watched network embeds the guides itself: with its further column
    guides = [setting.source.load(setting.splits.guide(name)).image for name in names]
    return GalleryClass(gallery=gallery, labels=labels, guides=torch.stack(guides))


def reaches(setting: Setting, clean: Clean, features: Features, *, on_logits: bool, targeted: bool) -> Tensor:
    """Which images are taken for the wanted class, or for another than their own, ``(N,)`` bool."""
    labels = wanted(setting, features.names, targeted)
    said = features.predicted
    if not on_logits:
        gallery = gallery_of(setting, clean)
        said = gallery.vote(gallery.distances(features.embeddings.to(setting.model.device)), 1).cpu()
    return said == labels if targeted else said != labels


def _tensors(detector: Detector) -> dict[str, Tensor]:
    return {**detector.trajectory.representatives.tensors(), **detector.network.state_dict()}
