"""The page of a detection study, from what its folder holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastadv.core import text
from fastadv.report.pages import detection_adaptive, detection_knn, parts
from fastadv.report.pages.detection_groups import KINDS, attacks_table, column, curves, interval, rate, sections
from fastadv.report.pages.frame import notices, page_of, plots, read_json, section, tiles, write_page
from fastadv.report.parts import Page, Part, Section, Table, Tiles
from fastadv.report.study_figures import heat_plot
from fastadv.runs.attack import NORMS_NOTE
from fastadv.studies.detection.fit import EVALUATION, FITTED
from fastadv.studies.detection.study import read_study

_NETWORKS = {"linear": "logistic regression"}
_METRICS = {"l2": "L2", "cosine": "cos", "l2+cosine": "L2 + cos"}
_APART = {
    "images": "Each person's images are shared out between fit and test.",
    "people": "Nobody in the test was in the fit.",
}
Rows = Sequence[Mapping[str, Any]]


def render(folder: Path, *, out: Path | None = None) -> Path:
    """Draw the page of a study: what was fitted, and what the evaluation found where there is one.

    Args:
        folder: Of ``fastadv detect``.
        out: The page; None: ``report.html`` in the folder.

    Raises:
        ValueError: The folder holds no fitted study, or a damaged one.
        ImportError: jinja2 or matplotlib is not installed.
        OSError: The page cannot be written.
    """
    study = read_study(folder)

    def draw() -> Page:
        found = read_json(folder / EVALUATION) if (folder / EVALUATION).is_file() else None
        return study_page(read_json(folder / FITTED), found, study["config"], study["versions"])

    return write_page(folder, draw, out, expected="a fitted study")


def study_page(
    fitted: Mapping[str, Any], found: Mapping[str, Any] | None, config: Mapping[str, Any], versions: Mapping[str, Any]
) -> Page:
    """The page from plain values."""
    return page_of(
        "Telling adversarial faces from natural ones",
        f"The detectors read the distances of an image to {fitted['people']} people in {len(fitted['layers'])} layers "
        f"of {config['model']}. {_APART[config['split_by']]}",
        section("", _tiles(fitted, found)),
        section("Take note", notices(dict.fromkeys([*fitted["notices"], *(found["notices"] if found else ())]))),
        *(() if found is None else _found_sections(fitted, found)),
        section(
            "The adversarial images",
            cells_table(found["cells"] if found else fitted["cells"]),
            lead="Only images that the network classifies rightly are attacked; those that reach the goal as 8-bit "
            "images are examples.",
        ),
        section(
            "The fit",
            _fits(fitted["detectors"]),
            _naturals(fitted["natural_kinds"]),
            lead="AUC on the images that validate, which stop the fit and set the thresholds: not for reporting. Below "
            "it, the natural images of each kind.",
        ),
        config={k: v for k, v in config.items() if k != "classes"},
        versions=versions,
    )


def _tiles(fitted: Mapping[str, Any], found: Mapping[str, Any] | None) -> Tiles:
    made: list[tuple[str, ...]] = [
        (str(fitted["people"]), "people", f"{fitted['natural']['test']} natural images in the test"),
        (text.percent(fitted["accuracy"]), "natural images classified rightly"),
    ]
    if found is not None:
        areas = {(m["detector"], m["kind"]): m["auc"] for m in reversed(found["macro"])}
        values = {kind: areas.get((found["best"], kind)) for kind in KINDS}
        made += [
            (_area(value), f"AUC, {kind} attacks", found["best"]) for kind, value in values.items() if value is not None
        ]
    return tiles(*made)


def _found_sections(fitted: Mapping[str, Any], found: Mapping[str, Any]) -> list[Section]:
    measured = [row for row in found["measured"] if not row["variant"]]
    detectors = fitted["detectors"]
    names = {d["label"]: _name(d) for d in detectors}
    seen = [row for row in measured if row["seen"]]
    unseen = [row for row in measured if not row["seen"]]
    yardsticks = [row for row in measured if row["detector"] not in names]
    others = {row["detector"]: row["detector"] for row in yardsticks}
    return [
        section(
            "AUC by attack",
            area_table(names, seen, found["macro"]),
            _heat(detectors, seen),
            lead="An adversarial image's chance to score above a natural one; -u is untargeted. In brackets the 95 % "
            "bootstrap interval over people.",
        ),
        section("Attacks that the detectors have never seen", area_table(names, unseen) if unseen else None),
        section(
            "ROC of the best detector",
            attacks_table(found["best"], measured),
            plots(curves(found["curves"], found["natural"])),
            lead=f"{found['best']}, {found['natural']} natural images: rates below {rate(1 / found['natural'])} "
            "cannot be measured.",
        ),
        *sections(found),
        section(
            "An attacker who knows the detector",
            _adaptive(found["adaptive"]) if found["adaptive"] else None,
            lead="The attack's loss minus the weight times the detector's logit; weight 0 does not know it. Hidden: "
            "reaches the goal and is not flagged at the threshold of 5 % false alarms, a second goal of "
            "the attacks that look for the smallest change or stop at success. "
            + detection_adaptive.goal_words(found.get("verifier")),
        ),
        detection_adaptive.adaptive_section(found["adaptive_points"], found.get("verifier")),
        section(
            "Yardsticks on the same layers",
            area_table(others, yardsticks, first="detector", shown=area, note="") if yardsticks else None,
            lead="They are not fitted to attacks. AUC.",
        ),
        detection_knn.knn_section(found["knn"]),
        section("The papers' findings, one by one", findings(found["directions"])),
    ]


def _name(detector: Mapping[str, Any]) -> str:
    """As in the paper's tables: "LSTM M L2"."""
    network = " + ".join(_NETWORKS.get(name, name.upper()) for name in detector["network"].split("+"))
    name = f"{network} {detector['representatives'][0].upper()} {_METRICS[detector['metric']]}"
    return f"{name} relative" if detector.get("reading") == "relative" else name


def _area(value: float) -> str:
    return f"{value:.3f}"


def area(row: Mapping[str, Any]) -> str:
    """The AUC of a measurement."""
    return _area(row["auc"])


def _columns(rows: Rows) -> list[tuple[str, str]]:
    """Families, targeted first."""
    return list(dict.fromkeys((row["family"], kind) for kind in KINDS for row in rows if row["kind"] == kind))


def area_table(
    names: Mapping[str, str],
    rows: Rows,
    macro: Rows = (),
    *,
    first: str = "configuration",
    shown: Callable[[Mapping[str, Any]], str] = interval,
    note: str = "M medoids, C centroids.",
) -> Table:
    """AUC of each detector for each attack, targeted ones first.

    Args:
        names: The detectors, and what each is called.
        rows: The measurements, from the ``measured`` of an evaluation.
        macro: The means over the attacks, which get a column for each kind.
        first: The name of the first column.
        shown: How a measurement is written.
        note: Below the table.
    """
    areas = {(r["detector"], r["family"], r["kind"]): shown(r) for r in rows}
    areas |= {(m["detector"], "macro", m["kind"]): _area(m["auc"]) for m in macro}
    columns = []
    for kind in KINDS:
        columns += [each for each in _columns(rows) if each[1] == kind]
        columns += [("macro", kind)] if any(m["kind"] == kind for m in macro) else []
    made = tuple(
        (name, *(areas.get((detector, *each), text.NONE) for each in columns)) for detector, name in names.items()
    )
    return Table(header=(first, *(column(*each) for each in columns)), rows=made, note=note)


def _heat(detectors: Rows, rows: Rows) -> Part | None:
    columns = _columns(rows)
    if not columns:
        return None
    areas = {(r["detector"], r["family"], r["kind"]): r["auc"] for r in rows}
    values = [[areas.get((d["label"], family, kind), math.nan) for family, kind in columns] for d in detectors]
    plot = heat_plot(
        values,
        rows=[_name(d) for d in detectors],
        columns=[column(*c) for c in columns],
        title="AUC",
        axes_names=("detector", "attack"),
    )
    return plots((plot,))


def _adaptive(rows: Rows) -> Table:
    made = tuple(
        (
            f"{row['attack']}, {'targeted' if row['targeted'] else 'untargeted'}",
            f"{row['weight']:g}",
            f"{row['met_before_images']} of {row['tried']}",
            text.percent(row["reached"]),
            interval(row["measured"]),
            text.percent(row["hidden"]),
        )
        for row in rows
    )
    header = ("attack", "weight", "met before", "goal reached, of the rest", "AUC of the detector", "hidden")
    return Table(header=header, rows=made)


def findings(rows: Rows) -> Table:
    """The papers' findings, from the ``directions`` of an evaluation."""
    verdicts = {True: "yes", False: "no", None: "not run"}

    def verdict(row: Mapping[str, Any]) -> str:
        return "undecided" if row["holds"] is None and row.get("interval") else verdicts[row["holds"]]

    made = tuple((row["claim"], verdict(row), row["numbers"]) for row in rows)
    return Table(header=("finding", "so here", "measured"), rows=made)


def cells_table(rows: Rows) -> Table:
    """The attacks of a study, from the ``cells`` of its JSON files."""
    made = tuple(
        (
            row["attack"],
            row["kind"],
            str(row["tried"]),
            *parts.rates(row),
            text.NONE if row["l2"] is None else f"{row['l2']:.2f}",
            text.NONE if row["linf"] is None else text.levels(row["linf"]),
        )
        for row in rows
    )
    header = (
        *("attack", "kind", "images", "success", "met before", "success of the rest"),
        *("L2, mean *", "largest change, mean *"),
    )
    return Table(header=header, rows=made, note=NORMS_NOTE)


def _naturals(counts: Mapping[str, Mapping[str, int]]) -> Table:
    kinds = dict.fromkeys(kind for own in counts.values() for kind in own)
    made = tuple((kind, *(str(own.get(kind, 0)) for own in counts.values())) for kind in kinds)
    return Table(header=("natural images", *counts), rows=made)


def _fits(rows: Rows) -> Table:
    groups = list(dict.fromkeys(group for row in rows for group in row["validation_auc"]))
    made = tuple(
        (
            _name(row),
            f"{row['best_epoch']} of {row['epochs']}",
            *(_area(row["validation_auc"][group]) for group in groups),
        )
        for row in rows
    )
    return Table(header=("configuration", "epoch kept", *groups), rows=made)
