"""The adaptive attack: a goal that is reached only past the detector, which the attacker knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.attacks.attack import Attack
from fastadv.attacks.classifier_goals import Misclassify
from fastadv.attacks.goal import Goal, Rows, check_classes
from fastadv.attacks.objective import as_goal
from fastadv.attacks.recipe import Recipe
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.fields import is_int, is_number
from fastadv.detection import Detector, LayerTap
from fastadv.detection.check_model import check_head
from fastadv.detection.taps import submodules
from fastadv.models import FaceModel

_OUTPUTS = ("embedding", "logits")


class WatchedModel(FaceModel):
    """A model under a detector: each of its outputs carries the detector's logit as one more column, the last.

    One forward pass gives both, and a backward pass goes through both: the pooled layers and the distances to the
    classes have derivatives. What ``EvadeDetector`` needs. An embedding given with a goal instead of an image would
    lack the column: give images, or embeddings with a 0 for each further column.

    With ``claims`` there is a logit for each of these identities, C in all, that of an image which claims to show it.

    Args:
        model: The model, in evaluation mode; its weights are shared.
        detector: Fitted on taps of this model, on its device.
        claims: The identities that an image may claim to show, as places among the detector's classes; only with the
            reading ``relative``. None: the detector reads the class that the head chooses, or the nearest one.

    Raises:
        TypeError: ``model`` is no ``FaceModel`` or ``detector`` no ``Detector``.
        ValueError: The model lacks a layer of the detector, or is in training mode; or the claims do not fit.
    """

    def __init__(self, model: FaceModel, detector: Detector, claims: Sequence[int] = ()) -> None:
        if not isinstance(detector, Detector):
            raise ArgumentTypeError(f"detector: expected a Detector, got {type(detector).__name__}")
        LayerTap(model=model, layers=detector.layers)  # checks the model
        check_head(model, detector)
        # none of the detector's layers is folded away
        self._share(model, layers=tuple(dict.fromkeys((*model.layers, *submodules(detector.layers)))))
        self.eval()
        #: No submodule, so that its LSTM may stay in training mode.
        self.detector = detector
        self.claims = _checked_claims(claims, detector)
        self._own = torch.tensor(self.claims, dtype=torch.int64, device=model.device)

    def forward(self, images: Tensor) -> Tensor:
        """``(N, D + 1)``, or with claims ``(N, D + C)``: unit embeddings, and the detector's logit or logits."""
        features, logit = self._tapped(images)
        return torch.cat([F.normalize(features, dim=1), logit], 1)

    def logits(self, images: Tensor) -> Tensor:
        """``(N, K + 1)``, or with claims ``(N, K + C)``: class logits, and the detector's.

        Raises:
            ValueError: The model has no head.
        """
        if self.head is None:
            return super().logits(images)
        features, logit = self._tapped(images)
        return torch.cat([self.head(features), logit], 1)

    def _tapped(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tapped = LayerTap(model=self, layers=self.detector.layers)(images)
        if self.claims:
            # every image beside every claim: the layers are pooled once
            values = [value.repeat_interleave(len(self.claims), 0) for value in tapped.values]
            scores = self.detector.score(values, self._own.repeat(len(images)))
            return tapped.features, scores.view(len(images), len(self.claims))
        own = None if self.head is None else self.detector.trajectory.own_of(self.head(tapped.features).argmax(1))
        return tapped.features, self.detector.score(tapped.values, own)[:, None]


def _checked_claims(claims: Sequence[int], detector: Detector) -> tuple[int, ...]:
    made = tuple(int(claim) for claim in claims)
    if made and not detector.trajectory.relative:
        raise ArgumentError(f"claims: expected none for a detector of the reading 'raw', got {len(made)}")
    known = len(detector.trajectory.representatives.classes)
    if len(set(made)) != len(made) or not all(0 <= claim < known for claim in made):
        raise ArgumentError(f"claims: expected different places below {known}, the detector's classes, got {made}")
    return made


@dataclass(frozen=True, kw_only=True)
class EvadeDetector(Goal):
    r"""Reach a goal and look natural to a known detector: ``J = J_goal - weight * s``, with its logit s.

    To be run on a ``WatchedModel``. Achieved when the goal is achieved and ``s < threshold``. An attack that goes by
    the shortfall (C&W, DeepFool) or stops at success sees the detector by its threshold alone: give one.
    ``check_adapts`` says which attacks see it at all.

    One fixed weight for all images and steps is the plainest form; a weight of 0 is the attack that does not know of
    the detector. With ``by_shortfall`` J is a margin loss instead,

    .. math:: J = -\max(f, weight\,(s - threshold))

    with the goal's shortfall f (of class labels C&W's f). Each image follows what it lacks most, and J is positive
    where both are reached, whatever the weight: it need not balance two losses of different scales.

    Attributes:
        goal: What is wanted besides: a goal on embeddings or logits, ``goal_a & goal_b`` too.
        weight: Of the detector's logit, at least 0. A margin on the score is one on the weighted logit too.
        threshold: At and above which an image is flagged; infinite where only the goal decides about success.
        by_shortfall: Take the margin loss, which needs a weight and a finite threshold.
        claimed: ``(N,)`` integers, the place of each image's claimed identity among the ``claims`` of the
            ``WatchedModel``, whose logit is the one to evade; None of a model without claims.
        columns: How many logits of the detector the model gives, one without claims.

    Raises:
        ValueError: A field is out of range, or the goal is on another output.

    Source: Carlini and Wagner 2017, "Adversarial examples are not easily detected", section 2.3 (the perfect-knowledge
        adversary); the margin loss: Tramèr et al. 2020, "On adaptive attacks to adversarial example defenses", section
        4 (one loss whose optimum is an attack, instead of a sum to be balanced).
    """

    goal: Goal
    weight: float = 1.0
    threshold: float = math.inf
    by_shortfall: bool = False
    claimed: Tensor | None = None
    columns: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "goal", as_goal(self.goal))
        if self.goal.output not in _OUTPUTS:
            raise ArgumentError(f"goal: expected one on {' or '.join(_OUTPUTS)}, got one on {brief(self.goal.output)}")
        if not (is_number(self.weight) and self.weight >= 0):
            raise ArgumentError(f"weight: expected a number of at least 0, got {brief(self.weight)}")
        if not isinstance(self.threshold, (int, float)) or math.isnan(self.threshold):
            raise ArgumentError(f"threshold: expected a logit, got {brief(self.threshold)}")
        if self.by_shortfall and not (self.weight and math.isfinite(self.threshold)):
            raise ArgumentError(
                "by_shortfall: expected a positive weight and a finite threshold, got "
                f"weight {self.weight:g} and threshold {self.threshold:g}"
            )
        if not is_int(self.columns) or self.columns < 1 or (self.claimed is None and self.columns > 1):
            raise ArgumentError(
                f"columns: expected {'1 without claimed' if self.claimed is None else 'at least 1'}, "
                f"got {brief(self.columns)}"
            )
        if self.claimed is not None:
            check_classes("claimed", self.claimed)
            if len(self.claimed) and int(self.claimed.max()) >= self.columns:
                raise ArgumentError(f"claimed: expected places below {self.columns}, got {int(self.claimed.max())}")

    @property
    def further_columns(self) -> int:
        """How many columns of the outputs it reads besides the embedding or the logits."""
        return self.columns

    @property
    def output(self) -> str:
        """The goal's."""
        return self.goal.output

    @property
    def metric(self) -> str:
        """The goal's."""
        return self.goal.metric

    @property
    def own_reference(self) -> bool:
        """The goal's."""
        return self.goal.own_reference

    @property
    def references(self) -> Tensor | None:
        """The goal's."""
        return self.goal.references

    @property
    def labels(self) -> Tensor | None:
        """The goal's."""
        return self.goal.labels

    @property
    def parts(self) -> tuple[Goal, ...]:
        """The goal's, and with claims one more, whose labels they are."""
        return self.goal.parts if self.claimed is None else (*self.goal.parts, _Claimed(self.claimed))

    @property
    def held(self) -> tuple[str, ...]:
        """The field with one row per image."""
        return () if self.claimed is None else ("claimed",)

    def row(self, index: int) -> EvadeDetector:
        """The goal of one image."""
        claimed = None if self.claimed is None else self.claimed[index : index + 1]
        return replace(self, goal=self.goal.row(index), claimed=claimed)

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        if self.by_shortfall:
            return -self.shortfall(outputs, rows)
        bare, own, logit = self._split(outputs, rows)
        return self.goal.loss(bare, own) - self.weight * logit

    def score(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The goal's."""
        bare, own, _ = self._split(outputs, rows)
        return self.goal.score(bare, own)

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        bare, own, logit = self._split(outputs, rows)
        spare = margin / self.weight if self.weight else 0.0
        return self.goal.achieved(bare, own, margin) & (logit < self.threshold - spare)

    def shortfall(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The larger of the goal's and of the weighted logit above the threshold: below 0 once both are reached."""
        bare, own, logit = self._split(outputs, rows)
        goal = self.goal.shortfall(bare, own)
        if math.isinf(self.threshold) or not self.weight:
            return goal
        return torch.maximum(goal, self.weight * (logit - self.threshold))

    def _split(self, outputs: Tensor, rows: Rows) -> tuple[Tensor, Rows, Tensor]:
        """Outputs and rows without the detector's columns, and the logit ``(N,)`` that decides about each image."""
        logit = outputs[:, -1]
        if self.claimed is not None:
            *others, claim = rows.parts
            logit = outputs[:, -self.columns :].gather(1, claim.named[:, None])[:, 0]
            rows = others[0] if len(others) == 1 else Rows(parts=tuple(others))
        return outputs[:, : -self.columns], _bare_rows(rows, self.columns), logit


@dataclass(frozen=True)
class _Claimed(Goal):
    """The part of an ``EvadeDetector`` that carries the claims of the images; no goal by itself."""

    labels: Tensor

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        raise NotImplementedError


def check_adapts(recipe: Recipe) -> None:
    """Refuse an attack that would not see the detector of an ``EvadeDetector``.

    What the attack ascends must rise as the logit of an image that is flagged falls; random noise has no gradient to
    follow, and APGD's ratio of logits would take the detector for a class. A surrogate that edits or adds networks
    would differentiate one without the detector.

    Raises:
        ValueError: The attack cannot adapt, with the reason.
    """
    surrogate = recipe.surrogate
    if surrogate.dropout is not None or surrogate.skip is not None or surrogate.ensemble is not None:
        raise ArgumentError(
            f"attack: expected one that can adapt to a detector, got {recipe.name}, which moves on other "
            "networks than the watched one"
        )
    if not recipe.attack.needs_gradient:
        raise ArgumentError(
            f"attack: expected one that can adapt to a detector, got {recipe.name}, which follows no gradient"
        )
    if not _sees_detector(recipe.attack):
        raise ArgumentError(
            f"attack: expected one that can adapt to a detector, got {recipe.name}, whose objective is "
            "not that of the goal"
        )


def _sees_detector(attack: Attack[Any]) -> bool:
    labels = torch.zeros(1, dtype=torch.int64)
    goal = EvadeDetector(goal=Misclassify(labels), weight=1.0, threshold=-10.0)
    # classified rightly, and flagged far above the threshold
    outputs = torch.tensor([[3.0, 2.0, 1.5, 1.0, 0.5, 50.0]], requires_grad=True)
    query = attack.allocate(torch.zeros(1, 3, 4, 4)).query
    with torch.enable_grad():
        objective = attack.objective(goal, outputs, Rows(label=labels), query)
        (gradient,) = torch.autograd.grad(objective.sum(), outputs)
    return bool(gradient[0, -1] < 0)


def _bare_rows(rows: Rows, columns: int) -> Rows:
    """The rows without the detector's columns."""
    reference = None if rows.reference is None else rows.reference[:, :-columns]
    return replace(rows, reference=reference, parts=tuple(_bare_rows(part, columns) for part in rows.parts))
