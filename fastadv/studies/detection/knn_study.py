"""The kNN score by the protocol of Carrara et al. 2017: targeted attacks, one layer, nothing fitted to an attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_one_of
from fastadv.core.files import write_json
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource
from fastadv.data.run_files import image_file
from fastadv.detection.knn import COMPONENTS
from fastadv.engine import Engine
from fastadv.models import FaceModel
from fastadv.studies.detection.attacks import AttackedImages, gallery_of, make
from fastadv.studies.detection.features import Features, joined
from fastadv.studies.detection.knn import ERRORS, KnnRow, KnnScores, knn_scores
from fastadv.studies.detection.plan import PARTS, people_of
from fastadv.studies.detection.setting import Clean, Setting, look
from fastadv.studies.detection.study import StudyConfig, begin, identity_of, planned
from fastadv.training import HeadConfig

KNN = "knn.json"
BEST = ("pca", "inverse_square")
"""The processing and the weighting that the paper draws its figures and examples of."""


@dataclass(frozen=True, kw_only=True)
class KnnExample:
    """An adversarial image with its score: a column of the paper's table 3.

    Attributes:
        attack: With its kind.
        source: Name of the image that was attacked.
        image: The file of the adversarial image.
        actual: Whom it shows.
        predicted: Whom the network takes it for.
        neighbour: Name of the indexed image of that person which is nearest by the pooled output of the layer; None
            where the index has nobody of the class.
        score: Support of the predicted class.
        likeness: Cosine of the mean embeddings of the two people, of their indexed images.
    """

    attack: str
    source: str
    image: Path
    actual: str
    predicted: str
    neighbour: str | None
    score: float
    likeness: float


@dataclass(frozen=True, kw_only=True, eq=False)
class KnnStudy:
    """What the study found.

    Attributes:
        scores: Every processing and weighting, on one layer.
        examples: Every adversarial image with the support by `BEST`, the highest first.
        people: Whom the images show that the scores are of: of ``"natural"``, `ERRORS` and each attack with its kind.
        cells: The adversarial images, those whose prediction the attack has changed.
        accuracy: Share of the natural images that the network classifies rightly.
        index: How many images the neighbours are looked for in.
    """

    scores: tuple[KnnScores, ...]
    examples: tuple[KnnExample, ...]
    people: Mapping[str, tuple[str, ...]]
    cells: tuple[AttackedImages, ...]
    accuracy: float
    index: int

    @property
    def best(self) -> KnnScores:
        """The scores by `BEST`."""
        return next(found for found in self.scores if (found.processing, found.weighting) == BEST)

    @property
    def rows(self) -> tuple[KnnRow, ...]:
        """The figures of each kind of score."""
        return tuple(found.row() for found in self.scores)


def knn_folder(
    config: StudyConfig,
    source: FaceSource,
    model: FaceModel,
    *,
    path: Path,
    engine: Engine,
    head: HeadConfig | None = None,
    layer: str | None = None,
    k: int | None = None,
    dimensions: int | float = COMPONENTS,
    fresh: bool = False,
    progress: Progress = silent,
) -> KnnStudy:
    """Attack rightly classified images towards a random class, and score everything by its neighbours; resumable.

    An adversarial image counts when the network no longer takes it for its person, as in the paper, whether or not it
    reached the class that the attack went for. **choice**: the paper's layer is the last convolutional one (pool5);
    here the last that the network names.

    Args:
        config: Attacks on logits, and whose images go where.
        source: The faces.
        model: The network, in evaluation mode.
        path: The study's folder; gets ``knn.json``.
        engine: How attacks are run.
        head: How a class head is trained where the network has none.
        layer: Whose pooled output is the feature; None: the last.
        k: Neighbours that vote; None: as many as a person has in the index, in the mean.
        dimensions: Of the PCA, as ``fit_knn`` takes them.
        fresh: Remove the study that the folder holds, and begin anew.
        progress: Told of every stage.

    Raises:
        ValueError: As ``begin`` and ``knn_scores``; an attack that is not on logits, or a layer that is not there.
        RunFolderError: The folder cannot take this study.
        ImageError, AlignmentError, OSError: A file cannot be read or written.

    Source:
        Carrara et al. 2017, "Detecting adversarial example attacks to deep neural networks", section 5.
    """
    for spec in config.attacks:
        if not spec.on_logits:
            raise ArgumentError(f"attack: expected one on logits, got {spec.label}")
    planned(config, source, model)  # refuses what cannot be before a folder is made
    own = identity_of(config, source, model, engine, head, path=path, fresh=fresh)
    with own.hold(path, fresh=fresh):
        setting = begin(config, source, model, path=path, engine=own.engine, head=head, progress=progress)
        chosen = setting.layers[-1] if layer is None else layer
        check_one_of("layer", chosen, setting.layers)
        clean = look(setting)

        def changed(features: Features) -> Tensor:
            return ~setting.right(features)

        cells = tuple(make(setting, clean, s, targeted=True, parts=PARTS, reaches=changed) for s in config.attacks)
        scores = knn_scores(setting, clean, cells, layers=(chosen,), k=k, dimensions=dimensions)
        best = next(found for found in scores if (found.processing, found.weighting) == BEST)
        made = KnnStudy(
            scores=scores,
            examples=_examples(setting, clean, cells, best),
            people=_people(setting, clean, cells),
            cells=cells,
            accuracy=float(setting.right(clean.natural).float().mean()),
            index=len(clean.rest),
        )
        write_json(path / KNN, describe(made))
    return made


def _examples(
    setting: Setting, clean: Clean, cells: Sequence[AttackedImages], best: KnnScores
) -> tuple[KnnExample, ...]:
    place, labels = setting.layers.index(best.layer), setting.labels(clean.rest.names)
    gallery = gallery_of(setting, clean)
    row_of = {int(c): k for k, c in enumerate(gallery.classes)}
    means = torch.nn.functional.normalize(gallery.templates, dim=1).cpu()
    alike = means @ means.T
    seen: dict[str, int] = {}
    made = []
    for cell in cells:
        if cell.features is None:
            continue
        begin = seen.get(cell.group, 0)
        seen[cell.group] = begin + len(cell.features)
        support = best.attacked[cell.group][begin : seen[cell.group]].tolist()
        far = torch.cdist(cell.features.values[place].double(), clean.rest.values[place].double())
        for row, name, class_, score, own in zip(
            cell.rows, cell.features.names, cell.features.predicted.tolist(), support, far, strict=True
        ):
            person = name.rpartition("/")[0]
            among = own.masked_fill(labels != class_, torch.inf)
            nearest = clean.rest.names[int(among.argmin())] if bool(torch.isfinite(among).any()) else None
            made.append(
                KnnExample(
                    attack=cell.group,
                    source=name,
                    image=image_file(cell.folder, row.name),
                    actual=person,
                    predicted=setting.classes[class_],
                    neighbour=nearest,
                    score=score,
                    likeness=float(alike[row_of[setting.logit[person]], row_of[class_]]),
                )
            )
    return tuple(sorted(made, key=lambda example: -example.score))


def _people(setting: Setting, clean: Clean, cells: Sequence[AttackedImages]) -> dict[str, tuple[str, ...]]:
    natural = joined((clean.natural, clean.sources))
    right = setting.right(natural)
    found = {"natural": people_of(natural.take(right).names), ERRORS: people_of(natural.take(~right).names)}
    for cell in cells:
        if cell.features is not None:
            found[cell.group] = [*found.get(cell.group, []), *people_of(cell.features.names)]
    return {name: tuple(people) for name, people in found.items()}


def describe(study: KnnStudy) -> Mapping[str, Any]:
    """The findings as plain JSON values; files by their names."""
    return {
        "accuracy": study.accuracy,
        "index": study.index,
        "cells": [cell.described() for cell in study.cells],
        "rows": [asdict(row) for row in study.rows],
        "examples": [{**asdict(each), "image": each.image.name} for each in study.examples],
    }
