"""Zhong and Deng 2020: figures 7 and 8 (untargeted attacks) and table VI (TALFW)."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from fastadv.core.estimates import Estimate, average, drawn, least, share_of
from fastadv.studies.papers import zhong_deng_printed as printed
from fastadv.studies.papers.recipe import Claim, Figure, PaperTable, Results, Setup, StudyPart, StudyRecipe, Trace
from fastadv.studies.papers.verifier_parts import CLEAN, CopyPart, MatrixPart

_SOURCE = "Zhong and Deng 2020, {}, section {}"
_EACH, _QUERIES, _COPY = "untargeted-all-with-all", "untargeted-targets-with-queries", "adversarial-copy"
_OWN = "dfanet-fim"
_DEFENCES = {
    "JPEG, quality 20": "jpeg:20",
    "Gaussian blur, 5x5, sigma 2": "gauss:5:2",
    "selective dropout": "selective:4:0.05",
}


def _matrix(setup: Setup, *, queries: bool) -> tuple[StudyPart, ...]:
    part = MatrixPart(
        name=_QUERIES if queries else _EACH,
        people=setup.at(5, 20, 300 if queries else 286),
        each=setup.at(4, 4, 4) if queries else setup.at(3, 3, 3),
        queries=queries,
        methods=("fim", f"gd-uap:{setup.at(2, 200, 40_000)}", "s-fim", _OWN),
        steps=setup.at(2, 64, 1500),
    )
    return (part,)


def _areas(results: Results, part: str, method: str, network: str) -> NDArray[np.float64]:
    found = results[part]
    return np.array(found["areas"], np.float64)[found["methods"].index(method), found["networks"].index(network)]


def _table(part: str, results: Results) -> PaperTable:
    found = results[part]
    names = {n: f"{n} (attacked)" if n == found["surrogate"] else n for n in found["networks"]}
    return PaperTable(
        columns=tuple(f"AUC, {name}" for name in names.values()),
        rows={m: tuple(drawn(_areas(results, part, m, n)) for n in names) for m in found["methods"]},
        percent=True,
    )


def _lower(part: str, other: str, results: Results) -> Estimate:
    """How much lower the AUC is under DFANet-FIM than under another attack, in the mean of the other networks."""
    found = results[part]
    targets = [name for name in found["networks"] if name != found["surrogate"]]
    draws = [_areas(results, part, other, name) - _areas(results, part, _OWN, name) for name in targets]
    return drawn(np.mean(draws, axis=0))


def _curves(part: str, results: Results) -> tuple[Figure, ...]:
    found = results[part]
    figures = []
    for network, curves in found["curves"].items():
        title = f"{network}{', attacked' if network == found['surrogate'] else ''}"
        traces = tuple(Trace(label=c["label"], x=tuple(c["x"]), y=tuple(c["y"])) for c in curves)
        figures.append(Figure(title=title, traces=traces, x_name="false accept rate", y_name="true accept rate"))
    return tuple(figures)


def _figure(number: int, part: str, data: str, matrix: str) -> StudyRecipe:
    return StudyRecipe(
        name=f"zhong-deng-figure-{number}",
        source=_SOURCE.format(f"figure {number}", "IV-F"),
        title=f"ROC curves under untargeted attacks on half of the images ({data} in the paper)",
        parts=partial(_matrix, queries=part == _QUERIES),
        table=partial(_table, part),
        claims=(
            Claim(statement="DFANet-FIM transfers better than FIM", check=partial(_lower, part, "fim")),
            Claim(statement="DFANet-FIM transfers better than S-FIM", check=partial(_lower, part, "s-fim")),
            Claim(statement="DFANet-FIM transfers better than GD-UAP", check=partial(_lower, part, "gd-uap")),
            Claim(statement="DFANet-FIM lowers the AUC of clean pairs", check=partial(_lower, part, CLEAN)),
        ),
        figures=partial(_curves, part),
        together=True,
        networks=2,
        notes=(
            f"{data} cannot be had: the matrix is of the given faces, {matrix}. The figure's numbers are not printed; "
            "the table shows the areas under the curves, and the lower one is the stronger attack.",
            "The surrogate is the first network (paper: ResNet-50, WebFace, ArcFace). Half of the images are attacked, "
            "and pairs of two attacked images are left out. Gamma of S-FIM is .3; GD-UAP has the range of the faces as "
            "its prior.",
            "Intervals: people drawn anew, with all of their images, the same draws for all attacks.",
        ),
    )


def _copy(setup: Setup) -> tuple[StudyPart, ...]:
    steps = setup.at(2, 48, 1500)
    part = CopyPart(
        name=_COPY,
        attack=f"dfanet-di-m-fim:{steps}@10/255",
        limit=setup.at(20, 200, None),
        defences=tuple(_DEFENCES.values()),
    )
    return (part,)


def _accuracies(results: Results) -> PaperTable:
    found = results[_COPY]
    rows: dict[str, tuple[Estimate | None, ...]] = {}
    for name, right in found["right"].items():
        label = f"{name} (attacked)" if name == found["surrogate"] else name
        rows[label] = tuple(share_of(count, found["pairs"]) for count in right)
    for label, text in {"no defence": "none", **_DEFENCES}.items():
        rows[label] = tuple(share_of(count, found["pairs"]) for count in found["defended"][text])
    return PaperTable(columns=("LFW", "TALFW"), rows=rows, percent=True).with_rows_of(printed.TABLE_6)


def _drops(results: Results) -> Estimate:
    """The least loss of accuracy of the networks that were not attacked."""
    found = results[_COPY]
    kept = [share_of(b, found["pairs"]) for n, (_, b) in found["right"].items() if n != found["surrogate"]]
    clean = [share_of(a, found["pairs"]) for n, (a, _) in found["right"].items() if n != found["surrogate"]]
    return least([before - after for before, after in zip(clean, kept, strict=True)])


def _helps(text: str, results: Results) -> Estimate:
    found = results[_COPY]
    own, bare = (share_of(found["defended"][label][1], found["pairs"]) for label in (text, "none"))
    return own - bare


def _gap(results: Results) -> Estimate:
    found = results[_COPY]
    shares = [[share_of(n, found["pairs"]) for n in found["defended"][text]] for text in _DEFENCES.values()]
    return average([clean - copied for clean, copied in shares])


RECIPES: tuple[StudyRecipe, ...] = (
    StudyRecipe(
        name="zhong-deng-table-6",
        source=_SOURCE.format("table VI", "IV-G"),
        title="Accuracy on the pairs and on their transferable adversarial copy (TALFW)",
        parts=_copy,
        table=_accuracies,
        printed=printed.TABLE_6,
        claims=(
            Claim(statement="every network that was not attacked loses accuracy on the copy", check=_drops),
            *(
                Claim(statement=f"{name} raises the accuracy on the copy", check=partial(_helps, text))
                for name, text in _DEFENCES.items()
            ),
            Claim(statement="with a defence the copy is still harder, in the mean of the defences", check=_gap),
        ),
        together=True,
        networks=2,
        notes=(
            "The copy is generated on the first network by DFANet-DI-M-FIM; the paper's is generated on private "
            "networks by methods that it does not name one by one. Thresholds come from the other folds of the same "
            "copy, as LFW's protocol has it: where the attack reverses nearly all decisions, every accuracy is about "
            "one half, and a defence that gives back less than half of the pairs does not show.",
            "The defences are those of the second network. Adversarial training needs a network that was trained so: "
            "give its weights to 'fastadv defend' (weights:FILE). The commercial services are left out.",
        ),
    ),
    _figure(7, _EACH, "MEDS", "all images with all others"),
    _figure(
        8,
        _QUERIES,
        "PaSC",
        "half of each person's images with the other halves (scale paper: 600 with 600; the paper: 2,344 with 2,344)",
    ),
)
