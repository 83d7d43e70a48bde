"""Massoli et al. 2021, detectors: tables 1, 2, 5 and 6, figures 2, 3 and 12."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fastadv.core.estimates import Estimate, average_or_none, least_or_none, minus
from fastadv.detection import auc_interval
from fastadv.studies.papers.massoli_parts import delta, detector_parts
from fastadv.studies.papers.recipe import Claim, Figure, PaperTable, Results, StudyRecipe, Trace, numbered
from fastadv.studies.papers.traces import roc_trace

_WORDS = {
    "lstm": "LSTM",
    "mlp": "MLP",
    "linear": "logistic",
    "medoid": "M",
    "centroid": "C",
    "l2": "L2",
    "cosine": "cos",
}
_FAMILIES = {"bim": "BIM", "cw-l2": "CW", "mi-fgsm": "MI-FGSM"}
_COLUMNS = (*_FAMILIES.values(), "MacroAUC")
_DELTAS = (5, 7, 10)
_TARGETED, _UNTARGETED = "targeted", "untargeted"
_AIM = 0.9  # the paper's lowest AUC on targeted guided attacks is .908
_TABLE_1 = {
    "LSTM + M + L2": (0.977, 0.871, 0.986, 0.944),
    "LSTM + C + L2": (0.970, 0.857, 0.982, 0.936),
    "LSTM + M + cos": (0.986, 0.904, 0.991, 0.960),
    "LSTM + C + cos": (0.968, 0.895, 0.981, 0.948),
    "MLP + M + L2": (0.964, 0.793, 0.979, 0.912),
    "MLP + C + L2": (0.962, 0.808, 0.979, 0.916),
    "MLP + M + cos": (0.890, 0.668, 0.940, 0.832),
    "MLP + C + cos": (0.868, 0.720, 0.915, 0.834),
}
_TABLE_2 = {
    "LSTM + M + L2": (0.878, 0.615, 0.889, 0.794),
    "LSTM + C + L2": (0.863, 0.596, 0.869, 0.776),
    "LSTM + M + cos": (0.929, 0.599, 0.930, 0.819),
    "LSTM + C + cos": (0.884, 0.568, 0.886, 0.779),
    "MLP + M + L2": (0.885, 0.559, 0.882, 0.775),
    "MLP + C + L2": (0.874, 0.557, 0.874, 0.768),
    "MLP + M + cos": (0.763, 0.460, 0.769, 0.664),
    "MLP + C + cos": (0.730, 0.467, 0.739, 0.645),
}
_TABLE_5 = {
    "MLP + L2": (0.976, 0.977, 0.980),
    "LSTM + cos": (0.972, 0.975, 0.978),
    "LSTM + L2": (0.969, 0.968, 0.972),
    "MLP + cos": (0.915, 0.908, 0.915),
}
_TABLE_6 = {
    "LSTM + L2": (0.671, 0.688, 0.700),
    "MLP + cos": (0.571, 0.596, 0.609),
    "LSTM + cos": (0.530, 0.541, 0.573),
    "MLP + L2": (0.492, 0.481, 0.467),
}
_FIGURE_2 = {  # AUC in the legend, targeted and untargeted
    "LSTM + M + L2": (0.97, 0.83),
    "LSTM + C + L2": (0.96, 0.82),
    "LSTM + M + cos": (0.98, 0.87),
    "LSTM + C + cos": (0.96, 0.83),
    "MLP + M + L2": (0.95, 0.82),
    "MLP + C + L2": (0.95, 0.81),
    "MLP + M + cos": (0.88, 0.71),
    "MLP + C + cos": (0.87, 0.68),
}
_FIGURE_3 = {"BIM": (0.98, 0.88), "MI-FGSM": (0.99, 0.89), "CW": (0.87, 0.61)}
_FIGURE_12 = {  # AUC in the legend: targeted at 5 and 10, untargeted at 5 and 10
    "MLP + L2": (0.98, 0.98, 0.53, 0.55),
    "LSTM + cos": (0.97, 0.98, 0.53, 0.57),
    "LSTM + L2": (0.97, 0.97, 0.67, 0.70),
    "MLP + cos": (0.92, 0.91, 0.57, 0.61),
}
_NOTES = (
    "Raw: the distances to all classes, the paper's reading. Relative: five numbers of each layer relative to the "
    "class that the class head chooses; a logistic regression reads them too.",
    "As in the paper, unchanged images are the only natural examples. Such a detector also flags noise of the attack's "
    "size: see 'fastadv detect evaluate'.",
    "Intervals of an AUC are bootstraps over the people of the test.",
)

Detector = Mapping[str, Any]


def _name(detector: Detector, *, representatives: bool = True) -> str:
    words = [detector["network"], *([detector["representatives"]] if representatives else []), detector["metric"]]
    suffix = "" if detector["reading"] == "raw" else ", relative"
    return " + ".join(_WORDS[word] for word in words) + suffix


def _detectors(found: Results, **wanted: str) -> list[Detector]:
    return [d for d in found["detectors"]["detectors"] if all(d[name] == value for name, value in wanted.items())]


def _groups(found: Results, **wanted: object) -> list[Mapping[str, Any]]:
    return [g for g in found["detectors"]["groups"] if all(g[name] == value for name, value in wanted.items())]


def _scores(detector: Detector, groups: Sequence[Mapping[str, Any]]) -> list[float]:
    return [score for group in groups for score in detector["scores"][group["group"]]]


def _area(found: Results, detector: Detector, groups: Sequence[Mapping[str, Any]]) -> Estimate | None:
    """The AUC of groups together against the natural images; None where no image of them is."""
    moved = _scores(detector, groups)
    if not moved:
        return None
    people = found["detectors"]["natural"], [person for group in groups for person in group["people"]]
    area = auc_interval(detector["scores"][""], moved, people=people)
    return Estimate(value=area.value, low=area.low, high=area.high, trials=len(moved))


def _by_family(found: Results, detector: Detector, kind: str) -> list[Estimate | None]:
    return [_area(found, detector, _groups(found, family=family, kind=kind)) for family in _FAMILIES]


def _seen_table(kind: str, found: Results) -> PaperTable:
    rows = {}
    for detector in _detectors(found):
        areas = _by_family(found, detector, kind)
        rows[_name(detector)] = (*areas, average_or_none(areas))
    return PaperTable(columns=_COLUMNS, rows=rows)


def _unseen_table(kind: str, found: Results) -> PaperTable:
    rows = {
        _name(detector, representatives=False): tuple(
            _area(found, detector, [g for g in _groups(found, on_logits=False, kind=kind) if delta(g["attack"]) == d])
            for d in _DELTAS
        )
        for detector in _detectors(found, representatives="centroid")
    }
    return PaperTable(columns=_columns_of_deltas(), rows=rows)


def _columns_of_deltas() -> tuple[str, ...]:
    return tuple(f"δ = {d}" for d in _DELTAS)


def _mean(found: Results, kind: str, groups: str = "seen", **wanted: str) -> Estimate | None:
    """The mean AUC of some detectors of the raw reading, the paper's, on what they were fitted on or on the unseen."""
    areas: list[Estimate | None] = []
    for detector in _detectors(found, reading="raw", **wanted):
        if groups == "seen":
            areas += _by_family(found, detector, kind)
        else:
            areas.append(_area(found, detector, _groups(found, on_logits=False, kind=kind)))
    return average_or_none(areas)


def _hardest(kind: str, found: Results) -> Estimate | None:
    means = {}
    for family in _FAMILIES:
        groups = _groups(found, family=family, kind=kind)
        means[family] = average_or_none(_area(found, d, groups) for d in _detectors(found, reading="raw"))
    cw = means.pop("cw-l2")
    return least_or_none(minus(other, cw) for other in means.values())


def _best_is_lstm_medoid(kind: str, found: Results) -> Estimate | None:
    others = [
        _mean(found, kind, network=network, representatives=representatives)
        for network, representatives in (("lstm", "centroid"), ("mlp", "medoid"), ("mlp", "centroid"))
    ]
    own = _mean(found, kind, network="lstm", representatives="medoid")
    return least_or_none(minus(own, other) for other in others)


def _lstm_over_mlp(kind: str, groups: str, found: Results) -> Estimate | None:
    return minus(_mean(found, kind, groups, network="lstm"), _mean(found, kind, groups, network="mlp"))


def _easier(groups: str, found: Results) -> Estimate | None:
    return minus(_mean(found, _TARGETED, groups), _mean(found, _UNTARGETED, groups))


def _unseen_found(found: Results) -> Estimate | None:
    groups = _groups(found, on_logits=False, kind=_TARGETED)
    chosen = _detectors(found, reading="raw", representatives="centroid")
    return least_or_none(minus(_area(found, d, groups), _AIM) for d in chosen)


def _roc(title: str, lines: Sequence[tuple[str, Detector, Sequence[Mapping[str, Any]]]]) -> Figure:
    traces: list[Trace] = [
        roc_trace(label, detector["scores"][""], moved)
        for label, detector, groups in lines
        if (moved := _scores(detector, groups))
    ]
    return Figure(title=title, traces=tuple(traces), x_name="false positive rate", y_name="true positive rate")


def _figure_2(found: Results) -> tuple[Figure, ...]:
    made = []
    for reading in ("raw", "relative"):
        for kind in (_TARGETED, _UNTARGETED):
            groups = _groups(found, on_logits=True, kind=kind)
            lines = [(_name(d), d, groups) for d in _detectors(found, reading=reading) if d["network"] != "linear"]
            made.append(_roc(f"{kind}, {reading}", lines))
    return tuple(each for each in made if each.traces)


def _best(found: Results, reading: str) -> Detector:
    return max(_detectors(found, reading=reading), key=lambda d: d["validation_worst"])


def _figure_3(found: Results) -> tuple[Figure, ...]:
    made = []
    for reading in ("raw", "relative"):
        best = _best(found, reading)
        for kind in (_TARGETED, _UNTARGETED):
            lines = [(shown, best, _groups(found, family=family, kind=kind)) for family, shown in _FAMILIES.items()]
            made.append(_roc(f"{_name(best)}: {kind}", lines))
    return tuple(each for each in made if each.traces)


def _figure_12(found: Results) -> tuple[Figure, ...]:
    made = []
    for d in (5, 10):
        for kind in (_TARGETED, _UNTARGETED):
            groups = [g for g in _groups(found, on_logits=False, kind=kind) if delta(g["attack"]) == d]
            lines = [(_name(one), one, groups) for one in _detectors(found, representatives="centroid")]
            made.append(_roc(f"δ = {d}, {kind}", [line for line in lines if line[1]["network"] != "linear"]))
    return tuple(each for each in made if each.traces)


_ENDS = tuple(f"δ = {d}, {kind}" for kind in (_TARGETED, _UNTARGETED) for d in (5, 10))


def _table_of_kinds(found: Results) -> PaperTable:
    rows = {
        _name(detector): tuple(
            _area(found, detector, _groups(found, on_logits=True, kind=kind)) for kind in (_TARGETED, _UNTARGETED)
        )
        for detector in _detectors(found)
    }
    return PaperTable(columns=(_TARGETED, _UNTARGETED), rows=rows)


def _table_of_best(found: Results) -> PaperTable:
    rows = {}
    for reading in ("raw", "relative"):
        best = _best(found, reading)
        for family, shown in _FAMILIES.items():
            rows[shown if reading == "raw" else f"{shown}, relative"] = tuple(
                _area(found, best, _groups(found, family=family, kind=kind)) for kind in (_TARGETED, _UNTARGETED)
            )
    return PaperTable(columns=(_TARGETED, _UNTARGETED), rows=rows)


def _both_unseen(found: Results) -> PaperTable:
    tables = {kind: _unseen_table(kind, found) for kind in (_TARGETED, _UNTARGETED)}
    rows = {name: tuple(c for t in tables.values() for c in t.rows[name][::2]) for name in tables[_TARGETED].rows}
    return PaperTable(columns=_ENDS, rows=rows)


measured = partial(numbered, "massoli", "Massoli et al. 2021")


def claim(statement: str, check: Callable[..., Estimate | None], *first: str) -> Claim:
    """A finding whose check takes further arguments before the results."""
    return Claim(statement=statement, check=partial(check, *first))


def _recipe(
    number: str, title: str, table: Callable[[Results], PaperTable], printed: PaperTable | None = None, **more: Any
) -> StudyRecipe:
    section = "5.3.3" if number in ("table 5", "table 6", "figure 12") else "5.2"
    return measured(number, section, title, table, **{"notes": _NOTES, **more}, parts=detector_parts, printed=printed)


RECIPES = (
    _recipe(
        "table 1",
        "AUC of detectors on targeted classifier attacks",
        partial(_seen_table, _TARGETED),
        PaperTable(columns=_COLUMNS, rows=_TABLE_1),
        claims=(
            claim("C&W is the hardest to detect, targeted", _hardest, _TARGETED),
            claim("the LSTM on medoids gives the best results, targeted", _best_is_lstm_medoid, _TARGETED),
        ),
    ),
    _recipe(
        "table 2",
        "AUC of detectors on untargeted classifier attacks",
        partial(_seen_table, _UNTARGETED),
        PaperTable(columns=_COLUMNS, rows=_TABLE_2),
        claims=(
            claim("targeted attacks are easier to detect than untargeted ones", _easier, "seen"),
            claim("C&W is the hardest to detect, untargeted", _hardest, _UNTARGETED),
            claim("the LSTM on medoids gives the best results, untargeted", _best_is_lstm_medoid, _UNTARGETED),
            claim("the LSTM detects untargeted attacks better than the MLP", _lstm_over_mlp, _UNTARGETED, "seen"),
        ),
    ),
    _recipe(
        "table 5",
        "AUC of the same detectors on targeted kNN-guided attacks, which they were not fitted on",
        partial(_unseen_table, _TARGETED),
        PaperTable(columns=_columns_of_deltas(), rows=_TABLE_5),
        claims=(claim(f"every detector finds targeted kNN-guided attacks with an AUC above {_AIM}", _unseen_found),),
    ),
    _recipe(
        "table 6",
        "AUC of the same detectors on untargeted kNN-guided attacks, which they were not fitted on",
        partial(_unseen_table, _UNTARGETED),
        PaperTable(columns=_columns_of_deltas(), rows=_TABLE_6),
        claims=(
            claim("targeted kNN-guided attacks are easier to detect than untargeted ones", _easier, "unseen"),
            claim(
                "the LSTM detects untargeted kNN-guided attacks better than the MLP",
                _lstm_over_mlp,
                _UNTARGETED,
                "unseen",
            ),
        ),
    ),
    _recipe(
        "figure 2",
        "ROC curves of each detector on all classifier attacks",
        _table_of_kinds,
        PaperTable(columns=(_TARGETED, _UNTARGETED), rows=_FIGURE_2),
        figures=_figure_2,
    ),
    _recipe(
        "figure 3",
        "ROC curves of the best detector on each classifier attack",
        _table_of_best,
        PaperTable(columns=(_TARGETED, _UNTARGETED), rows=_FIGURE_3),
        figures=_figure_3,
    ),
    _recipe(
        "figure 12",
        "ROC curves of the detectors on kNN-guided attacks, which they were not fitted on",
        _both_unseen,
        PaperTable(columns=_ENDS, rows=_FIGURE_12),
        figures=_figure_12,
        notes=(*_NOTES, "The legend names LSTM + C + L2 twice, untargeted; its lower AUC stands at MLP + L2 here."),
    ),
)
