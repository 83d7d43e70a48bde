"""Adaptive attackers on the page of a detection study: how much effort evades recogniser and detector at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastadv.core import text
from fastadv.core.numbers import show_eps
from fastadv.report.pages.frame import plots, section
from fastadv.report.parts import Plot, Section, Table
from fastadv.report.study_figures import Line, line_plot
from fastadv.studies.detection.adaptive_curves import EPS, MORE, STEPS

_SPAN = (-0.02, 1.02)
Rows = Sequence[Mapping[str, Any]]


def goal_words(verifier: Mapping[str, Any] | None) -> str:
    """A sentence that says what the attacks are to reach, from the ``verifier`` of an evaluation, or without one."""
    if verifier is None:
        return "The goal is a class of the class head, or of the nearest class mean for attacks on embeddings."
    return (
        "The goal is a verifier's decision: a targeted image is accepted as the target, which it claims to be, an "
        f"untargeted one, which claims nobody, is refused as itself. Threshold {verifier['threshold']:.3f}, a cosine "
        f"similarity to the mean of a person's images: {text.percent(verifier['far'], 2)} false accepts of "
        f"{verifier['pairs']:,} pairs of natural images, {text.percent(verifier['false_reject_rate'])} false rejects."
    )


def adaptive_section(rows: Rows, verifier: Mapping[str, Any] | None = None) -> Section:
    """The section, from the ``adaptive_points`` of an evaluation and its ``verifier``; empty without points."""
    return section(
        "Adaptive attacks against steps and radius",
        plots(_plots(rows)) if rows else None,
        points_table(rows) if rows else None,
        lead="Each image is attacked with the margin loss and then with every weight, until one run succeeds: it "
        "reaches the goal and is not flagged at 5 % false alarms. "
        + goal_words(verifier)
        + " The best result of an image within the steps "
        "and the radius counts. Transfer: images that were made to evade another detector. In brackets 95 %, for "
        "independent images (Wilson): too narrow for several of a person.",
    )


def points_table(rows: Rows) -> Table:
    """Every point with its counts."""
    made = tuple(
        (
            row["detector"],
            f"{row['attack']}, {'targeted' if row['targeted'] else 'untargeted'}, {row.get('goal', 'class')}",
            _varied(row),
            str(row["steps"]),
            show_eps(row["eps"]),
            _share(row["hidden"], row["images"], row["success"], row["success_interval"]),
            _share(row["fooled"] - row["hidden"], row["fooled"], row["flagged"], row["flagged_interval"]),
        )
        for row in rows
    )
    header = (
        "detector",
        "attack",
        "varied",
        "steps",
        "eps",
        "evades both",
        "flagged, of those that reach the goal",
    )
    return Table(header=header, rows=made)


def _varied(row: Mapping[str, Any]) -> str:
    known = {STEPS: "steps", EPS: "eps", MORE: "ten times the steps"}
    return known.get(row["varied"], f"transfer from {row['made_for']}")


def _share(hits: int, trials: int, share: float | None, interval: Sequence[float] | None) -> str:
    if share is None or interval is None:
        return text.NONE
    low, high = (text.percent(end, 0) for end in interval)
    return f"{hits} of {trials}, {text.percent(share, 0)} [{low}, {high}]"


def _plots(rows: Rows) -> list[Plot]:
    made = []
    for varied, name in ((STEPS, "steps"), (EPS, "eps")):
        lines: list[Line] = []
        several = len({row["detector"] for row in rows}) > 1
        for key in dict.fromkeys((row["attack"], row["targeted"], row["detector"]) for row in rows):
            own = [r for r in rows if (r["attack"], r["targeted"], r["detector"]) == key]
            # ten times the steps are the last point of their curve
            own = [r for r in own if r["varied"] == varied or (varied == STEPS and r["varied"] == MORE)]
            title = f"{key[0]}{'' if key[1] else '-u'}{f', {key[2]}' if several else ''}"
            for field, what, dashed in (("success", "evades both", False), ("flagged", "flagged", True)):
                shown = [(float(r[name]), r[field]) for r in own if r[field] is not None]
                if shown:
                    x, y = zip(*shown, strict=True)
                    lines.append(Line(label=f"{title}: {what}", x=x, y=y, dashed=dashed))
        if lines:
            title = f"against {'steps' if varied == STEPS else 'the radius'}"
            made.append(line_plot(lines, title=title, x_name=name, y_name="share", log_x=True, y_span=_SPAN))
    return made
