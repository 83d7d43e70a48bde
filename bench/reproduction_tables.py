"""Tables of the papers' recipes: what they find, and every number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from bench.markdown import table

Row = Mapping[str, Any]


def _estimate(cell: Mapping[str, Any] | None, percent: bool = False) -> str:
    """A number with its interval, as per cent where it is a share of a table in per cent."""
    if cell is None or cell["value"] is None:
        return ""
    value, low, high = (cell.get(name) for name in ("value", "low", "high"))
    shown = [f"{100 * x:.1f}" if percent else f"{x:.3f}" for x in (value, low, high) if x is not None]
    return shown[0] if len(shown) < 3 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _by_paper(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["source"].partition(",")[0], []).append(row)
    return found


def _who(row: Row) -> list[str]:
    """The columns of a recipe's studies: a network each, or all of them."""
    return [study["networks"][0] if len(study["networks"]) == 1 else "together" for study in row["found"]]


def findings(results: Mapping[str, Any]) -> str:
    """Each finding of each paper, with the verdict and the number on each network."""
    parts = []
    for paper, rows in _by_paper(results["rows"]).items():
        columns = list(dict.fromkeys(who for row in rows if row["found"][0]["claims"] for who in _who(row)))
        lines = []
        for row in rows:
            for place, claim in enumerate(row["found"][0]["claims"]):
                found = {who: study["claims"][place] for who, study in zip(_who(row), row["found"], strict=True)}
                cells = [
                    f"**{found[who]['verdict']}** {_estimate(found[who]['estimate'])}".strip() if who in found else ""
                    for who in columns
                ]
                where = next((p for p in row["source"].split(", ") if p.startswith(("table", "figure"))), "")
                lines.append([claim["statement"], where, *cells])
        if lines:
            parts.append(f"### {paper}\n\n{table(['finding', 'source', *columns], lines)}")
    return "\n".join(parts)


def counts(results: Mapping[str, Any]) -> str:
    """How many findings of each paper hold, do not, or are not decided, over all networks."""
    lines = []
    for paper, rows in _by_paper(results["rows"]).items():
        verdicts = [claim["verdict"] for row in rows for study in row["found"] for claim in study["claims"]]
        found = [str(verdicts.count(verdict)) for verdict in ("pass", "fail", "undecided")]
        lines.append([paper, str(len(rows)), *found])
    return table(["paper", "tables and figures", "pass", "fail", "undecided"], lines)


def numbers(results: Mapping[str, Any]) -> str:
    """Every number of every recipe: the paper's, and ours on each network."""
    parts = []
    for row in results["rows"]:
        tables = [("paper", row["printed"])] if row["printed"] else []
        tables += [(who, study["table"]) for who, study in zip(_who(row), row["found"], strict=True)]
        columns = list(dict.fromkeys(column for _, one in tables for column in one["columns"]))
        names = dict.fromkeys(line["name"] for _, one in tables for line in one["rows"])
        lines = []
        for name in names:
            for who, one in tables:
                for line in one["rows"]:
                    if line["name"] == name:
                        cells = dict(zip(one["columns"], line["cells"], strict=True))
                        lines.append([name, who, *(_estimate(cells.get(c), one["percent"]) for c in columns)])
        unit = ", per cent" if any(one["percent"] for _, one in tables) else ""
        name = row["title"] if row["title"][1:2].isupper() else f"{row['title'][:1].lower()}{row['title'][1:]}"
        title = f"### {row['source']}: {name}{unit}"
        parts.append(f"{title}\n\n{table(['', '', *columns], lines)}")
    return "\n".join(parts)


KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = MappingProxyType(
    {"reproduction": findings, "reproduction-counts": counts, "reproduction-tables": numbers}
)
