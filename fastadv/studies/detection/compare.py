"""Every detector of a study on every group of images of the test: adversarial ones, and natural ones of each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastadv.core.statistics import wilson
from fastadv.detection import AreaUnderCurve, Detector, Thresholds, auc_interval
from fastadv.studies.detection import measure
from fastadv.studies.detection.adaptive_goals import ReachClass
from fastadv.studies.detection.attacks import AttackedImages
from fastadv.studies.detection.controls import Control
from fastadv.studies.detection.features import Features, scores_of
from fastadv.studies.detection.measure import Measured
from fastadv.studies.detection.natural import NATURAL, NOISE, Kind, aside, attacked_under, controlled, noise_label
from fastadv.studies.detection.plan import people_of
from fastadv.studies.detection.setting import Clean, Setting, kind

_BINS = 40
_SPAN = (0.001, 0.999)  # of the scores; those beyond are counted in the first and the last bin

UNCHANGED = "unchanged"
Curve = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Flagged:
    """How many images of a group a detector flags at its threshold.

    Attributes:
        images: Of the group.
        people: Whose images they are.
        flagged: How many have at least the threshold.
        share: Of the images.
        low: Of the share's 95 % interval, Wilson's: for independent images, so too narrow for several of a person.
        high: Of the same.
    """

    images: int
    people: int
    flagged: int
    share: float
    low: float
    high: float

    @staticmethod
    def of(scores: Tensor, names: Sequence[str], threshold: float) -> Flagged:
        """From scores ``(N,)`` of named images."""
        hits = int((~(scores.double() < threshold)).sum())  # one that is no number is flagged, as by a guard
        low, high = wilson(hits, len(scores))
        return Flagged(
            images=len(scores),
            people=len(set(people_of(names))),
            flagged=hits,
            share=hits / len(scores),
            low=low,
            high=high,
        )


@dataclass(frozen=True, kw_only=True)
class FalseAlarms:
    """The false alarms of a detector on natural images of one kind.

    Attributes:
        detector: Its name.
        label: Of the kind.
        sort: ``"natural"``, ``"control"``, ``"noise"``, ``"outside"`` or ``"other"``.
        fitted: Whether the detector was fitted on this kind and strength.
        kind_fitted: Whether it was on this kind, of any strength.
        threshold: Of the detector.
        rate: The false-alarm rate that its threshold was set for; None: the equal error rate.
        found: How many are flagged.
    """

    detector: str
    label: str
    sort: str
    fitted: bool
    kind_fitted: bool
    threshold: float
    rate: float | None
    found: Flagged


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A detector on adversarial images, unchanged or harmlessly changed afterwards: those that still reach their goal.

    Attributes:
        detector: Its name.
        attack: The attack's label.
        targeted: Whether it went for a class.
        seen: Whether the detector was fitted on this attack.
        control: What changed the images, or ``UNCHANGED``.
        tried: How many adversarial images were changed.
        kept: How many of them still reach the goal.
        area: AUC of these against natural images that were changed alike; None where none is left.
        found: How many of these are flagged; None where none is left.
    """

    detector: str
    attack: str
    targeted: bool
    seen: bool
    control: str
    tried: int
    kept: int
    area: AreaUnderCurve | None
    found: Flagged | None


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The best detector's scores of one group.

    Attributes:
        label: Of the group.
        sort: ``"attack"``, or as of ``FalseAlarms``.
        seen: Whether the detectors were fitted on it.
        counts: Images in each bin; scores beyond the edges are in the first and the last one.
    """

    label: str
    sort: str
    seen: bool
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What was found of all groups.

    Attributes:
        measured: Detectors and yardsticks against natural images, by group and, where an attack came in several
            settings, by setting.
        noise: The same groups against noise of the same L2 norms on the same images.
        curves: Of the best detector: a group's name to false-alarm rates and shares found.
        noise_curves: The same against noise.
        false_alarms: Of every detector on every kind of natural images.
        changed: Of every detector on adversarial images, unchanged, and changed afterwards.
        edges: Of the bins of the histograms.
        histograms: Of the best detector.
    """

    measured: tuple[Measured, ...]
    noise: tuple[Measured, ...]
    curves: Mapping[str, Curve]
    noise_curves: Mapping[str, Curve]
    false_alarms: tuple[FalseAlarms, ...]
    changed: tuple[Changed, ...]
    edges: tuple[float, ...]
    histograms: tuple[Histogram, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    cell: AttackedImages
    seen: bool
    images: Features


def compare(
    setting: Setting,
    clean: Clean,
    cells: tuple[Sequence[AttackedImages], Sequence[AttackedImages]],
    *,
    fitted_on: frozenset[str],
    detectors: Mapping[str, Detector],
    best: str,
    naturals: Sequence[Kind],
    after: Sequence[Control],
) -> Comparison:
    """Score everything once, and compare.

    Args:
        setting: The study.
        clean: Its unchanged images.
        cells: The adversarial images of the fit, and those of unseen attacks.
        fitted_on: The groups that the detectors were fitted on.
        detectors: By label, each with thresholds.
        best: The label of the one with curves and histograms.
        naturals: The kinds of natural images of the test, the unchanged ones first.
        after: Controls that adversarial images are put under.

    Raises:
        ValueError: Scores that are not finite.
        ImageError, AlignmentError, OSError: A file cannot be read or written.
    """
    test = aside(setting, "test")
    parts: dict[str, Features] = {one.label: one.make() for one in naturals if one.sort in (NATURAL, NOISE)}
    groups: dict[str, _Group] = {}
    for old, made in zip((True, False), cells, strict=True):
        for cell in made:
            own, seen = cell.part(test), old and cell.group in fitted_on
            if own is not None:
                name = f"{cell.attack} {kind(cell.targeted)}{'' if seen else ' unseen'}"
                parts[name], groups[name] = own, _Group(cell=cell, seen=seen, images=own)
    scores = {label: {n: scores_of(found, own) for n, own in parts.items()} for label, found in detectors.items()}
    scores |= measure.yardstick_scores(setting, clean, parts)
    for one in naturals:
        if one.label not in parts:
            own = one.make()
            for label, found in detectors.items():
                scores[label][one.label] = scores_of(found, own)
    measured, noise, curves, noise_curves = _measured(scores, groups, naturals[0].names, best)
    edges, histograms = _histograms(scores[best], groups, naturals)
    return Comparison(
        measured=measured,
        noise=noise,
        curves=curves,
        noise_curves=noise_curves,
        false_alarms=tuple(_alarms(label, d, scores[label], one) for label, d in detectors.items() for one in naturals),
        changed=_changed(setting, clean, groups, detectors, after),
        edges=edges,
        histograms=histograms,
    )


def _measured(
    scores: Mapping[str, Mapping[str, Tensor]], groups: Mapping[str, _Group], calm: Sequence[str], best: str
) -> tuple[tuple[Measured, ...], tuple[Measured, ...], dict[str, Curve], dict[str, Curve]]:
    """Every detector and yardstick on every cell, and on the cells of one family and kind together."""
    measured: list[Measured] = []
    noise: list[Measured] = []
    curves: dict[str, Curve] = {}
    noise_curves: dict[str, Curve] = {}
    families = list(dict.fromkeys((g.cell.family, g.cell.targeted, g.seen) for g in groups.values()))
    for label, own in scores.items():
        for family, targeted, seen in families:
            wanted = (family, targeted, seen)
            chosen = {n: g for n, g in groups.items() if (g.cell.family, g.cell.targeted, g.seen) == wanted}
            against = partial(measure.measure, label, family=family, targeted=targeted, seen=seen)
            together = torch.cat([own[n] for n in chosen])
            everybody = [name for g in chosen.values() for name in g.images.names]
            alike = torch.cat([own[noise_label(g.cell)] for g in chosen.values()])
            measured.append(against(own[NATURAL], together, names=(calm, everybody)))
            noise.append(against(alike, together, names=(everybody, everybody)))
            if len(chosen) > 1:
                for n, g in chosen.items():
                    measured.append(against(own[NATURAL], own[n], names=(calm, g.images.names), variant=g.cell.attack))
            if label == best:
                name = f"{family} {kind(targeted)}"
                name = name if name not in curves else f"{family} unseen {kind(targeted)}"
                curves[name] = measure.curve(own[NATURAL], together)
                noise_curves[name] = measure.curve(alike, together)
    return tuple(measured), tuple(noise), curves, noise_curves


def operating(thresholds: Thresholds | None) -> tuple[float, float | None]:
    """The threshold that a detector is used at where none is chosen, and the false-alarm rate that it was set for."""
    assert thresholds is not None  # a study's detectors are calibrated
    rate = thresholds.usual_rate
    return thresholds.at(rate), rate


def _alarms(label: str, detector: Detector, scores: Mapping[str, Tensor], one: Kind) -> FalseAlarms:
    threshold, rate = operating(detector.thresholds)
    return FalseAlarms(
        detector=label,
        label=one.label,
        sort=one.sort,
        fitted=one.fitted,
        kind_fitted=one.kind_fitted,
        threshold=threshold,
        rate=rate,
        found=Flagged.of(scores[one.label], one.names, threshold),
    )


def _changed(
    setting: Setting,
    clean: Clean,
    groups: Mapping[str, _Group],
    detectors: Mapping[str, Detector],
    after: Sequence[Control],
) -> tuple[Changed, ...]:
    rows = []
    for control in (None, *after):
        natural = clean.natural.of(setting.splits.natural["test"])
        calm = natural if control is None else controlled(setting, control, "test")
        own = {label: scores_of(found, calm) for label, found in detectors.items()}
        for group in groups.values():
            cell = group.cell
            if control is not None and cell.on_logits is None:
                continue
            if control is None:
                changed = kept = group.images
            else:
                changed = attacked_under(setting, cell, control, "test")
                goal = ReachClass(setting=setting, clean=clean)
                good = goal.reaches(changed, on_logits=bool(cell.on_logits), targeted=cell.targeted)
                kept = changed.take(good)
            for label, found in detectors.items():
                area, flagged = None, None
                if len(kept):
                    scores = scores_of(found, kept)
                    people = people_of(calm.names), people_of(kept.names)
                    area = auc_interval(own[label], scores, people=people)
                    flagged = Flagged.of(scores, kept.names, operating(found.thresholds)[0])
                rows.append(
                    Changed(
                        detector=label,
                        attack=cell.attack,
                        targeted=cell.targeted,
                        seen=group.seen,
                        control=UNCHANGED if control is None else control.label,
                        tried=len(changed),
                        kept=len(kept),
                        area=area,
                        found=flagged,
                    )
                )
    return tuple(rows)


def _histograms(
    scores: Mapping[str, Tensor], groups: Mapping[str, _Group], naturals: Sequence[Kind]
) -> tuple[tuple[float, ...], tuple[Histogram, ...]]:
    low, high = np.quantile(torch.cat(list(scores.values())).double().numpy(), _SPAN)
    edges = np.linspace(low, max(high, low + 1e-3), _BINS + 1)

    def of(label: str, sort: str, seen: bool) -> Histogram:
        counts, _ = np.histogram(np.clip(scores[label].double().numpy(), edges[0], edges[-1]), edges)
        return Histogram(label=label, sort=sort, seen=seen, counts=tuple(counts.tolist()))

    made = [of(one.label, one.sort, one.fitted) for one in naturals]
    return tuple(edges.tolist()), (*made, *(of(name, "attack", group.seen) for name, group in groups.items()))
