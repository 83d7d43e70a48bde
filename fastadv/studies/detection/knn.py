"""The kNN score's table: every processing and weighting, on every layer that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv import ops
from fastadv.core.errors import ArgumentError
from fastadv.core.statistics import eer, tar_at_far
from fastadv.detection.knn import PROCESSINGS, WEIGHTINGS, KnnScore, fit_knn
from fastadv.detection.measures import resolved
from fastadv.studies.detection.attacks import AttackedImages
from fastadv.studies.detection.features import Features, batches, joined
from fastadv.studies.detection.measure import labelled
from fastadv.studies.detection.setting import Clean, Setting

KNN_NAMES = {"uniform": "kNN", "rank": "W-kNN", "inverse_square": "DW-kNN"}
AGGREGATE, ERRORS = "aggregate", "natural errors"
AGGREGATED = ("lbfgs targeted", "fgsm targeted")
"""What the aggregate of Carrara et al. is made of."""
_KEPT = 0.98  # of the rightly classified images at the very low threshold of Carrara et al.


@dataclass(frozen=True, kw_only=True)
class KnnRow:
    """One kind of kNN score on one layer: a row of Carrara et al.'s table 2.

    Attributes:
        layer: Whose pooled output is the feature.
        processing: ``"none"``, ``"l2"`` or ``"pca"``.
        components: Axes that PCA kept; None without PCA.
        weighting: ``"uniform"``, ``"rank"`` or ``"inverse_square"``.
        accuracy: At the equal error rate, by column: each attack with its kind, in all its settings, ``"aggregate"``
            and ``"natural errors"`` (misclassified natural images; absent where there are none).
        refused: Share of the images of each column that a threshold refuses which keeps 98 % of the rightly
            classified natural images; None where these are fewer than 50.
        images: How many images each column has.
        natural: How many rightly classified natural images they are compared with.
        aggregate: The attacks in the aggregate: targeted L-BFGS and FGSM, as in the paper, where both are in the study;
            else all.
        k: Neighbours that voted.
    """

    layer: str
    processing: str
    components: int | None
    weighting: str
    accuracy: Mapping[str, float]
    refused: Mapping[str, float | None]
    images: Mapping[str, int]
    natural: int
    aggregate: tuple[str, ...]
    k: int


@dataclass(frozen=True, kw_only=True, eq=False)
class KnnScores:
    """One kind of kNN score on one layer, image by image: what a `KnnRow` and curves are made of.

    Attributes:
        layer: Whose pooled output is the feature.
        processing: ``"none"``, ``"l2"`` or ``"pca"``.
        components: Axes that PCA kept; None without PCA.
        weighting: ``"uniform"``, ``"rank"`` or ``"inverse_square"``.
        k: Neighbours that voted.
        natural: ``(N,)`` support of the predicted class, of the rightly classified natural images.
        errors: Of the misclassified ones.
        attacked: Of the adversarial images, by attack with its kind.
    """

    layer: str
    processing: str
    components: int | None
    weighting: str
    k: int
    natural: Tensor
    errors: Tensor
    attacked: Mapping[str, Tensor]

    @property
    def aggregate(self) -> tuple[str, ...]:
        """The attacks in the aggregate: those of the paper where both are there, else all."""
        return AGGREGATED if all(name in self.attacked for name in AGGREGATED) else tuple(self.attacked)

    def column(self, name: str) -> Tensor:
        """The support of the images of a column: an attack, the aggregate or the natural errors."""
        if name == AGGREGATE:
            return torch.cat([self.attacked[each] for each in self.aggregate])
        return self.errors if name == ERRORS else self.attacked[name]

    def accuracy(self, name: str) -> float:
        """Share decided rightly at the threshold where both kinds of error are equally frequent."""
        return 1 - eer(*labelled(1 - self.natural, 1 - self.column(name)))[0]

    def row(self) -> KnnRow:
        """The figures of the table."""
        calm = 1 - self.natural
        rates = resolved((1 - _KEPT,), len(calm))
        columns = (*self.attacked, AGGREGATE, *([ERRORS] if len(self.errors) else []))
        pairs = {name: labelled(calm, 1 - self.column(name)) for name in columns}
        return KnnRow(
            layer=self.layer,
            processing=self.processing,
            components=self.components,
            weighting=self.weighting,
            accuracy={name: self.accuracy(name) for name in columns},
            refused={name: tar_at_far(*pair, rates[0]) if rates else None for name, pair in pairs.items()},
            images={name: len(self.column(name)) for name in columns},
            natural=len(calm),
            aggregate=self.aggregate,
            k=self.k,
        )


def knn_rows(
    setting: Setting,
    clean: Clean,
    cells: Sequence[AttackedImages],
    *,
    layers: Sequence[str],
    k: int | None,
    dimensions: int | float,
) -> tuple[KnnRow, ...]:
    """The figures of `knn_scores`, kind by kind.

    Raises:
        ValueError: As ``knn_scores``.

    Source:
        Carrara et al. 2017, "Detecting adversarial example attacks to deep neural networks", section 5.
    """
    return tuple(found.row() for found in knn_scores(setting, clean, cells, layers=layers, k=k, dimensions=dimensions))


def knn_scores(
    setting: Setting,
    clean: Clean,
    cells: Sequence[AttackedImages],
    *,
    layers: Sequence[str],
    k: int | None,
    dimensions: int | float,
) -> tuple[KnnScores, ...]:
    """All processings and weightings on every layer.

    Nothing is fitted to attacks, so every person's images count; the natural ones are all that are set aside, those to
    attack too.

    Args:
        setting: The study.
        clean: Its unchanged images; those that are not set aside are the index.
        cells: What attacks made.
        layers: Whose pooled outputs are the features.
        k: Neighbours, at most as many as there are images in the index; None: as many as a person has there, in the
            mean.
        dimensions: Of the PCA, as ``fit_knn`` takes them.

    Raises:
        ValueError: No adversarial image, or none that is classified rightly; ``k`` is beyond the index.
    """
    index = list(batches(clean.rest, setting.labels(clean.rest.names), setting.layers))
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
    found: list[KnnScores] = []
    for number, layer in enumerate(layers):
        place = setting.layers.index(layer)
        own = [(values[place], labels) for values, labels in index]
        for processing in PROCESSINGS:
            score = fit_knn(
                own, layer=layer, model=setting.model.name, processing=processing, dimensions=dimensions, k=count
            )
            found += _scored(score, natural, right, columns, place)
        setting.progress("kNN score", number + 1, len(layers))
    return tuple(found)


def _scored(
    score: KnnScore, natural: Features, right: Tensor, columns: Mapping[str, Features], place: int
) -> list[KnnScores]:
    """Every weighting, of neighbours that are looked for once."""
    images = {"": natural, **columns}
    near = {name: score.nearest(own.values[place]) for name, own in images.items()}
    made = []
    for weighting in WEIGHTINGS:
        support = {
            name: ops.knn_score(found.distances, found.labels, images[name].predicted, weighting=weighting)
            for name, found in near.items()
        }
        everything = support.pop("")
        made.append(
            KnnScores(
                layer=score.layer,
                processing=score.processing,
                components=None if score.projection is None else score.projection.matrix.shape[1],
                weighting=weighting,
                k=score.k,
                natural=everything[right],
                errors=everything[~right],
                attacked=support,
            )
        )
    return made
