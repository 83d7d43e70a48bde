"""Goals: what an attack wants of the model, as a loss to *ascend* and a test of success, image by image.

Every loss is a vector with one entry per image and the engine sums it, so an image's gradient never depends
on its neighbours. Conventions: F(x) is the L2-normalised embedding, d(a, b) = ||F(a) - F(b)||_2, and the
similarity is the cosine, 1 - d^2 / 2.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import is_number
from fastadv.models.checks import check_embeddings, check_images

METRICS = ("cosine", "euclidean")
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # what class indices may be


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a goal keeps of each image while it is attacked, one row an image.

    Attributes:
        reference: Unit embeddings ``(N, D)`` float32 that the image is compared with, or None.
        label: Class indices ``(N,)`` int64, or None.
    """

    reference: Tensor | None = None
    label: Tensor | None = None

    @property
    def compared(self) -> Tensor:
        """The reference of a goal that has one."""
        assert self.reference is not None
        return self.reference

    @property
    def named(self) -> Tensor:
        """The label of a goal that has one."""
        assert self.label is not None
        return self.label

    def distance(self, outputs: Tensor) -> Tensor:
        """The Euclidean distance of embeddings or features to the reference, ``(N,)``."""
        # vector_norm has the gradient 0 where the distance is 0, not NaN
        return torch.linalg.vector_norm(outputs - self.compared, dim=1)


class Goal(Protocol):
    """What every goal offers. A goal is a frozen dataclass whose tensors have one row an image."""

    @property
    def output(self) -> str:
        """What the model must return: ``"embedding"``, ``"logits"``, or a layer's output (``models.outputs``)."""

    def row(self, index: int) -> Goal:
        """The goal of one image, with tensors of one row."""

    @property
    def metric(self) -> str:
        """The name of the score."""

    @property
    def references(self) -> Tensor | None:
        """Images ``(N, 3, H, W)`` or embeddings ``(N, D)`` to compare with, or None."""

    @property
    def labels(self) -> Tensor | None:
        """Class indices ``(N,)``, or None."""

    @property
    def own_reference(self) -> bool:
        """Whether an image is compared with its own clean embedding."""

    @property
    def wants_label(self) -> bool:
        """Whether the goal is, on logits, to be given the label."""

    @property
    def avoids_label(self) -> bool:
        """Whether it is, on logits, to be given any other."""

    @property
    def by_templates(self) -> bool:
        """Whether an embedding is compared with templates, which are of the attacked model alone."""

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The loss to ascend, ``(N,)``."""

    def score(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The number that decides, ``(N,)``: similarity, distance or logit margin."""

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        """Whether the goal is reached with ``margin`` to spare, ``(N,)`` bool."""

    def shortfall(self, outputs: Tensor, rows: Rows) -> Tensor:
        """How far the goal is, ``(N,)``, in the unit of the score: 0 at the border, negative beyond it.

        It is C&W's f without its floor: with logits ``Z_y - max_{i != y} Z_i`` or its negative.
        """

    def rivals(self, outputs: Tensor, rows: Rows, count: int) -> Tensor:
        """The shortfalls of the ``count`` nearest ways to the goal, ``(N, count)``, ascending; inf where there is none.

        The first is ``shortfall``. Only an untargeted goal on logits has more: one for each other class.
        """


G = TypeVar("G", bound="RowGoal")


class RowGoal:
    """What goals share that do not say otherwise.

    Attributes:
        held: The names of the fields with one row an image, or None in their place. The others are those of ``Goal``.
    """

    output: ClassVar[str] = "embedding"
    own_reference: ClassVar[bool] = False
    held: ClassVar[tuple[str, ...]]
    wants_label: ClassVar[bool] = False
    avoids_label: ClassVar[bool] = False
    by_templates: ClassVar[bool] = False

    def row(self: G, index: int) -> G:
        """The goal of one image, with tensors of one row, which were checked when the goal was built."""
        other = copy.copy(self)
        for name in self.held:
            rows = getattr(self, name)
            object.__setattr__(other, name, None if rows is None else rows[index : index + 1])
        return other

    def shortfall(self, outputs: Tensor, rows: Rows) -> Tensor:
        """See ``Goal``."""
        raise NotImplementedError

    def rivals(self, outputs: Tensor, rows: Rows, count: int) -> Tensor:
        """The shortfall: there is one way only."""
        return F.pad(self.shortfall(outputs, rows)[:, None], (0, count - 1), value=torch.inf)


def check_references(name: str, value: Tensor | None, *, features: bool = False) -> None:
    """Refuse what is neither images in [0, 1] nor embeddings; ``features`` of a layer may be zero."""
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dim() not in (2, 4) or not value.is_floating_point():
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(f"{name}: expected float images (N, 3, H, W) or embeddings (N, D), got {got}")
    if value.dim() == 4:
        check_images(name, value)
    else:
        check_embeddings(name, value, zero=features)


def check_threshold(metric: str, threshold: float) -> None:
    if metric not in METRICS:
        raise ArgumentError(f"metric: expected one of {', '.join(METRICS)}, got {brief(metric)}")
    low, high = (-1.0, 1.0) if metric == "cosine" else (0.0, 2.0)
    if not (is_number(threshold) and low <= threshold <= high):
        raise ArgumentError(f"threshold: expected a {metric} value in [{low:g}, {high:g}], got {brief(threshold)}")


def check_classes(name: str, value: Tensor, *, expected: str = "integers (N,)") -> None:
    """A ValueError unless the value is a vector of integers of at least 0."""
    if not isinstance(value, Tensor) or value.dim() != 1 or value.dtype not in _INTEGERS:
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(f"{name}: expected {expected}, got {got}")
    if value.numel() and int(value.min()) < 0:
        raise ArgumentError(f"{name}: expected {expected} of at least 0, got {int(value.min())}")


class Compared(RowGoal):
    """Shared by the goals that compare an embedding with a reference: score and threshold."""

    accepted: ClassVar[bool]  # whether the goal is to be accepted as the reference
    threshold: float
    metric: str

    @property
    def labels(self) -> None:
        return None

    def score(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Cosine similarity, or the Euclidean distance of the unit embeddings."""
        if self.metric == "euclidean":
            return rows.distance(outputs)
        return (outputs * rows.compared).sum(1)

    def _acceptance(self, outputs: Tensor, rows: Rows) -> Tensor:
        """How far above the threshold of acceptance the pair is; negative when it is refused."""
        score = self.score(outputs, rows)
        return score - self.threshold if self.metric == "cosine" else self.threshold - score

    def shortfall(self, outputs: Tensor, rows: Rows) -> Tensor:
        """How far the pair is from being refused, or accepted, as the goal wants; in the unit of the score."""
        acceptance = self._acceptance(outputs, rows)
        return -acceptance if self.accepted else acceptance


@dataclass(frozen=True, kw_only=True)
class Evade(Compared):
    """Be refused: ``J = +d(x, reference)``, achieved when the pair falls below the threshold.

    The gradient of d is zero at the reference itself: an image that starts on its own embedding needs a random
    start, and the engine reports one that never had a gradient.

    Attributes:
        references: Images ``(N, 3, H, W)`` or unit embeddings ``(N, D)``; None compares each image with itself.
        threshold: The verifier's threshold, a cosine similarity or a distance according to ``metric``.
        metric: ``"cosine"`` (accepted at or above the threshold) or ``"euclidean"`` (accepted at or below it).

    Raises:
        ValueError: A field has the wrong shape, type or range.

    Source: Zhong and Deng, eq. 7-8 (positive pairs), with the sign of their algorithms.
    """

    accepted: ClassVar[bool] = False
    held: ClassVar[tuple[str, ...]] = ("references",)
    references: Tensor | None = None
    threshold: float
    metric: str = "cosine"

    def __post_init__(self) -> None:
        check_references("references", self.references)
        check_threshold(self.metric, self.threshold)

    @property
    def own_reference(self) -> bool:  # type: ignore[override]
        return self.references is None

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        return rows.distance(outputs)

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        return self._acceptance(outputs, rows) < -margin


@dataclass(frozen=True)
class Impersonate(Compared):
    """Be taken for the target: ``J = -d(x, target)``, achieved when the pair reaches the threshold.

    Attributes:
        targets: Images ``(N, 3, H, W)`` or unit embeddings ``(N, D)``.
        threshold: See ``Evade``; likewise ``metric``.

    Raises:
        ValueError: A field has the wrong shape, type or range.

    Source: Zhong and Deng, eq. 7-8 (negative pairs), with the sign of their algorithms.
    """

    accepted: ClassVar[bool] = True
    held: ClassVar[tuple[str, ...]] = ("targets",)
    targets: Tensor
    threshold: float
    metric: str = "cosine"

    def __post_init__(self) -> None:
        if self.targets is None:
            raise ArgumentError("targets: expected images (N, 3, H, W) or embeddings (N, D), got None")
        check_references("targets", self.targets)
        check_threshold(self.metric, self.threshold)

    @property
    def references(self) -> Tensor:
        return self.targets

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        return -rows.distance(outputs)

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        return self._acceptance(outputs, rows) >= margin


class _Labelled(RowGoal):
    """Shared by the goals on logits: the margin of a class over the best other one."""

    output: ClassVar[str] = "logits"
    metric: ClassVar[str] = "logit_margin"
    references: ClassVar[None] = None
    held: ClassVar[tuple[str, ...]] = ("labels",)
    labels: Tensor

    def __post_init__(self) -> None:
        check_classes("labels", self.labels, expected="integer class indices (N,)")

    def score(self, outputs: Tensor, rows: Rows) -> Tensor:
        """``Z_y - max_{i != y} Z_i``: positive while class y is predicted; shift-invariant in the logits."""
        label = rows.named[:, None]
        others = outputs.scatter(1, label, -torch.inf)
        return outputs.gather(1, label).squeeze(1) - others.amax(1)

    def shortfall(self, outputs: Tensor, rows: Rows) -> Tensor:
        """C&W's f without its floor: ``max_{i != y} Z_i - Z_y`` where y is wanted, else its negative."""
        score = self.score(outputs, rows)
        return -score if self.wants_label else score

    @staticmethod
    def _cross_entropy(outputs: Tensor, rows: Rows) -> Tensor:
        return F.cross_entropy(outputs, rows.named, reduction="none")


@dataclass(frozen=True)
class Misclassify(_Labelled):
    """Any other class: ``J = cross-entropy(Z(x), y_true)``, achieved when another class wins.

    Attributes:
        labels: The true classes ``(N,)``, integers.

    Source: Massoli et al., eq. 2; the untargeted form.
    """

    avoids_label: ClassVar[bool] = True
    labels: Tensor

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        return self._cross_entropy(outputs, rows)

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        return self.score(outputs, rows) < -margin

    def rivals(self, outputs: Tensor, rows: Rows, count: int) -> Tensor:
        """``Z_y - Z_i`` of the ``count`` classes i that are nearest to winning, ascending; no (N, K, D) Jacobian."""
        label = rows.named[:, None]
        others = outputs.scatter(1, label, -torch.inf)
        kept = min(count, outputs.shape[1] - 1)
        gaps = outputs.gather(1, label) - others.topk(kept, dim=1).values
        return F.pad(gaps, (0, count - kept), value=torch.inf)


@dataclass(frozen=True)
class ClassifyAs(_Labelled):
    """A chosen class: ``J = -cross-entropy(Z(x), y_target)``, achieved when the class wins.

    Attributes:
        labels: The wanted classes ``(N,)``, integers.

    Source: Massoli et al., eq. 2; the targeted form (FTGSM and ITGSM of Zhong and Deng).
    """

    wants_label: ClassVar[bool] = True
    labels: Tensor

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        return -self._cross_entropy(outputs, rows)

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        return self.score(outputs, rows) > margin
