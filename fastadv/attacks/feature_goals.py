"""Goals of the deep-feature attacks: the features of a guide image, and a nearest-template verdict of its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv.attacks.gallery import Gallery
from fastadv.attacks.goal import Goal, Rows, check_classes, check_references
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import is_int, is_number
from fastadv.models.outputs import at_layer


@dataclass(frozen=True)
class MatchFeatures(Goal):
    """Have the features of a guide: ``J = -||phi_k(x) - phi_k(guide)||_2^2``, achieved at or below a distance.

    Attributes:
        guides: Images ``(N, 3, H, W)``, or their features ``(N, D)``.
        layer: k, the name of a submodule of the backbone, whose output is taken as a vector; None takes the unit
            embedding.
        threshold: The largest distance (not squared) that counts as matched, at least 0, in the features' own unit.

    Raises:
        ValueError: A field has the wrong shape, type or range.

    Source: Massoli et al., eq. 8, after Sabour et al. 2016, "Adversarial manipulation of deep representations".
    """

    metric: ClassVar[str] = "feature_distance"
    guides: Tensor
    layer: str | None = None
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.guides is None:
            raise ArgumentError("guides: expected images (N, 3, H, W) or features (N, D), got None")
        check_references("guides", self.guides, features=self.layer is not None)
        if self.layer is not None and (not isinstance(self.layer, str) or not self.layer):
            raise ArgumentError(
                f"layer: expected the name of a submodule of the backbone or None, got {brief(self.layer)}"
            )
        if not (is_number(self.threshold) and self.threshold >= 0):
            raise ArgumentError(f"threshold: expected a distance of at least 0, got {brief(self.threshold)}")

    @property
    def output(self) -> str:
        """``"embedding"``, or the layer's."""
        return "embedding" if self.layer is None else at_layer(self.layer)

    @property
    def references(self) -> Tensor:
        return self.guides

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        return -(outputs - rows.compared).square().sum(1)

    def score(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The distance to the guide's features."""
        return rows.distance(outputs)

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        return self.score(outputs, rows) <= self.threshold - margin

    def shortfall(self, outputs: Tensor, rows: Rows) -> Tensor:
        """How much farther than the threshold the guide is."""
        return self.score(outputs, rows) - self.threshold


@dataclass(frozen=True, kw_only=True)
class GalleryClass(Goal):
    """Be identified as a class, or as any but the own one, by the templates of a gallery.

    ``J = -||F(x) - g||_2^2``: the kNN-guided deep-feature attack, whose verdict is the gallery's. With guides, g is
    ``F(guide)``. Without, it is the template of a wanted class that is nearest to F(x), chosen anew at every
    evaluation; of equally near ones the first. So an untargeted attack, which has no guides, moves to the nearest other
    class.

    **choice**: the paper guides untargeted attacks by images too, and leaves open by which. With ``any_other`` guides
    are for an ensemble only, whose further networks have no templates.

    Achieved when the k nearest templates say a wanted class (``Gallery.vote``), also if every unwanted template were
    nearer by the margin.

    Attributes:
        gallery: The templates.
        labels: ``(N,)`` integers: the class to be identified as, or with ``any_other`` the own class.
        any_other: Whether any class but ``labels`` will do (untargeted).
        guides: Images ``(N, 3, H, W)`` or unit embeddings ``(N, D)`` to move towards, or None: see above.
        k: Neighbours that vote.

    Raises:
        ValueError: A field has the wrong shape, type or range, or a label is no class of the gallery.

    Source: Massoli et al., section 5.3.1.
    """

    metric: ClassVar[str] = "template_margin"
    by_templates: ClassVar[bool] = True
    gallery: Gallery
    labels: Tensor
    any_other: bool = False
    guides: Tensor | None = None
    k: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.gallery, Gallery):
            raise ArgumentError(f"gallery: expected a Gallery, got {type(self.gallery).__name__}")
        check_classes("labels", self.labels)
        check_references("guides", self.guides)
        if self.guides is not None and len(self.guides) != len(self.labels):
            raise ArgumentError(
                f"guides: expected one row for each of {len(self.labels)} labels, got {len(self.guides)}"
            )
        if not is_int(self.k) or not 1 <= self.k <= len(self.gallery.classes):
            raise ArgumentError(
                f"k: expected an integer from 1 to the gallery's {len(self.gallery.classes)} templates, got "
                f"{brief(self.k)}"
            )
        unknown = ~torch.isin(self.labels.to(self.gallery.classes.device), self.gallery.classes)
        if bool(unknown.any()):
            raise ArgumentError(f"labels: expected classes of the gallery, got {int(self.labels[unknown.cpu()][0])}")

    @property
    def references(self) -> Tensor | None:
        return self.guides

    def _wanted(self, rows: Rows) -> Tensor:
        """Which templates are of a wanted class, ``(N, T)``."""
        same: Tensor = rows.named[:, None] == self.gallery.classes
        return ~same if self.any_other else same

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        if rows.reference is not None:
            return -(outputs - rows.reference).square().sum(1)
        with torch.no_grad():
            distances = self.gallery.distances(outputs).masked_fill(~self._wanted(rows), torch.inf)
            nearest = self.gallery.templates[distances.argmin(1)]  # of equal ones the first
        return -(outputs - nearest).square().sum(1)

    def score(self, outputs: Tensor, rows: Rows) -> Tensor:
        """How much nearer the nearest wanted template is than the nearest unwanted one, whatever k."""
        distances, wanted = self.gallery.distances(outputs), self._wanted(rows)
        nearest = distances.masked_fill(~wanted, torch.inf).amin(1)
        return distances.masked_fill(wanted, torch.inf).amin(1) - nearest

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        distances = self.gallery.distances(outputs)
        if margin:
            distances = distances - margin * ~self._wanted(rows)
        said = self.gallery.vote(distances, self.k)
        return said != rows.named if self.any_other else said == rows.named

    def shortfall(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The score's negative."""
        return -self.score(outputs, rows)
