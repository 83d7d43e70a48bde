"""Where and with what figures were taken, and how they are printed."""

from __future__ import annotations

import datetime
import json
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastadv.core.provenance import commit, versions

HERE = Path(__file__).parent


def device_name(device: str) -> str:
    """The processor or the card, as its maker calls it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return f"{found.group(1) if found else platform.processor()}, {torch.get_num_threads()} threads"


def header(device: str) -> dict[str, Any]:
    """Where and with what the figures were taken."""
    return {
        "device": device_name(device),
        "date": datetime.date.today().isoformat(),
        **versions(),
        "commit": commit(HERE.parent),
    }


def write_results(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    device: str = "cpu",
    out: Path = HERE / "results",
    at: str | None = None,
    **more: Any,
) -> None:
    """Write rows to ``<out>/<name>-<device>-<date>.json``; ``at`` is the commit of the source, where it is another."""
    about = header(device)
    about["commit"] = at or about["commit"]
    path = out / f"{name}-{device.split(':')[0]}-{about['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": name, **about, **more, "rows": rows}, indent=1) + "\n")
    print(f"written to {path}")


def show(rows: Sequence[Mapping[str, Any]], groups: Sequence[str] = ()) -> None:
    """Print rows as tables with aligned columns: one below each value of the columns ``groups``, or one of all."""
    tables: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        kept = {k: v for k, v in row.items() if k not in groups}
        tables.setdefault(tuple(str(row[name]) for name in groups), []).append(kept)
    for heading, table in tables.items():
        if heading:
            print("\n" + ", ".join(heading))
        _show(table)


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(k for row in rows for k in row))
    cells = [names] + [
        [f"{row.get(n, ''):.4g}" if isinstance(row.get(n), float) else str(row.get(n, "")) for n in names]
        for row in rows
    ]
    widths = [max(len(line[k]) for line in cells) for k in range(len(names))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
