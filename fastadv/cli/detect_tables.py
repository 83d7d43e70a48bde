"""What ``fastadv detect evaluate`` prints: the papers' tables, attackers who know, and each finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastadv.cli.show import percent, print_notices, print_table
from fastadv.report.pages import detection as page
from fastadv.report.pages import detection_groups as groups
from fastadv.report.pages import detection_knn as knn_page
from fastadv.report.pages.detection_adaptive import goal_words, points_table
from fastadv.report.parts import Table
from fastadv.studies.detection.knn import AGGREGATE, KNN_NAMES

_NONE = "–"
Values = Mapping[str, Any]


def print_evaluation(found: Values) -> None:
    """All of an evaluation, from its file, on standard output."""
    whole = [row for row in found["measured"] if not row["variant"]]
    for title, seen in (("AUC, attacks that the detectors were fitted on", True), ("AUC, attacks never seen", False)):
        rows = [row for row in whole if row["seen"] is seen]
        if rows:
            names = {row["detector"]: row["detector"] for row in rows}
            macro = found["macro"] if seen else ()
            made = page.area_table(names, rows, macro, first="detector", shown=page.area)
            print_table(title, made.rows, made.header)
    _print_best(whole, found)
    _print_groups(found)
    if found["adaptive"]:
        _print_adaptive(found["adaptive"], goal_words(found["verifier"]))
    if found["adaptive_points"]:
        made = points_table(found["adaptive_points"])
        print_table("adaptive attacks against steps and radius, 95 % intervals", made.rows, made.header)
    if found["knn"]:
        _print_knn(found["knn"])
    findings = page.findings(found["directions"])
    print_table("the papers' findings", findings.rows, findings.header)
    print_notices(tuple(found["notices"]))


def print_cells(cells: Sequence[Values]) -> None:
    """The attacks with their success."""
    _print("the attacks", page.cells_table(cells))


def _print_best(rows: Sequence[Values], found: Values) -> None:
    title = f"{found['best']}, the chosen detector, and {found['natural']} natural images that it has not met"
    _print(title, groups.attacks_table(found["best"], rows))


def _print_groups(found: Values) -> None:
    best = found["best"]
    _print("false alarms on natural images of each kind", groups.alarms_table(best, found["false_alarms"]))
    if found["noise"]:
        _print("attacks against noise of the same L2 norm", groups.attacks_table(best, found["noise"], against="noisy"))
    if found["changed"]:
        _print("attacked images, unchanged, blurred and compressed", groups.changed_table(best, found["changed"]))


def _print(title: str, made: Table) -> None:
    print_table(title, made.rows, made.header, made.note)


def _print_adaptive(rows: Sequence[Values], goal: str) -> None:
    made = [
        (
            groups.column(row["attack"], "targeted" if row["targeted"] else "untargeted"),
            f"{row['weight']:g}",
            f"{row['met_before_images']} of {row['tried']}",
            percent(row["reached"]),
            _NONE if row["measured"] is None else page.area(row["measured"]),
            percent(row["hidden"]),
        )
        for row in rows
    ]
    header = ("attack", "weight", "met before", "goal reached, of the rest", "AUC", "and hidden at 5 %")
    print_table("adaptive attacks on the detector (weight 0: unaware of it)", made, header, goal)


def _print_knn(rows: Sequence[Values]) -> None:
    layers = knn_page.knn_layers(rows)
    print_table("kNN score: accuracy at the equal error rate, by layer", layers.rows, layers.header, layers.note)
    columns = knn_page.knn_columns(rows)
    best = max(rows, key=lambda row: row["accuracy"][AGGREGATE])["layer"]
    made = [
        (
            f"{row['processing']}, {KNN_NAMES[row['weighting']]}",
            *(f"{100 * row['accuracy'][name]:.1f} %" for name in columns),
        )
        for row in rows
        if row["layer"] == best
    ]
    shown = [name.replace(" untargeted", "-u").replace(" targeted", "") for name in columns]
    title = f"kNN score at {best}, the layer with the highest accuracy here"
    print_table(title, made, ("processing, score", *shown))
