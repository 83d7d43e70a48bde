"""What ``fastadv detect evaluate`` prints: the papers' tables, attackers who know, and each finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fastadv.cli.show import percent, print_notices, table
from fastadv.report.pages.detection import cells_table
from fastadv.studies.detection.evaluate import DetectionEvaluation
from fastadv.studies.detection.measure import AGGREGATE, ERRORS, KNN_NAMES, Measured
from fastadv.studies.detection.setting import kind

_NONE = "–"
_VERDICTS = {True: "yes", False: "no", None: "not run"}


def print_evaluation(found: DetectionEvaluation) -> None:
    """All of it, on standard output."""
    console = Console()
    whole = [row for row in found.measured if not row.variant]
    for title, seen in (("AUC, attacks that the detectors were fitted on", True), ("AUC, attacks never seen", False)):
        rows = [row for row in whole if row.seen is seen]
        if rows:
            console.print(_areas(title, rows, found, macro=seen))
    console.print(_best(whole, found))
    if found.adaptive:
        console.print(_adaptive(found))
    if found.knn:
        console.print(_knn(found))
    findings = [(row.claim, _VERDICTS[row.holds], row.numbers) for row in found.directions]
    console.print(table("the papers' findings", findings, ("finding", "so here", "measured")))
    print_notices(found.notices)


def print_cells(cells: Sequence[Mapping[str, Any]]) -> None:
    """The attacks with their success."""
    made = cells_table(cells)
    console = Console()
    console.print(table("the attacks", made.rows, made.header))
    console.print(made.note, highlight=False)


def _name(family: str, targeted: bool) -> str:
    return family if targeted else f"{family}-u"


def _areas(title: str, rows: Sequence[Measured], found: DetectionEvaluation, *, macro: bool) -> Table:
    """A row a detector, a column an attack, targeted ones first."""
    areas = {(row.detector, row.family, row.targeted): row.area.value for row in rows}
    header, columns = ["detector"], []
    for targeted in (True, False):
        families = list(dict.fromkeys(row.family for row in rows if row.targeted is targeted))
        columns += [(family, targeted) for family in families]
        if macro and families:
            columns.append(("", targeted))
    header += [_name(family or "macro", targeted) for family, targeted in columns]
    made = []
    for detector in dict.fromkeys(row.detector for row in rows):
        cells = [
            areas.get((detector, family, targeted)) if family else found.macro.get((detector, kind(targeted)))
            for family, targeted in columns
        ]
        made.append((detector, *(_NONE if value is None else f"{value:.3f}" for value in cells)))
    return table(title, made, tuple(header))


def _best(rows: Sequence[Measured], found: DetectionEvaluation) -> Table:
    made = [
        (
            _name(row.family, row.targeted),
            f"{row.area.value:.3f}",
            f"{row.area.low:.3f} … {row.area.high:.3f}",
            *(percent(share) for share in row.found),
        )
        for row in rows
        if row.detector == found.best
    ]
    title = f"{found.best}, which validated best, and {found.natural} natural images that it has not met"
    return table(title, made, ("attack", "AUC", "95 %", "found at 0.1 %", "at 1 %", "at 5 %"))


def _adaptive(found: DetectionEvaluation) -> Table:
    made = [
        (
            _name(row.attack, row.targeted),
            f"{row.weight:g}",
            f"{row.met_before_images} of {row.tried}",
            percent(row.reached),
            _NONE if row.measured is None else f"{row.measured.area.value:.3f}",
            percent(row.hidden),
        )
        for row in found.adaptive
    ]
    header = ("attack", "weight", "met before", "class reached, of the rest", "AUC", "and hidden at 5 %")
    return table("by one who knows the detector (weight 0: who does not)", made, header)


def _knn(found: DetectionEvaluation) -> Table:
    names = list(found.knn[0].accuracy)
    columns = [name for name in names if name not in (AGGREGATE, ERRORS)]
    columns += [name for name in (AGGREGATE, ERRORS) if name in names]
    made = [
        (f"{row.processing}, {KNN_NAMES[row.weighting]}", *(f"{100 * row.accuracy[name]:.1f} %" for name in columns))
        for row in found.knn
    ]
    shown = [name.replace(" untargeted", "-u").replace(" targeted", "") for name in columns]
    return table("kNN score: accuracy at the equal error rate", made, ("processing, score", *shown))
