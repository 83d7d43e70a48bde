"""The figures of an identification, for the screen and for a run's page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastadv.core import text
from fastadv.core.errors import UNREADABLE, ArgumentError
from fastadv.report.pages.parts import mapping
from fastadv.report.parts import Table
from fastadv.studies.identify import JSON

Line = tuple[str, float | None, float | None]


def figures(described: Mapping[str, Any]) -> list[Line]:
    """Name, clean and attacked value of each figure, from ``identify.describe`` or its file."""
    clean, attacked = mapping(described, "clean"), mapping(described, "attacked")
    target = mapping(attacked, "target")
    count = described.get("neighbours")
    lines: list[Line] = [
        ("named rightly, nearest template", _number(clean, "rank1"), _number(attacked, "rank1")),
        ("own template among the five nearest", _number(clean, "rank5"), _number(attacked, "rank5")),
        (f"named rightly, {count} nearest images", _number(clean, "neighbours"), _number(attacked, "neighbours")),
    ]
    after = dict(_rates(attacked))
    lines += [(f"TPIR at FPIR {rate:g}", share, after.get(rate)) for rate, share in _rates(clean)]
    if target:
        lines += [
            ("named as the target, nearest template", None, _number(target, "rank1")),
            (f"named as the target, {count} nearest images", None, _number(target, "neighbours")),
        ]
        accepted = target.get("accepted")
        for pair in accepted if isinstance(accepted, Sequence) else ():
            share = None if pair[1] is None else float(pair[1])
            lines.append((f"accepted as the target at FPIR {pair[0]:g}", None, share))
    return [line for line in lines if line[1:] != (None, None)]


def tables(folder: Path) -> list[Table]:
    """The table of a folder that holds an identification's figures; none where it does not.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / JSON
    if not path.is_file():
        return []
    try:
        described = json.loads(path.read_bytes())
        found = figures(described)
        note = ". ".join(map(str, mapping(described, "clean").get("notes", ())))
    except UNREADABLE as error:
        raise ArgumentError(
            f"{path}: expected the figures of a study, got a file that cannot be read: {error}"
        ) from error
    rows = tuple((name, text.percent(before), text.percent(after)) for name, before, after in found)
    return [Table(header=("identification", "clean", "attacked"), rows=rows, note=note)]


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, (int, float)) else None


def _rates(part: Mapping[str, Any]) -> list[tuple[float, float | None]]:
    found = part.get("open_set")
    return [(float(o["fpir"]), _number(o, "tpir")) for o in found] if isinstance(found, Sequence) else []
