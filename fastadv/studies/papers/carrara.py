"""Carrara et al. 2017, "Detecting adversarial example attacks to deep neural networks"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.core.estimates import Estimate, drawn, minus
from fastadv.core.statistics import wilson
from fastadv.studies.detection.knn import AGGREGATE, ERRORS, KNN_NAMES
from fastadv.studies.papers.carrara_part import KEPT, KnnPart, kinds
from fastadv.studies.papers.recipe import (
    Cell,
    Claim,
    Figure,
    PaperTable,
    Pictures,
    Results,
    Setup,
    StudyPart,
    StudyRecipe,
    Trace,
    numbered,
)
from fastadv.studies.papers.traces import histogram, roc_trace

_PART = "nearest-neighbours"
_LBFGS, _FGS = "lbfgs targeted", "fgsm targeted"
_COLUMNS = {"L-BFGS": _LBFGS, "FGS": _FGS, "Aggr.": AGGREGATE, "Errors": ERRORS}
_PROCESSINGS = {"none": "None", "l2": "L2Norm", "pca": "PCA + Whiten"}
_BEST = "pca inverse_square"
_AUTHENTIC = "Authentic"
_TABLE_2 = {
    "None, kNN": (70.7, 69.9, 70.3, 58.1),
    "None, W-kNN": (71.2, 70.8, 71.0, 59.6),
    "None, DW-kNN": (71.0, 69.9, 70.4, 58.6),
    "L2Norm, kNN": (79.2, 74.3, 76.7, 60.7),
    "L2Norm, W-kNN": (81.4, 76.4, 78.9, 62.9),
    "L2Norm, DW-kNN": (81.7, 76.6, 79.1, 61.6),
    "PCA + Whiten, kNN": (86.4, 83.4, 84.9, 62.9),
    "PCA + Whiten, W-kNN": (85.9, 83.8, 84.8, 65.0),
    "PCA + Whiten, DW-kNN": (86.5, 83.5, 85.0, 63.6),
}
_REFUSED = {  # "more than 98 %", "more than 50 %", "more than 40 %", "around 10 %"; "about 80 %", "more than 90 %"
    "threshold that keeps 98 %": (50.0, 40.0, None, 10.0),
    "threshold that keeps 90 %": (None, None, 80.0, None),
}
_SCORE = PaperTable(
    columns=("score",),
    rows={
        **{f"hardest {k}": (score,) for k, score in enumerate((0.13, 0.10, 0.08, 0.08), 1)},
        **{f"easiest {k}": (0.0,) for k in range(1, 5)},
    },
)

_NOTES = (
    "Paper: OverFeat on ImageNet, an image of each of 1,000 classes attacked, pool5 reduced from 1,024 channels to 256 "
    "with whitening, k = 1,000 of 1.28 million training images. Here: a face network with a class head for the given "
    "people, trained on the images that are not set aside; the features are the pooled output of its last named layer, "
    "and PCA keeps a quarter of the channels, at most a tenth of the indexed images; k is the mean number of images "
    "that a person has in the index.",
    "Both attacks go for a random class, and an image counts when the network no longer takes it for its person, as in "
    "the paper. FGSM has a radius of 8/255; the paper names none.",
    "Errors: natural images that the network misclassifies. Intervals: people drawn anew, with all of their images; of "
    "a single share at least as wide as Wilson's for so many images.",
)


def _parts(setup: Setup) -> tuple[StudyPart, ...]:
    part = KnnPart(
        name=_PART,
        attacks=(setup.at("lbfgs:3", "lbfgs:10", "lbfgs"), "fgsm@8/255"),
        people=setup.at(12, 60, 1000),
        natural=setup.at(2, 5, 10),
        attacked=setup.at(1, 1, 1),
        most=setup.at(8, 20, 1300),
    )
    return (part,)


def _accuracies(found: Results, key: str, column: str) -> NDArray[np.float64]:
    """Of all images and of the draws; NaN where there were none of the column."""
    values: Sequence[float | None] = found[_PART]["accuracies"][key].get(column, [None])
    return np.array([math.nan if value is None else value for value in values])


def _cell(values: NDArray[np.float64]) -> Estimate | None:
    return drawn(values) if len(values) and math.isfinite(values[0]) else None


def _share(found: Results, values: NDArray[np.float64], column: str) -> Estimate | None:
    """A share of the images of a column, with an interval at least as wide as Wilson's for so many."""
    own = _cell(values)
    if own is None:
        return None
    images = found[_PART]["images"]
    low, high = wilson(round(own.value * images[column]), images[column])
    return replace(own, low=min(own.low, low), high=max(own.high, high), trials=images[column])


def _table_2(found: Results) -> PaperTable:
    rows: dict[str, tuple[Cell, ...]] = {}
    for processing, weighting, key in kinds():
        name = f"{_PROCESSINGS[processing]}, {KNN_NAMES[weighting]}"
        rows[name] = tuple(_share(found, _accuracies(found, key, column), column) for column in _COLUMNS.values())
    return PaperTable(columns=tuple(_COLUMNS), rows=rows, percent=True)


def _mean(found: Results, column: str, processing: str | None = None) -> NDArray[np.float64]:
    """The accuracies in the mean of the weightings, of one processing or of all."""
    chosen = [_accuracies(found, key, column) for own, _, key in kinds() if processing in (None, own)]
    return np.asarray(np.mean(chosen, axis=0))


def _better(better: str, worse: str, found: Results) -> Estimate | None:
    return _cell(_mean(found, AGGREGATE, better) - _mean(found, AGGREGATE, worse))


def _easier_than_errors(found: Results) -> Estimate | None:
    aggregate, errors = (_share(found, _mean(found, column), column) for column in (AGGREGATE, ERRORS))
    return minus(aggregate, errors)


def _lbfgs_easier(found: Results) -> Estimate | None:
    if not all(_mean(found, column).size > 1 for column in (_LBFGS, _FGS)):
        return None
    return _cell(_mean(found, _LBFGS) - _mean(found, _FGS))


def _supports(found: Results, key: str = _BEST) -> Mapping[str, Sequence[float]]:
    """The scores by the names of the legend; columns without an image left out."""
    own = found[_PART]["supports"][key]
    names = {_AUTHENTIC: "natural", **{name: c for name, c in _COLUMNS.items() if c != AGGREGATE}}
    return {name: own[column] for name, column in names.items() if own.get(column)}


def _rocs(found: Results) -> tuple[Figure, ...]:
    figures = []
    for weighting in ("inverse_square", "rank"):
        own = dict(_supports(found, f"pca {weighting}"))
        calm = own.pop(_AUTHENTIC)
        traces = tuple(roc_trace(name, scores, calm) for name, scores in own.items())
        title = f"{KNN_NAMES[weighting]}, PCA and whitening"
        figures.append(Figure(title=title, traces=traces, x_name="false positive rate", y_name="true positive rate"))
    return tuple(figures)


def _rates(found: Results) -> tuple[Figure, ...]:
    own = _supports(found)
    limits = np.linspace(0, max(max(scores) for scores in own.values()), 101)
    traces = tuple(
        Trace(
            label=f"{name}, {'true' if name == _AUTHENTIC else 'false'} positives",
            x=tuple(limits.tolist()),
            y=tuple((np.asarray(scores)[None] >= limits[:, None]).mean(1).tolist()),
        )
        for name, scores in own.items()
    )
    title = "DW-kNN, PCA and whitening"
    return (Figure(title=title, traces=traces, x_name="threshold of the score", y_name="share that is accepted"),)


def _densities(found: Results) -> tuple[Figure, ...]:
    own = _supports(found)
    highest = max(max(scores) for scores in own.values())
    traces = tuple(histogram(name, scores, (0.0, highest or 1.0)) for name, scores in own.items())
    title = "DW-kNN, PCA and whitening"
    return (Figure(title=title, traces=traces, x_name="score", y_name="share of the images"),)


def _refused(found: Results, kept: float, column: str) -> NDArray[np.float64]:
    values: Sequence[float | None] = found[_PART]["refused"][f"{kept:g}"].get(column, [None])
    return np.array([math.nan if value is None else value for value in values])


def _refused_table(found: Results) -> PaperTable:
    rows = {
        f"threshold that keeps {round(100 * kept)} %": tuple(
            _share(found, _refused(found, kept, column), column) for column in _COLUMNS.values()
        )
        for kept in KEPT
    }
    return PaperTable(columns=tuple(_COLUMNS), rows=rows, percent=True)


def _more_than(kept: float, column: str, share: float, found: Results) -> Estimate | None:
    return minus(_share(found, _refused(found, kept, column), column), share)


def _areas(found: Results) -> PaperTable:
    """Areas under the curves: the chance that an authentic image scores above one of the column."""
    rows: dict[str, tuple[Cell, ...]] = {}
    for weighting in ("inverse_square", "rank"):
        own = _supports(found, f"pca {weighting}")
        calm = np.asarray(own[_AUTHENTIC])[:, None]
        cells = []
        for name in ("L-BFGS", "FGS", "Errors"):
            other = np.asarray(own.get(name, ()))[None]
            cells.append(float((calm > other).mean() + (calm == other).mean() / 2) if other.size else None)
        rows[KNN_NAMES[weighting]] = tuple(cells)
    return PaperTable(columns=("AUC, L-BFGS", "AUC, FGS", "AUC, Errors"), rows=rows, percent=True)


def _quartiles(found: Results) -> PaperTable:
    rows = {name: tuple(np.quantile(scores, (0.25, 0.5, 0.75)).tolist()) for name, scores in _supports(found).items()}
    return PaperTable(columns=("first quartile of the score", "median", "third quartile"), rows=rows)


def _examples(found: Results) -> list[Mapping[str, Any]]:
    return list(found[_PART]["examples"])


def _example_rows(found: Results) -> PaperTable:
    own = _examples(found)
    count = len(own) // 2
    rows = {f"{each['kind']} {k % count + 1}": (float(each["score"]),) for k, each in enumerate(own)}
    return PaperTable(columns=_SCORE.columns, rows=rows).with_rows_of(_SCORE)


def _pictures(found: Results) -> tuple[Pictures, ...]:
    return tuple(
        Pictures(
            title=f"{each['kind']}: {each['attack']}, score {each['score']:.3f}",
            files=tuple(
                (text, each["files"][what])
                for what, text in (
                    ("original", f"{each['actual']}"),
                    ("adversarial", f"taken for {each['predicted']}"),
                    ("neighbour", f"nearest indexed image of {each['predicted']}"),
                )
                if what in each["files"]
            ),
        )
        for each in _examples(found)
    )


def _alike_is_harder(found: Results) -> Estimate | None:
    """Spearman's correlation of an image's score with the likeness of its person and the predicted one."""
    numbers = np.array(found[_PART]["likeness"], np.float64)
    if len(numbers) < 5 or (numbers.std(0) == 0).any():
        return None
    from scipy.stats import spearmanr  # here: it takes as long to import as the rest of the package

    value = float(spearmanr(numbers[:, 0], numbers[:, 1]).statistic)
    half = 1.96 * math.sqrt((1 + value**2 / 2) / (len(numbers) - 3))  # Bonett and Wright 2000, of Fisher's z
    middle = math.atanh(max(-0.999999, min(0.999999, value)))
    return Estimate(value=value, low=math.tanh(middle - half), high=math.tanh(middle + half))


_recipe = partial(numbered, "carrara", "Carrara et al. 2017", parts=_parts)

RECIPES: tuple[StudyRecipe, ...] = (
    _recipe(
        "table 2",
        "5.1",
        "Accuracy of the kNN score at the equal error rate",
        table=_table_2,
        printed=PaperTable.of_percent(tuple(_COLUMNS), _TABLE_2),
        claims=(
            Claim(statement="PCA and whitening are better than L2 normalisation", check=partial(_better, "pca", "l2")),
            Claim(statement="L2 normalisation is better than none", check=partial(_better, "l2", "none")),
            Claim(statement="adversarial images are easier to refuse than natural errors", check=_easier_than_errors),
            Claim(statement="L-BFGS is easier to detect than FGS", check=_lbfgs_easier),
        ),
        notes=_NOTES,
    ),
    _recipe(
        "table 3",
        "5.1",
        "The adversarial images with the highest and the lowest scores, with their nearest neighbours",
        table=_example_rows,
        printed=_SCORE,
        pictures=_pictures,
        claims=(
            Claim(
                statement="hard examples are those whose actual and predicted class are alike", check=_alike_is_harder
            ),
        ),
        notes=(
            *_NOTES,
            "Paper: the four hardest are of L-BFGS and the four easiest of FGS, as far as the table shows them. The "
            "likeness of two people is the cosine of their mean embeddings.",
        ),
    ),
    _recipe(
        "figure 2",
        "5.1",
        "ROC curves of DW-kNN and W-kNN",
        table=_areas,
        figures=_rocs,
        notes=(*_NOTES, "A positive is an image whose prediction is right. The figure's numbers are not printed."),
    ),
    _recipe(
        "figure 3",
        "5.1",
        "Shares of right and wrong predictions that are accepted, over the threshold",
        table=_refused_table,
        printed=PaperTable.of_percent(tuple(_COLUMNS), _REFUSED),
        figures=_rates,
        claims=(
            Claim(
                statement="a threshold that keeps 98 % refuses more than 50 % of the L-BFGS images",
                check=partial(_more_than, 0.98, _LBFGS, 0.5),
            ),
            Claim(
                statement="a threshold that keeps 98 % refuses more than 40 % of the FGS images",
                check=partial(_more_than, 0.98, _FGS, 0.4),
            ),
        ),
        notes=(
            *_NOTES,
            "The table has the shares that a threshold refuses. The paper's are in its text: more than 50 and 40 %, "
            "around 10 %, and in the conclusion about 80 % at a threshold that keeps more than 90 %.",
        ),
    ),
    _recipe(
        "figure 4",
        "5.1",
        "Densities of the DW-kNN scores",
        table=_quartiles,
        figures=_densities,
        claims=(
            Claim(
                statement="more than half of the adversarial images score below 98 % of the authentic ones",
                check=partial(_more_than, 0.98, AGGREGATE, 0.5),
            ),
        ),
        notes=(*_NOTES, "The figure's numbers are not printed."),
    ),
)
