"""The parts of a detection study's page that compare groups: noise, harmless changes, other people and sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastadv.core import text
from fastadv.report.distributions import histogram_plot
from fastadv.report.pages.frame import plots, section
from fastadv.report.parts import Plot, Section, Table
from fastadv.report.study_figures import Line, line_plot
from fastadv.studies.detection.measure import FALSE_ALARMS

KINDS = ("targeted", "untargeted")
_LINES = 6  # curves of one figure
_RATES = (1e-4, 1e-3, 0.01, 0.05, 0.2, 1.0)  # marked below a ROC
_SORTS = {"natural": "as they are", "noise": "noise of an attack's L2 norm", "outside": "not a class"}
_INDEPENDENT = "In brackets 95 %; of shares for independent images (Wilson), too narrow for several of a person."
Rows = Sequence[Mapping[str, Any]]


def column(family: str, kind: str) -> str:
    """The name of an attack, such as bim, or bim-u where it is untargeted."""
    return family if kind == "targeted" else f"{family}-u"


def rate(value: float | None) -> str:
    """A share, with two digits below 1 %."""
    return text.percent(value, 2 if value is not None and value < 0.01 else 1)


def spanned(value: float | None, span: Sequence[float] | None) -> str:
    """A share with its interval: "97.2 % [91.0, 99.1]"."""
    if value is None or span is None:
        return text.NONE
    digits = 2 if value < 0.01 else 1
    return f"{rate(value)} [{100 * span[0]:.{digits}f}, {100 * span[1]:.{digits}f}]"


def interval(row: Mapping[str, Any] | None) -> str:
    """An AUC with its interval; a dash of none."""
    return text.NONE if row is None else f"{row['auc']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def attacks_table(best: str, rows: Rows, *, against: str = "natural") -> Table:
    """One detector on every attack: AUC, and shares found at low false-alarm rates.

    Args:
        best: The detector.
        rows: The ``measured`` or ``noise`` of an evaluation.
        against: What the attacked images are compared with.
    """
    made = tuple(
        (
            column(row["family"], row["kind"]),
            "yes" if row["seen"] else "no",
            str(row["images"]),
            str(row["natural"]),
            interval(row),
            *(spanned(share, span) for share, span in zip(row["found"], row["intervals"], strict=True)),
        )
        for row in rows
        if row["detector"] == best and not row["variant"]
    )
    found = (f"found at {rate(each)}" for each in FALSE_ALARMS)
    header = ("attack", "fitted on", "images", against, "AUC", *found)
    return Table(header=header, rows=made, note=f"{best}. In brackets 95 %. A dash: too few images for the rate.")


def alarms_table(best: str, rows: Rows) -> Table:
    """The false alarms of one detector on every kind of natural images, from ``false_alarms``."""
    chosen = [row for row in rows if row["detector"] == best]
    made = tuple(
        (
            row["label"],
            _of(row),
            str(row["found"]["people"]),
            f"{row['found']['flagged']} of {row['found']['images']}",
            spanned(row["found"]["share"], (row["found"]["low"], row["found"]["high"])),
        )
        for row in chosen
    )
    note = f"{best}, at {operating(chosen)}. {_INDEPENDENT}"
    return Table(header=("natural images", "fitted on", "people", "flagged", "share"), rows=made, note=note)


def operating(rows: Rows) -> str:
    """The threshold that rows of ``false_alarms`` or the like are of."""
    first = rows[0]
    words = "equal error rate" if first["rate"] is None else f"false-alarm rate {rate(first['rate'])} on validation"
    return f"threshold {text.score(first['threshold'])} ({words})"


def _of(row: Mapping[str, Any]) -> str:
    if row["sort"] == "control" and not row["fitted"]:
        return "another strength" if row["kind_fitted"] else "no"
    return "yes" if row["fitted"] else "no"


def changed_table(best: str, rows: Rows) -> Table:
    """One detector on attacked images that were changed afterwards, from ``changed``."""
    made = tuple(
        (
            f"{row['attack']}, {KINDS[not row['targeted']]}",
            "yes" if row["seen"] else "no",
            row["control"],
            f"{row['kept']} of {row['tried']}",
            interval(row["area"]),
            text.NONE
            if row["found"] is None
            else spanned(row["found"]["share"], (row["found"]["low"], row["found"]["high"])),
        )
        for row in rows
        if row["detector"] == best
    )
    header = ("attack", "fitted on", "then", "still succeed", "AUC", "flagged")
    note = f"AUC: against natural images with the same change. {_INDEPENDENT}"
    return Table(header=header, rows=made, note=note)


def curves(found: Mapping[str, Any], natural: int, *, against: str = "") -> list[Plot]:
    """ROC curves by kind of attack, from ``curves`` or ``noise_curves``; rates below 1 of ``natural`` are not drawn."""
    made: list[Plot] = []
    lowest = 1 / natural
    for kind in KINDS:
        chosen = {name: c for name, c in found.items() if name.endswith(f" {kind}")}
        lines = []
        for name, each in list(chosen.items())[:_LINES]:
            far = [max(lowest, value) for value in each["false_alarm"]]
            label = name.removesuffix(f" {kind}")
            lines.append(Line(label=label, x=tuple(far), y=tuple(each["found"])))
        if lines:
            made.append(
                line_plot(
                    lines,
                    title=f"{kind}{against}",
                    x_name="false-alarm rate",
                    y_name="share found",
                    log_x=True,
                    x_ticks=[each for each in _RATES if each >= lowest],
                    y_span=(-0.02, 1.02),
                )
            )
    return made


def histograms(found: Mapping[str, Any], threshold: float) -> list[Plot]:
    """The scores of groups, natural images in each figure, from ``histograms``."""
    groups = found["groups"]
    natural = next(group for group in groups if group["sort"] == "natural")
    chosen: dict[str, list[Mapping[str, Any]]] = {}
    for kind in KINDS:
        chosen[f"{kind} attacks"] = [g for g in groups if g["sort"] == "attack" and f" {kind}" in g["label"]]
        chosen[f"noise of {kind} attacks' L2"] = [
            g for g in groups if g["sort"] == "noise" and g["label"].endswith(f" {kind}")
        ]
    for title, seen in (("changed images, fitted on", True), ("changed images, not fitted on", False)):
        chosen[title] = [g for g in groups if g["sort"] == "control" and g["seen"] is seen]
    chosen["other people and sources"] = [g for g in groups if g["sort"] in ("outside", "other")]
    made = []
    for title, own in chosen.items():
        figures = -(-len(own) // (_LINES - 1))  # as many groups in each
        for place in range(figures):
            series = [natural, *own[place::figures]]
            made.append(
                histogram_plot(
                    title,
                    [(f"{g['label']} ({sum(g['counts'])})", g["counts"]) for g in series],
                    edges=found["edges"],
                    axis="score",
                    level=("threshold", threshold),
                )
            )
    return made


def sections(found: Mapping[str, Any]) -> list[Section]:
    """The sections of an evaluation that have something to show."""
    best, alarms = found["best"], found["false_alarms"]
    own = [row for row in alarms if row["detector"] == best]
    noise = [row for row in found["noise"] if row["detector"] == best]
    made = [
        section(
            "False alarms",
            alarms_table(best, alarms),
            lead="Natural images that are flagged at the detector's default threshold: unchanged, changed, with noise "
            "of the L2 norm of an attack, of people outside the classes, and of other sources.",
        ),
        section(
            "Attacks against noise of the same size",
            attacks_table(best, noise, against="noisy") if noise else None,
            plots(curves(found["noise_curves"], min(row["natural"] for row in noise))) if noise else None,
            lead="The same images with normal noise of the L2 norm of the attack's perturbation in its place: a "
            "detector of noise has an AUC of 0.5 here.",
        ),
        section(
            "Attacked images, unchanged, blurred and compressed",
            changed_table(best, found["changed"]) if found["changed"] else None,
            lead="Those that still reach their goal after the change; flagged at the detector's default threshold.",
        ),
        section("Scores by group", plots(histograms(found["histograms"], own[0]["threshold"])), lead=f"{best}."),
    ]
    return [each for each in made if each.parts]
