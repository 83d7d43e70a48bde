"""How well scores tell adversarial images from natural ones: areas, rates and the kNN score's table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.core.errors import ArgumentError
from fastadv.core.statistics import tar_at_far
from fastadv.detection import AreaUnderCurve, DeepKnn, LocalDimension, Mahalanobis, auc_interval, calibrate
from fastadv.detection.knn import PROCESSINGS, WEIGHTINGS, KnnScore, fit_knn
from fastadv.detection.measures import found_intervals, resolved
from fastadv.recognition import roc
from fastadv.studies.detection.attacks import AttackedImages
from fastadv.studies.detection.features import Features, batches, joined
from fastadv.studies.detection.setting import Clean, Setting

FALSE_ALARMS = (0.001, 0.01, 0.05)
"""False-alarm rates at which the share of found adversarial images is told."""

KNN_NAMES = {"uniform": "kNN", "rank": "W-kNN", "inverse_square": "DW-kNN"}
AGGREGATE, ERRORS = "aggregate", "natural errors"
_POINTS = 400  # of a curve that is kept for the page
_KEPT = 0.98  # of the rightly classified images at the very low threshold of Carrara et al.
_LID_IMAGES, _LID_K = 100, 20
_DEEP_K = 75
_SHRINKAGE = 0.01


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One detector against one group of adversarial images.

    Attributes:
        detector: Its name.
        family: The attack.
        targeted: Whether it went for a class.
        seen: Whether the detector was fitted on this attack.
        variant: Which of the attack's settings, or "" for all of them together.
        area: AUC with its bootstrap interval.
        found: Share of the adversarial images above the natural ones' threshold, for each of ``FALSE_ALARMS``; None
            where there are too few natural images for the rate.
        images: How many adversarial ones.
        intervals: Of each ``found``: at 95 %, over people; None where there is no share.
        natural: How many natural images, or images with noise, they are compared with.
    """

    detector: str
    family: str
    targeted: bool
    seen: bool
    variant: str
    area: AreaUnderCurve
    found: tuple[float | None, ...]
    images: int
    intervals: tuple[tuple[float, float] | None, ...]
    natural: int


def measure(
    detector: str,
    calm: Tensor,
    attacked: Tensor,
    *,
    names: tuple[Sequence[str], Sequence[str]],
    family: str,
    targeted: bool,
    seen: bool,
    variant: str = "",
) -> Measured:
    """Compare the scores ``(N,)`` of natural images with those ``(M,)`` of adversarial ones.

    The AUC's interval draws the people of the images' ``names`` anew, each with all of their images.

    Raises:
        ValueError: No scores, or scores that are not finite.
    """
    rates = resolved(FALSE_ALARMS, len(calm))
    both = _both(calm, attacked)
    people = people_of(names[0]), people_of(names[1])
    spans = dict(zip(rates, found_intervals(calm, attacked, rates=rates, people=people), strict=True))
    return Measured(
        detector=detector,
        family=family,
        targeted=targeted,
        seen=seen,
        variant=variant,
        area=auc_interval(calm, attacked, people=people),
        found=tuple(tar_at_far(*both, rate) if rate in rates else None for rate in FALSE_ALARMS),
        images=len(attacked),
        intervals=tuple(spans.get(rate) for rate in FALSE_ALARMS),
        natural=len(calm),
    )


def _both(calm: Tensor, attacked: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The scores of both, and which of them are adversarial images'."""
    scores = torch.cat([calm, attacked]).double().numpy()
    return scores, np.arange(len(scores)) >= len(calm)


def people_of(names: Sequence[str]) -> list[str]:
    """The people of images, by the images' names."""
    return [name.rpartition("/")[0] for name in names]


def curve(calm: Tensor, attacked: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """False-alarm rates, and the shares of adversarial images found; thinned where there are many points."""
    found = roc(*_both(calm, attacked))
    places = np.unique(np.linspace(0, len(found.far) - 1, _POINTS).astype(int))
    # the low rates are what a reader looks for: all of their points stay
    places = np.union1d(places, np.nonzero(found.far <= 0.02)[0])
    return tuple(found.far[places].tolist()), tuple(found.tar[places].tolist())


@dataclass(frozen=True, kw_only=True)
class KnnRow:
    """One kind of kNN score: a row of Carrara et al.'s table 2.

    Attributes:
        processing: ``"none"``, ``"l2"`` or ``"pca"``.
        weighting: ``"uniform"``, ``"rank"`` or ``"inverse_square"``.
        accuracy: At the equal error rate, by column: each attack with its kind, in all its settings, ``"aggregate"``
            (all attacks) and ``"natural errors"`` (misclassified natural images; absent where there are none).
        refused: Share of the images of each column that a threshold refuses which keeps 98 % of the rightly
            classified natural images; None where these are fewer than 50.
        k: Neighbours that voted.
    """

    processing: str
    weighting: str
    accuracy: Mapping[str, float]
    refused: Mapping[str, float | None]
    k: int


def knn_rows(
    setting: Setting, clean: Clean, cells: Sequence[AttackedImages], *, layer: str, k: int | None, dimensions: int
) -> tuple[KnnRow, ...]:
    """All processings and weightings on one layer.

    Nothing is fitted to attacks, so every person's images count; the natural ones are all that are set aside, those to
    attack too.

    Args:
        setting: The study.
        clean: Its unchanged images; those that are not set aside are the index.
        cells: What attacks made.
        layer: Whose pooled output is the feature.
        k: Neighbours, at most as many as there are images in the index; None: as many as a person has there, in the
            mean.
        dimensions: Of the PCA, at most.

    Raises:
        ValueError: No adversarial image, or none that is classified rightly; ``k`` is beyond the index.

    Source:
        Carrara et al. 2017, "Detecting adversarial example attacks to deep neural networks", section 5.
    """
    place = setting.layers.index(layer)
    index = [(values[place], labels) for values, labels in batches(clean.rest, setting.labels(clean.rest.names))]
    natural = joined((clean.natural, clean.sources))
    right = setting.right(natural)
    count = min(len(clean.rest), max(1, round(len(clean.rest) / len(setting.splits.people)))) if k is None else k
    made: dict[str, list[Features]] = {}
    for cell in cells:
        if cell.features is not None:
            made.setdefault(cell.group, []).append(cell.features)
    columns = {group: joined(parts) for group, parts in made.items()}
    if not columns or not bool(right.any()):
        raise ArgumentError(
            "images: expected adversarial and rightly classified natural ones for the kNN score, got none of one kind"
        )
    rows = []
    for processing in PROCESSINGS:
        for weighting in WEIGHTINGS:
            score = fit_knn(
                index,
                layer=layer,
                model=setting.model.name,
                processing=processing,
                dimensions=dimensions,
                k=count,
                weighting=weighting,
            )
            rows.append(_knn_row(score, natural, right, columns, place))
    return tuple(rows)


def _knn_row(score: KnnScore, natural: Features, right: Tensor, columns: Mapping[str, Features], place: int) -> KnnRow:
    def of(features: Features) -> Tensor:
        return score.score(features.values[place], features.predicted)

    everything = of(natural)
    calm = everything[right]
    scores = {name: of(features) for name, features in columns.items()}
    scores[AGGREGATE] = torch.cat(list(scores.values()))
    if not bool(right.all()):
        scores[ERRORS] = everything[~right]
    rates = resolved((1 - _KEPT,), len(calm))
    lines = {name: calibrate(calm, found, rates=rates) for name, found in scores.items()}
    return KnnRow(
        processing=score.processing,
        weighting=score.weighting,
        accuracy={name: 1 - line.equal_error_rate for name, line in lines.items()},
        refused={
            name: float((scores[name] >= line.false_alarm[0]).float().mean()) if rates else None
            for name, line in lines.items()
        },
        k=score.k,
    )


def yardstick_scores(setting: Setting, clean: Clean, groups: Mapping[str, Features]) -> dict[str, dict[str, Tensor]]:
    """Scores of the field's detectors that need no adversarial images to fit, by name and group.

    Args:
        setting: The study.
        clean: Its unchanged images; those that are not set aside are what the yardsticks know.
        groups: Images to score.
    """
    labels = setting.labels(clean.rest.names)
    place = {person: k for k, person in enumerate(setting.splits.people)}
    own = torch.tensor([place[n.rpartition("/")[0]] for n in clean.rest.names], dtype=torch.int64)
    mahalanobis = Mahalanobis.fit(
        batches(clean.rest, own), layers=setting.layers, classes=setting.splits.people, shrinkage=_SHRINKAGE
    )
    made = {"Mahalanobis": {name: mahalanobis.score(found.values) for name, found in groups.items()}}
    order = torch.from_numpy(_order(len(clean.rest), setting.seed))
    if len(order) > 2:
        sample = clean.rest.take(order[:_LID_IMAGES])
        dimension = LocalDimension(reference=sample.values, k=min(_LID_K, len(sample) - 1))
        made["LID"] = {name: dimension.score(found.values) for name, found in groups.items()}
    held = clean.natural.of(setting.splits.natural["validate"])
    deep = DeepKnn.fit(
        clean.rest.values,
        labels,
        held_values=held.values,
        held_labels=setting.labels(held.names),
        k=min(_DEEP_K, len(clean.rest)),
    )
    made["deep kNN"] = {name: deep.score(found.values, found.predicted) for name, found in groups.items()}
    return made


def _order(count: int, seed: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(seed)).permutation(count)


def mean(values: Sequence[float]) -> float:
    """Of some numbers; NaN of none."""
    return sum(values) / len(values) if values else math.nan
