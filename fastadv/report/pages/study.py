"""The page of a recipe: the paper's table beside ours, its findings checked, and figures, from ``results.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastadv.core import text
from fastadv.core.errors import ArgumentError
from fastadv.data import read_image
from fastadv.report.pages import parts
from fastadv.report.pages.frame import notices, page_of, plots, read_json, section, tiles, write_page
from fastadv.report.parts import Card, CardGallery, Page, Part, Plot, Section, Table
from fastadv.report.study_figures import Line, line_plot
from fastadv.report.svg import COLOURS

RESULTS = "results.json"
_PAPER, _HERE = "paper", "here"


def render(folder: Path, *, out: Path | None = None) -> Path:
    """Draw the page of a recipe's folder.

    Args:
        folder: Of one recipe, in the folder of ``fastadv study run``.
        out: The page; None: ``report.html`` in the folder.

    Raises:
        ValueError: The folder holds no finished recipe.
        ImportError: jinja2 or matplotlib is not installed.
        OSError: The page cannot be written.
    """
    return write_page(
        folder, lambda: study_page(read_results(folder), folder.parent), out, expected="a finished recipe of a paper"
    )


def read_results(folder: Path) -> Mapping[str, Any]:
    """The results of a recipe's folder.

    Raises:
        ValueError: It holds none.
    """
    if not (folder / RESULTS).is_file():
        raise ArgumentError(f"{folder}: expected a recipe's folder of 'fastadv study run', got one without {RESULTS}")
    found = read_json(folder / RESULTS)
    if not isinstance(found, dict) or not {"recipe", "found", "printed"} <= set(found):
        raise ArgumentError(f"{folder / RESULTS}: expected the results of a recipe, got another file")
    return found


def study_page(found: Mapping[str, Any], root: Path) -> Page:
    """The page from plain values; ``root`` is the folder that the pictures' files are relative to."""
    studies = found["found"]
    counts = {v: sum(c["verdict"] == v for s in studies for c in s["claims"]) for v in ("pass", "fail", "undecided")}
    sections: list[Section] = [
        section("", tiles(*((str(n), name) for name, n in counts.items())) if any(counts.values()) else None),
        section(
            "The paper's numbers and ours" if found["printed"] else "Numbers",
            Table(header=header(found), rows=tuple(table_rows(found)), note=_note(found)),
        ),
        section("Findings", claims_table(found)),
    ]
    for study in studies:
        who = " and ".join(study["networks"])
        sections.append(section(f"Figures: {who}", plots(_plot(each) for each in study["figures"])))
        sections += [section(p["title"], _gallery(p, root), lead=p["note"]) for p in study["pictures"]]
    sections.append(section("Notes", notices(found["notes"])))
    names = ("recipe", "scale", "seed", "networks", "engine", "faces", "landmarks")
    config = {name: found[name] for name in names if name in found}
    seconds = {"+".join(study["networks"]): study["seconds"] for study in studies}
    return page_of(
        found["title"],
        f"{found['source']}; scale {found['scale']}.",
        *sections,
        config=config,
        versions=found["versions"],
        more=(parts.facts("Seconds of the parts", seconds),),
    )


def header(found: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of the paper, then those that only we have."""
    return ("", "", *_columns(found))


def _columns(found: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column for _, table in _tables(found) for column in table["columns"]))


def table_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """For each row of the tables: the paper's numbers, then ours for each study; rows of the paper first."""
    columns = _columns(found)
    names = dict.fromkeys(row["name"] for _, table in _tables(found) for row in table["rows"])
    for name in names:
        for who, table in _tables(found):
            own = next((row for row in table["rows"] if row["name"] == name), None)
            if own is not None:
                cells = dict(zip(table["columns"], own["cells"], strict=True))
                yield (name, who, *(cell_text(cells.get(column), percent=table["percent"]) for column in columns))


def _tables(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    studies = found["found"]
    ours = [(_HERE if len(studies) == 1 else "+".join(study["networks"]), study["table"]) for study in studies]
    return ours if found["printed"] is None else [(_PAPER, found["printed"]), *ours]


def cell_text(cell: Mapping[str, Any] | None, *, percent: bool) -> str:
    """``"92.8"``, ``"0.943 (0.912 to 0.961)"``, ``"46.9 (30.9 to 63.6; 15 of 32)"``; shares as per cent."""
    if cell is None or cell["value"] is None:
        return text.NONE

    def shown(value: float) -> str:
        return f"{100 * value:.1f}" if percent else f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"

    low, high, hits, trials = (cell.get(name) for name in ("low", "high", "hits", "trials"))
    inside = [] if low is None or high is None else [f"{shown(low)} to {shown(high)}"]
    if trials is not None:
        inside.append(f"n = {trials}" if hits is None else f"{hits} of {trials}")
    return shown(cell["value"]) + (f" ({'; '.join(inside)})" if inside else "")


def _note(found: Mapping[str, Any]) -> str:
    percent = any(table["percent"] for _, table in _tables(found))
    return ("In per cent. " if percent else "") + "In brackets the 95 % interval and the counts."


def claims_table(found: Mapping[str, Any]) -> Table | None:
    """The findings with verdicts and what they rest on; None without any."""
    rows = tuple(claim_rows(found))
    note = "pass: the 95 % interval lies above 0; fail: below 0; undecided: it holds 0, or nothing was measured."
    return Table(header=("finding", "network", "verdict", "above 0"), rows=rows, note=note) if rows else None


def claim_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """A row for each finding and study."""
    for study in found["found"]:
        for claim in study["claims"]:
            number = text.NONE if claim["estimate"] is None else cell_text(claim["estimate"], percent=False)
            yield claim["statement"], "+".join(study["networks"]), claim["verdict"], number


def _plot(figure: Mapping[str, Any]) -> Plot:
    lines = [
        Line(label=t["label"], x=tuple(t["x"]), y=tuple(t["y"]), dashed=k >= len(COLOURS))
        for k, t in enumerate(figure["traces"])
    ]
    level = None if figure["level"] is None else (figure["level"][0], figure["level"][1])
    return line_plot(
        lines,
        title=figure["title"],
        x_name=figure["x_name"],
        y_name=figure["y_name"],
        log_x=figure["log_x"],
        level=level,
    )


def _gallery(found: Mapping[str, Any], root: Path) -> Part:
    shots: Sequence[Any] = [parts.shot(caption, read_image(root / file), caption) for caption, file in found["files"]]
    return CardGallery(cards=(Card(title="", shots=tuple(shots)),), wide=True)
