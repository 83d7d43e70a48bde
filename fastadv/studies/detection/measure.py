"""How well scores tell adversarial images from natural ones: areas and rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.core.statistics import tar_at_far
from fastadv.detection import AreaUnderCurve, DeepKnn, LocalDimension, Mahalanobis, auc_interval
from fastadv.detection.measures import found_intervals, resolved
from fastadv.recognition import roc
from fastadv.studies.detection.features import Features, batches
from fastadv.studies.detection.plan import people_of
from fastadv.studies.detection.setting import Clean, Setting

FALSE_ALARMS = (0.001, 0.01, 0.05)
"""False-alarm rates at which the share of found adversarial images is told."""

_POINTS = 400  # of a curve that is kept for the page
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
    both = labelled(calm, attacked)
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


def labelled(calm: Tensor, attacked: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The scores of both, and which of them are adversarial images'."""
    scores = torch.cat([calm, attacked]).double().numpy()
    return scores, np.arange(len(scores)) >= len(calm)


def curve(calm: Tensor, attacked: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """False-alarm rates, and the shares of adversarial images found; thinned where there are many points."""
    found = roc(*labelled(calm, attacked))
    places = np.unique(np.linspace(0, len(found.far) - 1, _POINTS).astype(int))
    # the low rates are what a reader looks for: all of their points stay
    places = np.union1d(places, np.nonzero(found.far <= 0.02)[0])
    return tuple(found.far[places].tolist()), tuple(found.tar[places].tolist())


def yardstick_scores(setting: Setting, clean: Clean, groups: Mapping[str, Features]) -> dict[str, dict[str, Tensor]]:
    """Scores of the field's detectors that need no adversarial images to fit, by name and group.

    Args:
        setting: The study.
        clean: Its unchanged images; those that are not set aside are what the yardsticks know.
        groups: Images to score.
    """
    labels = setting.labels(clean.rest.names)
    mahalanobis = Mahalanobis.fit(
        batches(clean.rest, setting.places(clean.rest.names), setting.layers),
        layers=setting.layers,
        classes=setting.splits.people,
        shrinkage=_SHRINKAGE,
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
