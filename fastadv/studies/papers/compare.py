"""Two runs of recipes side by side: cell by cell, with the interval of the difference."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastadv.core.errors import UNREADABLE, ArgumentError
from fastadv.core.estimates import FAIL, PASS, Estimate
from fastadv.studies.papers.run import RESULTS


def compare_runs(first: Path, second: Path) -> list[dict[str, Any]]:
    """Compare the recipes that two folders have in common.

    Args:
        first: Of ``fastadv study run``, or of one of its recipes.
        second: Likewise.

    Returns:
        For each recipe: ``recipe``, ``title``, ``cells`` (``networks``, ``row``, ``column``, ``first``, ``second``,
        ``difference``: second minus first, as of independent runs, and ``differs``: whether its interval leaves out 0)
        and ``claims`` (``networks``, ``statement``, ``first``, ``second``: the verdicts). Studies of one network are
        compared by its name where both have it, else in their order.

    Raises:
        ValueError: A folder holds no results, damaged ones or a recipe twice, or they have no recipe in common.
    """
    ours, theirs = _results(first), _results(second)
    common = [name for name in ours if name in theirs]
    if not common:
        raise ArgumentError(
            f"compare: expected two folders with a recipe in common, got {', '.join(ours)} and {', '.join(theirs)}"
        )
    return [_compared(ours[name], theirs[name]) for name in common]


def _results(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The results of a folder by recipe."""
    files = [folder / RESULTS] if (folder / RESULTS).is_file() else sorted(folder.glob(f"*/{RESULTS}"))
    if not files:
        raise ArgumentError(f"{folder}: expected a folder of 'fastadv study run', got one without {RESULTS}")
    found: dict[str, Mapping[str, Any]] = {}
    for file in files:
        try:
            results = json.loads(file.read_bytes())
            name = str(results["recipe"])
            _compared(results, results)  # uses all that a comparison does
        except UNREADABLE as error:
            raise ArgumentError(f"{file}: expected the results of a recipe, got {error!r}") from error
        if name in found:
            raise ArgumentError(f"{folder}: expected each recipe once, got {name} twice, the second time in {file}")
        found[name] = results
    return found


def _compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    cells, claims = [], []
    for one, other in _pairs(first["found"], second["found"]):
        who = " and ".join(dict.fromkeys(("+".join(one["networks"]), "+".join(other["networks"]))))
        theirs = _cells(other["table"])
        for (row, column), cell in _cells(one["table"]).items():
            if (row, column) in theirs:
                difference = _estimate(theirs[row, column]) - _estimate(cell)
                cells.append(
                    {
                        "networks": who,
                        "row": row,
                        "column": column,
                        "first": cell,
                        "second": theirs[row, column],
                        "difference": difference.described(),
                        "differs": difference.verdict in (PASS, FAIL),
                    }
                )
        verdicts = {claim["statement"]: claim["verdict"] for claim in other["claims"]}
        claims += [
            {"networks": who, "statement": c["statement"], "first": c["verdict"], "second": verdicts[c["statement"]]}
            for c in one["claims"]
            if c["statement"] in verdicts
        ]
    return {
        "recipe": first["recipe"],
        "title": first["title"],
        "percent": bool(first["found"][0]["table"]["percent"]),
        "cells": cells,
        "claims": claims,
    }


def _pairs(first: list[Any], second: list[Any]) -> list[tuple[Any, Any]]:
    """The studies that are compared with each other."""
    theirs = {tuple(study["networks"]): study for study in second}
    same = [(study, theirs[key]) for study in first if (key := tuple(study["networks"])) in theirs]
    return same or list(zip(first, second, strict=False))


def _cells(table: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    return {
        (row["name"], column): cell
        for row in table["rows"]
        for column, cell in zip(table["columns"], row["cells"], strict=True)
        if cell is not None and cell["value"] is not None
    }


def _estimate(cell: Mapping[str, Any]) -> Estimate:
    """A cell as an estimate; a number without an interval has none, so that no difference of it is sure."""
    low, high = cell.get("low"), cell.get("high")
    if low is None or high is None:
        low, high = -math.inf, math.inf
    return Estimate(value=cell["value"], low=low, high=high)
