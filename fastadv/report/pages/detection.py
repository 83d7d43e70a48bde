"""The page of a detection study, from what its folder holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastadv.core import text
from fastadv.core.errors import ArgumentError
from fastadv.core.files import write_atomically
from fastadv.report.page import render_page
from fastadv.report.pages import parts
from fastadv.report.parts import Notices, Page, Part, Plot, Plots, Section, Table, Tile, Tiles
from fastadv.report.study_figures import Line, heat_plot, line_plot
from fastadv.runs.attack import NORMS_NOTE
from fastadv.studies.detection.fit import EVALUATION, FITTED
from fastadv.studies.detection.measure import AGGREGATE, ERRORS, FALSE_ALARMS, KNN_NAMES
from fastadv.studies.detection.study import read_study

PAGE = "report.html"
_PROCESSINGS = {"none": "none", "l2": "L2", "pca": "PCA + whitening"}
_METRICS = {"l2": "L2", "cosine": "cos"}
_KINDS = ("targeted", "untargeted")
_CURVES = 6
_RATES = (1e-4, 1e-3, 0.01, 0.05, 0.2, 1.0)  # marked below a ROC
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
    try:
        fitted = json.loads((folder / FITTED).read_bytes())
        file = folder / EVALUATION
        found = json.loads(file.read_bytes()) if file.is_file() else None
        page = study_page(fitted, found, study["config"], study["versions"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"{folder}: expected a fitted study: {error!r}") from error
    target = out or folder / PAGE
    write_atomically(target, render_page(page).encode())
    return target


def study_page(
    fitted: Mapping[str, Any], found: Mapping[str, Any] | None, config: Mapping[str, Any], versions: Mapping[str, Any]
) -> Page:
    """The page from plain values."""
    notices = list(dict.fromkeys([*fitted["notices"], *(found["notices"] if found else ())]))
    sections = [
        Section(title="", parts=(_tiles(fitted, found),)),
        Section(title="Take note", parts=(Notices(lines=tuple(notices)),) if notices else ()),
    ]
    if found is not None:
        sections += _found_sections(fitted, found)
    sections += [
        Section(
            title="The adversarial images",
            lead="Only images that the network classifies rightly are attacked; those that reach the goal as 8-bit "
            "images are examples.",
            parts=(cells_table(found["cells"] if found else fitted["cells"]),),
        ),
        Section(
            title="The fit",
            lead="AUC on the images that validate, which stop the fit and set the thresholds: not for reporting.",
            parts=(_fits(fitted["detectors"]),),
        ),
        Section(
            title="Configuration",
            parts=(
                parts.facts("Configuration", {k: v for k, v in config.items() if k != "classes"}),
                parts.facts("Versions", versions),
            ),
        ),
    ]
    return Page(
        title="Telling adversarial faces from natural ones",
        lead=f"Detectors read the way of an image through {len(fitted['layers'])} layers of {config['model']}, told by "
        f"its distances to {fitted['people']} people. {_APART[config['split_by']]}",
        sections=tuple(sections),
        footer=f"fastadv {versions.get('fastadv', '')}".rstrip(),
    )


def _tiles(fitted: Mapping[str, Any], found: Mapping[str, Any] | None) -> Tiles:
    tiles = [
        Tile(
            value=str(fitted["people"]), label="people", note=f"{fitted['natural']['test']} natural images in the test"
        ),
        Tile(value=text.percent(fitted["accuracy"]), label="natural images classified rightly"),
    ]
    if found is not None:
        for kind in _KINDS:
            value = next(
                (m["auc"] for m in found["macro"] if (m["detector"], m["kind"]) == (found["best"], kind)), None
            )
            if value is not None:
                tiles.append(Tile(value=_area(value), label=f"AUC, {kind} attacks", note=found["best"]))
    return Tiles(tiles=tuple(tiles))


def _found_sections(fitted: Mapping[str, Any], found: Mapping[str, Any]) -> list[Section]:
    measured = [row for row in found["measured"] if not row["variant"]]
    detectors = fitted["detectors"]
    labels = {d["label"] for d in detectors}
    seen = [row for row in measured if row["seen"]]
    unseen = [row for row in measured if not row["seen"]]
    yardsticks = [row for row in measured if row["detector"] not in labels]
    return [
        Section(
            title="AUC by attack",
            lead="An adversarial image's chance to score above a natural one; -u is untargeted. In brackets the 95 % "
            "bootstrap interval over people.",
            parts=(_areas(detectors, seen, found["macro"]), *_heat(detectors, seen)),
        ),
        Section(
            title="Attacks that the detectors have never seen",
            parts=(_areas(detectors, unseen, ()),) if unseen else (),
        ),
        Section(
            title="ROC of the best detector",
            lead=f"{found['best']}, {found['natural']} natural images: rates below {_share(1 / found['natural'])} "
            "cannot be measured.",
            parts=_curves(found["curves"], found["natural"]),
        ),
        Section(title="At a low false-alarm rate", parts=(_low(found["best"], measured),)),
        Section(
            title="An attacker who knows the detector",
            lead="The attack's loss minus the weight times the detector's logit; weight 0 does not know it. Hidden: "
            "reaches the class goal and is not flagged at the threshold of 5 % false alarms, a second goal of "
            "the attacks that look for the smallest change or stop at success.",
            parts=_adaptive(found["adaptive"]),
        ),
        Section(
            title="Yardsticks on the same layers",
            lead="They are not fitted to attacks. AUC.",
            parts=(_yardsticks(yardsticks),) if yardsticks else (),
        ),
        Section(
            title="kNN score",
            lead="Accuracy at the equal error rate of natural images that are classified rightly against each column. "
            "In brackets the share that is refused where 98 % of the former are kept; a dash: they are too few.",
            parts=(_knn(found["knn"]),) if found["knn"] else (),
        ),
        Section(title="The papers' findings, one by one", parts=(_directions(found["directions"]),)),
    ]


def _name(detector: Mapping[str, Any]) -> str:
    """As in the paper's tables: "LSTM M L2"."""
    return f"{detector['network'].upper()} {detector['representatives'][0].upper()} {_METRICS[detector['metric']]}"


def _area(value: float) -> str:
    return f"{value:.3f}"


def _share(value: float | None) -> str:
    return text.percent(value, 2 if value is not None and value < 0.01 else 1)


def _columns(rows: Rows) -> list[tuple[str, str]]:
    """Families, targeted first."""
    return list(dict.fromkeys((row["family"], kind) for kind in _KINDS for row in rows if row["kind"] == kind))


def _column(family: str, kind: str) -> str:
    return family if kind == "targeted" else f"{family}-u"


def _areas(detectors: Rows, rows: Rows, macro: Rows) -> Table:
    columns = _columns(rows)
    areas = {(r["detector"], r["family"], r["kind"]): r for r in rows}
    means = {(m["detector"], m["kind"]): m["auc"] for m in macro}
    header: list[str] = ["configuration"]
    for kind in _KINDS:
        header += [_column(family, k) for family, k in columns if k == kind]
        if any(key[1] == kind for key in means):
            header.append("macro" if kind == "targeted" else "macro-u")
    made = []
    for detector in detectors:
        cells = [_name(detector)]
        for kind in _KINDS:
            for family, k in columns:
                if k == kind:
                    row = areas.get((detector["label"], family, kind))
                    cells.append(
                        text.NONE if row is None else f"{_area(row['auc'])} [{_area(row['low'])}, {_area(row['high'])}]"
                    )
            if any(key[1] == kind for key in means):
                value = means.get((detector["label"], kind))
                cells.append(text.NONE if value is None else _area(value))
        made.append(tuple(cells))
    return Table(header=tuple(header), rows=tuple(made), note="M medoids, C centroids.")


def _heat(detectors: Rows, rows: Rows) -> tuple[Part, ...]:
    columns = _columns(rows)
    if not columns:
        return ()
    areas = {(r["detector"], r["family"], r["kind"]): r["auc"] for r in rows}
    values = [[areas.get((d["label"], family, kind), math.nan) for family, kind in columns] for d in detectors]
    plot = heat_plot(
        values,
        rows=[_name(d) for d in detectors],
        columns=[_column(*c) for c in columns],
        title="AUC",
        axes_names=("detector", "attack"),
    )
    return (Plots(plots=(plot,)),)


def _curves(curves: Mapping[str, Any], natural: int) -> tuple[Part, ...]:
    plots: list[Plot] = []
    lowest = 1 / natural
    for kind in _KINDS:
        chosen = {name: c for name, c in curves.items() if name.endswith(f" {kind}")}
        lines = []
        for name, found in list(chosen.items())[:_CURVES]:
            far = [max(lowest, value) for value in found["false_alarm"]]
            label = name.removesuffix(f" {kind}")
            lines.append(Line(label=label, x=tuple(far), y=tuple(found["found"])))
        if lines:
            plots.append(
                line_plot(
                    lines,
                    title=kind,
                    x_name="false-alarm rate",
                    y_name="share found",
                    log_x=True,
                    x_ticks=[rate for rate in _RATES if rate >= lowest],
                    y_span=(-0.02, 1.02),
                )
            )
    return (Plots(plots=tuple(plots)),) if plots else ()


def _low(best: str, rows: Rows) -> Table:
    made = tuple(
        (
            _column(row["family"], row["kind"]),
            "yes" if row["seen"] else "no",
            str(row["images"]),
            *(_share(value) for value in row["found"]),
        )
        for row in rows
        if row["detector"] == best
    )
    header = ("attack", "fitted on", "images", *(f"found at {_share(rate)}" for rate in FALSE_ALARMS))
    return Table(header=header, rows=made, note=f"{best}. A dash: too few natural images for the rate.")


def _adaptive(rows: Rows) -> tuple[Part, ...]:
    if not rows:
        return ()
    made = []
    for row in rows:
        found = row["measured"]
        area = text.NONE if found is None else f"{_area(found['auc'])} [{_area(found['low'])}, {_area(found['high'])}]"
        kind = "targeted" if row["targeted"] else "untargeted"
        made.append(
            (
                f"{row['attack']}, {kind}",
                f"{row['weight']:g}",
                f"{row['met_before_images']} of {row['tried']}",
                text.percent(row["reached"]),
                area,
                text.percent(row["hidden"]),
            )
        )
    header = ("attack", "weight", "met before", "goal reached, of the rest", "AUC of the detector", "hidden")
    return (Table(header=header, rows=tuple(made)),)


def _yardsticks(rows: Rows) -> Table:
    columns = _columns(rows)
    areas = {(r["detector"], r["family"], r["kind"]): r["auc"] for r in rows}
    made = []
    for name in dict.fromkeys(row["detector"] for row in rows):
        cells = [areas.get((name, *column)) for column in columns]
        made.append((name, *(text.NONE if value is None else _area(value) for value in cells)))
    return Table(header=("detector", *(_column(*c) for c in columns)), rows=tuple(made))


def _knn(rows: Rows) -> Table:
    columns = [c for c in rows[0]["accuracy"] if c not in (AGGREGATE, ERRORS)]
    columns += [c for c in (AGGREGATE, ERRORS) if c in rows[0]["accuracy"]]
    made = tuple(
        (
            f"{_PROCESSINGS[row['processing']]}, {KNN_NAMES[row['weighting']]}",
            *(f"{text.percent(row['accuracy'][c])} ({text.percent(row['refused'][c], 0)})" for c in columns),
        )
        for row in rows
    )
    return Table(header=("processing, score", *columns), rows=made)


def _directions(rows: Rows) -> Table:
    verdicts = {True: "yes", False: "no", None: "not run"}
    made = tuple((row["claim"], verdicts[row["holds"]], row["numbers"]) for row in rows)
    return Table(header=("finding", "so here", "measured"), rows=made)


def cells_table(rows: Rows) -> Table:
    """The attacks of a study, from the ``cells`` of its JSON files."""
    made = tuple(
        (
            row["attack"],
            row["kind"],
            str(row["tried"]),
            *(text.percent(row[name]) for name in ("success", "met_before", "success_of_rest")),
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
