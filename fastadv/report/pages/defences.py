"""The page of a study of defences, and the rows of its table, from plain values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastadv.attacks.spec import parse_attack
from fastadv.core import text
from fastadv.report.distributions import distribution_plot
from fastadv.report.pages import parts
from fastadv.report.pages.frame import notices, page_of, plots, read_description, read_json, section, tiles, write_page
from fastadv.report.parts import Page, Plot, Section, Table
from fastadv.report.study_figures import Line, heat_plot, line_plot

FILE = "defences.json"
Values = Mapping[str, Any]

CLEAN = ("defence", "accuracy", "EER", "TAR at FAR 1 %", "TAR at FAR 0.1 %", "images/s", "cost")
ATTACKED = (
    "defence",
    "knows",
    "attack",
    "accuracy",
    "clean",
    "refitted",
    "EER after",
    "success",
    "met before",
    "success of the rest",
    "median L2 *",
    "max level *",
)
NORMS_NOTE = "* of the pairs that succeed and whose clean images did not meet the goal before the attack"
NORMS_NOTES = (
    NORMS_NOTE,
    "** distance of the original from the defended attacked image, of the images that succeed on the network that they "
    "were generated on",
)


def clean_rows(found: Values) -> list[tuple[str, ...]]:
    """The defences on clean pairs: cells of ``CLEAN``."""
    figures = ("accuracy", "eer", "tar_at_far_1e2", "tar_at_far_1e3")
    return [
        (
            one["defence"],
            *(text.percent(one["clean"][figure]) for figure in figures),
            f"{one['images_per_second']:.1f}",
            f"{one['cost']:.2f}",
        )
        for one in found["defences"]
    ]


def attacked_rows(found: Values) -> list[tuple[str, ...]]:
    """Every attack on every defence: cells of ``ATTACKED``."""
    return [
        (
            cell["defence"],
            cell["threat"],
            cell["attack"],
            text.percent(cell["attacked"]["accuracy"]),
            text.percent(cell.get("accuracy_clean")),
            text.percent(cell["accuracy_refitted"]),
            text.percent(cell["attacked"]["eer"]),
            *parts.rates(cell),
            _length(None if cell["l2"] is None else cell["l2"]["median"]),
            text.NONE if cell["linf"] is None else f"{255 * cell['linf']['max']:.0f}",
        )
        for cell in found["cells"]
    ]


WITHIN = (
    "defence",
    "knows",
    "attack",
    "goal",
    "pairs",
    "success",
    "met before",
    "success of the rest",
    "with L2 below 5",
    "below 1",
    "mean L2 *",
    "defended L2 **",
)


def within_rows(found: Values) -> list[tuple[str, ...]]:
    """How long the changes are that succeed, for each goal: cells of ``WITHIN``, Mehr and Schroeder's table 1."""
    rows = []
    for cell in found["cells"]:
        for goal, key in (("anonymisation", "evasion"), ("impersonation", "impersonation")):
            one = cell[key]
            shares = (*parts.rates(one), *(text.percent(one[name]) for name in ("below_5", "below_1")))
            lengths = (_length(one.get(name)) for name in ("mean_l2", "mean_l2_defended"))
            rows.append((cell["defence"], cell["threat"], cell["attack"], goal, str(one["images"]), *shares, *lengths))
    return rows


def _length(value: float | None) -> str:
    return text.NONE if value is None else f"{value:.2f}"


SWEEP = (
    "attack",
    "threshold",
    "impersonation: successes",
    "mean L2",
    "anonymisation: successes",
    "mean L2",
    "ratio of the means",
    "95 %",
)


def sweep_rows(found: Values) -> list[tuple[str, ...]]:
    """Impersonation against anonymisation by threshold: cells of ``SWEEP``."""
    rows = []
    for cell in found.get("sweep", ()):
        figures: list[str] = []
        for goal in ("impersonation", "evasion"):
            one = cell[goal]
            rest = one["images"] - one["met_before_images"]
            figures += [f"{one['rest_successes']} of {rest}", _length(one["mean_l2"])]
        ratio, interval = cell["ratio"], text.NONE
        if ratio is not None:
            interval = f"{ratio['low']:.2f}–{ratio['high']:.2f}"
        rows.append((cell["attack"], f"{cell['threshold']:g}", *figures, _length(ratio and ratio["ratio"]), interval))
    return rows


CONFIDENCE = (
    "defence",
    "attack",
    "anonymisation: images",
    "confidence",
    "clean",
    "impersonation: images",
    "confidence",
    "clean",
)


def confidence_title(found: Values) -> str:
    """What the table of the black box is about."""
    box = found["black_box"]
    return f"{box['network']}: mean confidence in the right answer, threshold {box['threshold']:.3f}"


def confidence_rows(found: Values) -> list[tuple[str, ...]]:
    """The second network's confidence: cells of ``CONFIDENCE``, Mehr and Schroeder's table 3."""
    rows = []
    for cell in (found.get("black_box") or {"cells": ()})["cells"]:
        figures: list[str] = []
        for goal in ("evasion", "impersonation"):
            one = cell[goal]
            shares = (text.percent(one[name]) for name in ("confidence", "confidence_clean"))
            figures += [str(one["images"]), *shares]
        rows.append((cell["defence"], cell["attack"] or "none", *figures))
    return rows


def clean_notes(found: Values) -> tuple[str, ...]:
    """Why a figure of the clean pairs is missing, a sentence each."""
    return tuple(dict.fromkeys(note for one in found["defences"] for note in one["clean"].get("notes", ())))


def flag_lines(found: Values) -> tuple[str, ...]:
    """What looks like masked gradients, one line each."""
    return tuple(f"{one['defence']}: {flag['text']}" for one in found["defences"] for flag in one["flags"])


def render(folder: Path, *, out: Path | None = None) -> Path:
    """Draw the page of a study's folder.

    Args:
        folder: Of ``fastadv defend``.
        out: The page; None: ``report.html`` in the folder.

    Raises:
        ValueError: The folder holds no finished study.
        ImportError: jinja2 or matplotlib is not installed.
        OSError: The page cannot be written.
    """
    return write_page(
        folder,
        lambda: study_page(read_json(folder / FILE), *read_description(folder)),
        out,
        expected="a finished study with its run.json",
    )


def study_page(found: Values, config: Values, versions: Values) -> Page:
    """The page from plain values."""
    cells, flags = found["cells"], flag_lines(found)
    worst = max(cells, key=lambda c: c["success_of_rest"] or 0.0)
    strongest = f"{worst['attack']} ({worst['threat']}) on {worst['defence']}"
    return page_of(
        "Defences, and attackers who know of them",
        "Both images of a pair pass the defence. An attacker with zero knowledge works on the bare network, one "
        "with perfect knowledge through the defence; a copy was attacked before. Success is what the defended verifier "
        "then gets wrong, at its own threshold from clean pairs; all numbers are measured on the 8-bit image.",
        section(
            "",
            tiles(
                (f"{found['pairs']:,}", "pairs", "the first image of each is attacked"),
                (str(len(found["defences"]) - 1), "defences"),
                (text.percent(worst["success_of_rest"], 0), "strongest attack, success of the rest", strongest),
                (str(len(flags)), "signs of masked gradients"),
            ),
        ),
        section("What to doubt", notices(flags or ("No sign of masked gradients.",))),
        section(
            "What the defences cost",
            Table(header=CLEAN, rows=tuple(clean_rows(found)), note=". ".join(clean_notes(found))),
            lead="On clean pairs; cost is the time for an image over that without a defence.",
        ),
        section(
            "Success of the attacks",
            plots(_heats(found)),
            lead="The share of the pairs, of both kinds, whose clean images did not meet the goal before.",
        ),
        section("Over the radius", plots(_curves(cells))),
        section(
            "How much the images change",
            plots(_lengths(cells)),
            Table(header=WITHIN, rows=tuple(within_rows(found)), note=". ".join(NORMS_NOTES)),
            lead="L2 norms of the perturbations of all pairs, successful or not, pixels in [0, 1]. The table: the "
            "success of the rest is of the pairs whose clean images did not meet the goal before.",
        ),
        *_further(found),
        section(
            "All numbers",
            Table(header=ATTACKED, rows=tuple(attacked_rows(found)), note=NORMS_NOTE),
            lead="Accuracy at the thresholds of the clean folds (or a given one), on clean pairs, and refitted to the "
            "attacked ones.",
        ),
        config=config,
        versions=versions,
    )


def _further(found: Values) -> Iterator[Section]:
    """The sweep over the threshold, and the second network, where they were measured."""
    if found.get("sweep"):
        yield section(
            "Impersonation against anonymisation, over the threshold",
            plots(_ratios(found["sweep"])),
            Table(header=SWEEP, rows=tuple(sweep_rows(found))),
            lead="Minimal-norm attacks on the bare network, once for each cosine threshold: the mean L2 norm of the "
            "changes that reach the goal, of pairs that did not meet it before.",
        )
    if found.get("black_box"):
        yield section(
            "A second network",
            Table(header=CONFIDENCE, rows=tuple(confidence_rows(found))),
            lead=f"{confidence_title(found)}, on images that were generated on the first network and succeed there; "
            "clean: the same pairs before the attack.",
        )


def _ratios(cells: Sequence[Values]) -> list[Plot]:
    lines = []
    for attack in _distinct(cells, "attack"):
        own = [c for c in cells if c["attack"] == attack and c["ratio"] is not None]
        points = sorted((c["threshold"], c["ratio"]["ratio"]) for c in own)
        if points:
            x, y = zip(*points, strict=True)
            lines.append(Line(label=attack, x=x, y=y))
    if not lines:
        return []
    title = "L2 of impersonation over that of anonymisation"
    axes = ("cosine threshold", "ratio of the means")
    return [line_plot(lines, title=title, x_name=axes[0], y_name=axes[1], level=("equal", 1.0))]


def _distinct(cells: Sequence[Values], key: str) -> list[str]:
    return list(dict.fromkeys(c[key] for c in cells))


def _heats(found: Values) -> list[Plot]:
    cells = found["cells"]
    defences = _distinct(cells, "defence")
    made = []
    for threat in _distinct(cells, "threat"):
        own = [c for c in cells if c["threat"] == threat]
        share = {(c["defence"], c["attack"]): c["success_of_rest"] for c in own if c["success_of_rest"] is not None}
        attacks = _distinct(own, "attack")
        values = [[share.get((d, a), math.nan) for a in attacks] for d in defences]
        names = ("defence", "attack")
        made.append(heat_plot(values, rows=defences, columns=attacks, title=threat, axes_names=names))
    return made


def _curves(cells: Sequence[Values]) -> list[Plot]:
    """Success over the radius, a figure for each attack that was run with several."""
    made = []
    for attack in dict.fromkeys(map(_attack_of, cells)):
        named = [c for c in cells if _attack_of(c) == attack and c["eps"] is not None]
        own = [c for c in named if c["success_of_rest"] is not None]
        if len({c["eps"] for c in own}) < 2:
            continue
        lines = []
        for defence in _distinct(own, "defence"):
            for threat in _distinct(own, "threat"):
                points = sorted(
                    (255 * c["eps"], c["success_of_rest"])
                    for c in own
                    if (c["defence"], c["threat"]) == (defence, threat)
                )
                if not points:
                    continue
                x, y = zip(*points, strict=True)
                lines.append(Line(label=f"{defence}, {threat}", x=x, y=y, dashed=threat == "zero"))
        made.append(
            line_plot(
                lines,
                title=attack,
                x_name="eps, grey levels",
                y_name="success of the rest",
                y_span=(0.0, 1.02),
                note="Broken: the attacker does not know the defence.",
            )
        )
    return made


def _lengths(cells: Sequence[Values]) -> list[Plot]:
    """The lengths of the perturbations, a figure for each attack, a line for each that was made on its own."""
    made = []
    for attack in _distinct(cells, "attack"):
        series = {}
        for cell in cells:
            if cell["attack"] == attack:
                once = {"zero": "bare network", "copy": "the copy"}  # made once for all defences
                label = once.get(cell["threat"], f"{cell['defence']}, {cell['threat']}")
                series[label] = cell["lengths"]
        made.append(distribution_plot(attack, tuple(series.items()), axis="L2 norm"))
    return made


def _attack_of(cell: Mapping[str, Any]) -> str:
    """The label of a cell's attack without its radius; a copy has none."""
    return str(cell["attack"]) if cell["eps"] is None else parse_attack(cell["attack"]).label_without_eps
