"""Massoli et al. 2021, "Detection of face recognition adversarial attacks": tables 3 and 4, figures 5 to 11; all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fastadv.core.estimates import Estimate, least_or_none, mean_or_none, minus, share_of, share_or_none
from fastadv.studies.papers import massoli_detection
from fastadv.studies.papers.massoli_detection import claim, measured
from fastadv.studies.papers.massoli_parts import LEVELS, delta, image_parts
from fastadv.studies.papers.recipe import Figure, PaperTable, Pictures, Results, Trace
from fastadv.studies.papers.traces import histogram

_KINDS = ("targeted", "untargeted")
_DELTAS = (5, 7, 10)
_ROWS = (*(f"δ = {d}" for d in _DELTAS), "CW")
_FAMILIES = {"bim": "BIM", "mi-fgsm": "MI-FGSM", "cw-l2": "CW"}
_COLUMNS = tuple(f"{kind}, {when}" for kind in _KINDS for when in ("original", "adversarial"))
_TABLE_3 = {
    "δ = 5": (4.0, 92.8, 19.9, 81.5),
    "δ = 7": (4.0, 93.9, 19.9, 81.6),
    "δ = 10": (4.4, 93.6, 19.8, 81.1),
    "CW": (50.5, 34.9, 8.0, 9.3),
}
_TABLE_4 = {
    "δ = 5": (5.4, 18.9, 4.1, 9.9),
    "δ = 7": (4.3, 22.9, 4.3, 11.4),
    "δ = 10": (4.3, 26.2, 4.1, 12.5),
    "CW": (4.0, 17.1, 4.0, 6.2),
}
_SUCCESS = {"δ = 5": (95.6, 96.8), "δ = 7": (96.2, 96.8), "δ = 10": (96.3, 96.8)}
_WITHIN = {"δ = 5": (88.3,), "δ = 7": (85.6,), "δ = 10": (84.7,)}
_VERIFIER = (
    "The adversarial images are those of the attacked classifier, or of the attacked nearest class mean, that succeed; "
    "the verifier is asked about them at the threshold of its own equal error rate.",
    "Each adversarial image is paired with one natural image of its adversarial class (impersonation) or of its own "
    "person (evading); neither is attacked, nor a guide.",
)

Attacked = Mapping[str, Any]


def _cells(found: Results, kind: str, **wanted: object) -> list[Attacked]:
    cells = [cell for cell in found["classifier"]["cells"] if cell["kind"] == kind]
    return [cell for cell in cells if all(cell[name] == value for name, value in wanted.items())]


def _row_cells(found: Results, kind: str, row: str) -> list[Attacked]:
    """The attacks of a row of tables 3 and 4."""
    if row == "CW":
        return _cells(found, kind, family="cw-l2")
    return [cell for cell in _cells(found, kind, on_logits=False) if f"δ = {delta(cell['attack'])}" == row]


def _values(cells: Sequence[Attacked], scene: str, when: str) -> list[float]:
    return [value for cell in cells if cell[scene] is not None for value in cell[scene][when]]


def _share(found: Results, scene: str, kind: str, row: str, when: str) -> Estimate | None:
    """Of the pairs that the verifier decides as the attacker wants."""
    values = np.array(_values(_row_cells(found, kind, row), scene, when))
    accepted = values >= found["classifier"]["threshold"]
    return share_or_none(accepted if scene == "impersonation" else ~accepted)


def _verified(scene: str, found: Results) -> PaperTable:
    rows = {
        row: tuple(_share(found, scene, kind, row, when) for kind in _KINDS for when in ("before", "after"))
        for row in _ROWS
    }
    return PaperTable(columns=_COLUMNS, rows=rows, percent=True)


def _guided_over_cw(scene: str, kind: str, found: Results) -> Estimate | None:
    *guided, cw = (_share(found, scene, kind, row, "after") for row in _ROWS)
    return least_or_none(minus(share, cw) for share in guided)


def _targeted_evade_more(found: Results) -> Estimate | None:
    pairs = ([_share(found, "evasion", kind, row, "after") for kind in _KINDS] for row in _ROWS[:-1])
    return least_or_none(minus(aimed, other) for aimed, other in pairs)


def _distances(cells: Sequence[Attacked]) -> list[float]:
    """The mean distance of each attacked image over the attacks: one image by several attacks is one trial."""
    by_image: dict[str, list[float]] = {}
    for cell in cells:
        for name, value in zip(cell["names"], cell["distance"], strict=True):
            by_image.setdefault(name, []).append(value)
    return [sum(values) / len(values) for values in by_image.values()]


def _distance_groups(found: Results) -> Iterator[tuple[str, list[float]]]:
    for name, on_logits in (("classifier attacks", True), ("kNN-guided", False)):
        for kind in _KINDS:
            yield f"{name}, {kind}", _distances(_cells(found, kind, on_logits=on_logits))


def _by_attack(kind: str, found: Results) -> Iterator[tuple[str, list[float]]]:
    for family, shown in _FAMILIES.items():
        yield shown, _distances(_cells(found, kind, family=family))
    for d in _DELTAS:
        yield f"kNN, δ = {d}", _distances(_row_cells(found, kind, f"δ = {d}"))


Groups = Callable[[Results], Iterator[tuple[str, list[float]]]]


def _distance_table(groups: Groups, found: Results) -> PaperTable:
    rows = {name: (mean_or_none(values),) for name, values in groups(found)}
    return PaperTable(columns=("mean distance to the class mean",), rows=rows)


def _distance_figure(groups: Groups, title: str, found: Results) -> tuple[Figure, ...]:
    named = [(name, values) for name, values in groups(found) if values]
    highest = max((max(values) for _, values in named), default=1.0)
    traces = tuple(histogram(name, values, (0.0, highest)) for name, values in named)
    names = ("distance of unit embeddings to the class mean", "share of the images")
    return _if_any(title, traces, *names)


def _if_any(title: str, traces: tuple[Trace, ...], x_name: str, y_name: str) -> tuple[Figure, ...]:
    return (Figure(title=title, traces=traces, x_name=x_name, y_name=y_name),) if traces else ()


def _guided_nearer(kind: str, found: Results) -> Estimate | None:
    guided = mean_or_none(_distances(_cells(found, kind, on_logits=False)))
    others = mean_or_none(_distances(_cells(found, kind, on_logits=True)))
    return minus(others, guided)


def _untargeted_nearer(found: Results) -> Estimate | None:
    aimed, other = (mean_or_none(_distances(_cells(found, kind, on_logits=True))) for kind in _KINDS)
    return minus(aimed, other)


def _each_nearer(kind: str, found: Results) -> Estimate | None:
    """The farthest kNN-guided attack against the nearest classifier attack."""
    named = {name: mean_or_none(values) for name, values in _by_attack(kind, found)}
    guided = [mean for name, mean in named.items() if name.startswith("kNN")]
    others = [mean for name, mean in named.items() if not name.startswith("kNN")]
    return least_or_none(minus(o, g) for o in others for g in guided)


def _within(found: Results, row: str) -> Estimate | None:
    shares = [s for cell in _row_cells(found, "targeted", row) if cell["pixels"] for s in cell["pixels"]["within"]]
    return mean_or_none(shares)


def _pixel_table(found: Results) -> PaperTable:
    rows = {row: (_within(found, row),) for row in _ROWS[:-1]}
    return PaperTable(columns=(f"pixels changed by at most {LEVELS}/255",), rows=rows, percent=True)


def _pixel_figure(found: Results) -> tuple[Figure, ...]:
    made: list[Figure] = []
    for kind in _KINDS:
        traces = []
        for row in _ROWS[:-1]:
            for cell in _row_cells(found, kind, row):
                if cell["pixels"]:
                    levels = cell["pixels"]["levels"]
                    traces.append(Trace(label=row, x=tuple(map(float, range(len(levels)))), y=tuple(levels)))
        made += _if_any(kind, tuple(traces), "change of a pixel, grey levels", "share of the pixels")
    return tuple(made)


def _most_stay_small(found: Results) -> Estimate | None:
    return least_or_none(minus(_within(found, row), 0.5) for row in _ROWS[:-1])


def _success(found: Results) -> PaperTable:
    """Of the images that had not reached the goal before."""
    rows = {}
    for row in _ROWS[:-1]:
        cells = []
        for kind in _KINDS:
            own = _row_cells(found, kind, row)
            tried = sum(cell["images"] - cell["met_before_images"] for cell in own)
            cells.append(share_of(sum(cell["rest_successes"] for cell in own), tried) if tried else None)
        rows[row] = tuple(cells)
    return PaperTable(columns=_KINDS, rows=rows, percent=True)


def _pictures(found: Results) -> tuple[Pictures, ...]:
    return tuple(
        Pictures(title=f"δ = {delta(each['attack'])}", files=tuple((c, f) for c, f in each["files"]))
        for each in found["classifier"]["pictures"]
    )


def _similarities(scene: str, found: Results) -> tuple[Figure, ...]:
    made: list[Figure] = []
    for kind in _KINDS:
        traces = []
        for row in _ROWS:
            for when, shown in (("before", "original"), ("after", "adversarial")):
                values = _values(_row_cells(found, kind, row), scene, when)
                if values:
                    traces.append(histogram(f"{row}, {shown}", values, (-0.4, 1.0)))
        made += _if_any(kind, tuple(traces), "cosine similarity", "share of the pairs")
    return tuple(made)


def _mean_similarities(scene: str, found: Results) -> PaperTable:
    rows: dict[str, tuple[Estimate | float | None, ...]] = {
        row: tuple(
            mean_or_none(_values(_row_cells(found, kind, row), scene, when))
            for kind in _KINDS
            for when in ("before", "after")
        )
        for row in _ROWS
    }
    rows["threshold at the EER"] = (found["classifier"]["threshold"],) * len(_COLUMNS)
    return PaperTable(columns=_COLUMNS, rows=rows)


_recipe = partial(measured, parts=image_parts)

_RECIPES = (
    *massoli_detection.RECIPES,
    _recipe(
        "table 3",
        "5.3.2",
        "Impersonation: pairs of two people above the threshold, before and after the attack",
        partial(_verified, "impersonation"),
        printed=PaperTable.of_percent(_COLUMNS, _TABLE_3),
        claims=tuple(
            claim(
                f"{kind} kNN-guided attacks push more pairs above the threshold than C&W",
                _guided_over_cw,
                "impersonation",
                kind,
            )
            for kind in _KINDS
        ),
        notes=_VERIFIER,
    ),
    _recipe(
        "table 4",
        "5.3.2",
        "Evading: pairs of one person below the threshold, before and after the attack",
        partial(_verified, "evasion"),
        printed=PaperTable.of_percent(_COLUMNS, _TABLE_4),
        claims=(
            *(
                claim(
                    f"{kind} kNN-guided attacks push more pairs below the threshold than C&W",
                    _guided_over_cw,
                    "evasion",
                    kind,
                )
                for kind in _KINDS
            ),
            claim("targeted kNN-guided attacks evade more often than untargeted ones", _targeted_evade_more),
        ),
        notes=_VERIFIER,
    ),
    _recipe(
        "figure 5",
        "5.3.1",
        "Adversarial images of the targeted kNN-guided attack at three radii, and its success",
        _success,
        printed=PaperTable.of_percent(_KINDS, _SUCCESS),
        pictures=_pictures,
        notes=("The success rates are in the text of section 5.3.1; the figure has no numbers.",),
    ),
    _recipe(
        "figure 6",
        "5.3.1",
        "Distance of adversarial images to the mean of their adversarial class",
        partial(_distance_table, _distance_groups),
        figures=partial(_distance_figure, _distance_groups, "all attacks"),
        notes=("An image is one trial: the mean of its distances over the attacks of its group.",),
        claims=(
            *(
                claim(f"{kind} kNN-guided attacks end nearer to the class mean", _guided_nearer, kind)
                for kind in _KINDS
            ),
            claim("untargeted classifier attacks end nearer than targeted ones", _untargeted_nearer),
        ),
    ),
    *(
        _recipe(
            f"figure {number}",
            "5.3.1",
            f"Distance of adversarial images to the mean of their adversarial class, by attack, {kind}",
            partial(_distance_table, partial(_by_attack, kind)),
            figures=partial(_distance_figure, partial(_by_attack, kind), kind),
            claims=(
                claim(f"each {kind} kNN-guided attack ends nearer than each classifier attack", _each_nearer, kind),
            ),
        )
        for number, kind in zip((7, 8), _KINDS, strict=True)
    ),
    _recipe(
        "figure 9",
        "5.3.1",
        "Size of the change of each pixel by kNN-guided attacks",
        _pixel_table,
        printed=PaperTable.of_percent((f"pixels changed by at most {LEVELS}/255",), _WITHIN),
        figures=_pixel_figure,
        claims=(claim(f"most pixels change by at most {LEVELS}/255, whatever the radius", _most_stay_small),),
        notes=(
            "The change of a pixel is that of the channel that changes most. The shares are in the text, without a "
            "reason why not all changes are that small at δ = 5.",
        ),
    ),
    *(
        _recipe(
            f"figure {number}",
            "5.3.2",
            f"Cosine similarity of pairs before and after the attack: {scene}",
            partial(_mean_similarities, scene),
            figures=partial(_similarities, scene),
            notes=_VERIFIER,
        )
        for number, scene in ((10, "impersonation"), (11, "evasion"))
    ),
)
RECIPES = tuple(sorted(_RECIPES, key=lambda r: (r.name.split("-")[1] != "table", int(r.name.split("-")[2]))))
"""Tables, then figures, by their numbers."""
