"""The kNN study of Carrara et al. 2017 as a part of recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.attacks.spec import parse_attack
from fastadv.core.progress import Progress
from fastadv.core.statistics import eer
from fastadv.data import FaceSource, to_uint8
from fastadv.data.images import write_png
from fastadv.studies.detection.knn import AGGREGATE, ERRORS, KnnScores
from fastadv.studies.detection.knn_study import KnnExample, KnnStudy, knn_folder
from fastadv.studies.papers.faces import with_new_head
from fastadv.studies.papers.recipe import Cost, Setup, StudyPart

DRAWS = 200
KEPT = (0.98, 0.9)
"""Shares of the natural images that a threshold keeps, at which the paper says what is refused."""

_SHOWN = 4  # hardest and easiest images
_LBFGS = 200  # evaluations of an image, about


@dataclass(frozen=True, kw_only=True)
class KnnPart(StudyPart):
    """Targeted attacks on rightly classified images of some people, and the kNN score of all that is set aside.

    Attributes:
        attacks: On the class head.
        people: How many, who have ``natural + attacked`` images and some more.
        natural: Images of each person that stay as they are.
        attacked: Images of each person to attack.
        most: Images of a person that are used.
        k: Neighbours that vote; None: as many as a person has in the index, in the mean.
    """

    attacks: tuple[str, ...]
    people: int
    natural: int
    attacked: int
    most: int
    k: int | None = None

    def run(self, setup: Setup, folder: Path, progress: Progress) -> Mapping[str, Any]:
        """Run the study in the folder."""
        source, model, config = with_new_head(self, setup)
        study = knn_folder(
            config, source, model, path=folder / "study", engine=setup.engine, k=self.k, progress=progress
        )
        best = study.best
        numbers = {name: best.column(name).tolist() for name in (*best.attacked, ERRORS)}
        draws = tuple(_draws(study, setup.seed))
        return {
            "layer": best.layer,
            "components": best.components,
            "k": best.k,
            "index": study.index,
            "accuracy": study.accuracy,
            "images": {"natural": len(best.natural), **{c: len(best.column(c)) for c in (*numbers, AGGREGATE)}},
            "attacks": {cell.group: [cell.made, cell.tried] for cell in study.cells},
            "accuracies": {_kind(scores): _accuracies(scores, draws) for scores in study.scores},
            "refused": {f"{share:g}": _refused(best, share, draws) for share in KEPT},
            "supports": {
                _kind(scores): {"natural": scores.natural.tolist(), **{n: scores.column(n).tolist() for n in numbers}}
                for scores in study.scores
                if scores.processing == best.processing and scores.weighting != "uniform"
            },
            "likeness": [[each.score, each.likeness] for each in study.examples],
            "examples": _examples(study, source, folder, f"parts/{setup.label}/{self.name}"),
        }

    def cost(self, setup: Setup) -> Cost:
        """Every image to attack by every attack; L-BFGS takes what it needs."""
        images = self.people * self.attacked
        steps = sum(_LBFGS if text.startswith("lbfgs") else parse_attack(text).recipe().steps for text in self.attacks)
        made = images * len(self.attacks)
        return Cost(gradients=images * steps, forwards=self.people * self.most + made, images=made)


def _kind(scores: KnnScores) -> str:
    return f"{scores.processing} {scores.weighting}"


Chosen = Mapping[str, NDArray[np.int64]]


def _draws(study: KnnStudy, seed: int) -> Iterator[Chosen]:
    """Places of the images by column: all of them first, then those of people drawn anew, with all of their images."""
    names = sorted({name for own in study.people.values() for name in own})
    place = {name: k for k, name in enumerate(names)}
    own = {column: np.array([place[name] for name in people], np.int64) for column, people in study.people.items()}
    yield {column: np.arange(len(people)) for column, people in own.items()}
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(DRAWS):
        times = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))
        yield {column: np.repeat(np.arange(len(people)), times[people]) for column, people in own.items()}


def _column(scores: KnnScores, name: str, chosen: Chosen) -> NDArray[np.float64]:
    """The support of the drawn images of a column."""
    if name == AGGREGATE:
        return np.concatenate([_column(scores, each, chosen) for each in scores.aggregate])
    found = scores.natural if name == "natural" else scores.column(name)
    return np.asarray(found.double().numpy()[chosen[name]])


def _accuracies(scores: KnnScores, draws: Sequence[Chosen]) -> dict[str, list[float | None]]:
    """Accuracy at the equal error rate, of all images and of each draw; None where a draw has none of a kind."""
    found: dict[str, list[float | None]] = {}
    for name in (*scores.attacked, AGGREGATE, ERRORS):
        found[name] = []
        for chosen in draws:
            calm, moved = _column(scores, "natural", chosen), _column(scores, name, chosen)
            both = np.concatenate([1 - calm, 1 - moved])
            there = len(calm) and len(moved)
            rate = eer(both, np.arange(len(both)) >= len(calm))[0] if there else None
            found[name].append(None if rate is None else round(1 - rate, 6))
    return found


def _refused(scores: KnnScores, kept: float, draws: Sequence[Chosen]) -> dict[str, list[float | None]]:
    """The share of each column below the highest threshold that keeps so many natural images; likewise."""
    found: dict[str, list[float | None]] = {name: [] for name in ("natural", *scores.attacked, AGGREGATE, ERRORS)}
    for chosen in draws:
        calm = np.sort(_column(scores, "natural", chosen))
        threshold = calm[int((1 - kept) * len(calm) + 1e-9)] if len(calm) else np.nan
        for name, numbers in found.items():
            own = _column(scores, name, chosen)
            numbers.append(round(float((own < threshold).mean()), 6) if len(own) and len(calm) else None)
    return found


def _examples(study: KnnStudy, source: FaceSource, folder: Path, here: str) -> list[dict[str, Any]]:
    """The hardest and the easiest images, with what they were made from and their neighbour as pictures."""
    count = min(_SHOWN, len(study.examples) // 2)
    chosen = [("hardest", each) for each in study.examples[:count]]
    chosen += [("easiest", each) for each in study.examples[len(study.examples) - count :]]
    return [_example(kind, number, each, source, folder, here) for number, (kind, each) in enumerate(chosen)]


def _example(kind: str, number: int, each: KnnExample, source: FaceSource, folder: Path, here: str) -> dict[str, Any]:
    files = {"adversarial": f"{here}/{each.image.relative_to(folder)}"}
    for what, name in (("original", each.source), ("neighbour", each.neighbour)):
        if name is not None:
            file = folder / "pictures" / f"{number}-{what}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_png(file, to_uint8(source.load(name).image))
            files[what] = f"{here}/pictures/{file.name}"
    plain = {name: value for name, value in asdict(each).items() if name != "image"}
    return {"kind": kind, **plain, "files": files}


def kinds() -> Iterator[tuple[str, str, str]]:
    """The rows of table 2: processing, weighting, and the key of their results."""
    for processing, weighting in product(("none", "l2", "pca"), ("uniform", "rank", "inverse_square")):
        yield processing, weighting, f"{processing} {weighting}"
