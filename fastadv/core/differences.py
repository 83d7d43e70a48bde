"""What makes two descriptions of a run different, in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fastadv.core.brief import brief
from fastadv.core.restored import same_json

_HASH = re.compile(r"[0-9a-f]{64}")
_LONGEST = 100


def difference(
    saved: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    where: str,
    shown: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
    remedy: str = "use --fresh or another --out",
) -> str | None:
    """The first part that differs: ``"landmarks: expected none (as in run.json), got l.txt; use --fresh ..."``.

    Parts are compared in the order of `wanted`; a part that is missing is none.

    Args:
        saved: What the folder was begun with: plain JSON values, nested.
        wanted: What is asked for now.
        where: The file that `saved` stands in.
        shown: For `saved` and for `wanted`, how people call the value of a part (by its dotted name).
        remedy: What the user can do.

    Returns:
        One sentence, or None where nothing differs.
    """
    name = _first(saved, wanted, "")
    if name is None:
        return None
    before, now = (_show(name, values, words) for values, words in zip((saved, wanted), shown, strict=True))
    return f"{name}: expected {before} (as in {where}), got {now}; {remedy}"


def _first(saved: Any, wanted: Any, name: str) -> str | None:
    if isinstance(saved, Mapping) and isinstance(wanted, Mapping):
        for key in (*wanted, *(key for key in saved if key not in wanted)):
            inner = f"{name}.{key}" if name else key
            found = _first(saved.get(key), wanted.get(key), inner)
            if found is not None:
                return found
        return None
    # 1 == True == 1.0 in Python, not in a configuration
    return None if same_json(saved, wanted) else name


def _show(name: str, values: Mapping[str, Any], words: Mapping[str, str]) -> str:
    if name in words:
        return words[name]
    value: Any = values
    for part in _split(name, values):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None:
        return "none"
    if isinstance(value, str) and _HASH.fullmatch(value):
        return f"sha256 {value[:8]}"
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:  # of a file that was made to be so
        text = brief(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _split(name: str, values: Any) -> list[str]:
    """The keys of a dotted name; a key may hold dots itself."""
    parts: list[str] = []
    rest = name
    while rest and isinstance(values, Mapping):
        known = [key for key in values if rest == key or rest.startswith(f"{key}.")]
        key = max(known, key=len) if known else rest
        parts.append(key)
        rest = rest[len(key) + 1 :]
        values = values.get(key)
    return [*parts, rest] if rest else parts
