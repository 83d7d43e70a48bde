"""``fastadv doctor``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastadv.cli.fields import takes_groups
from fastadv.cli.options import AsJson

if TYPE_CHECKING:
    from fastadv.backends import Row

# lines of the facts, and before each fact what names it there; a fact that is in none has a line of its own
_LINES: Mapping[str, Mapping[str, str]] = {
    "versions": {name: f"{name} " for name in ("fastadv", "commit", "python", "torch", "numpy", "pillow")},
    "libraries": {name: f"{name} " for name in ("pyarrow", "rich", "safetensors", "scikit-learn", "typer")},
    "system": {"system": "", "processors": "processors: "},
    "native module": {
        "native module": "",
        "cpu instruction sets": "built for ",
        "cpu instruction set in use": "in use: ",
        "cuda kernels": "CUDA kernels ",
    },
    "cuda": {"cuda device": "", "cuda driver": "driver: "},
}
_ELSEWHERE = ("cpu", "threads")  # in the lines above by other words


@takes_groups
def doctor(as_json: AsJson = False) -> None:
    """Report versions, CPU and CUDA, the backends of each operation, and the optional extras, on one screen."""
    from fastadv.cli import doctor_report as checking
    from fastadv.cli.show import print_columns, print_line, print_next

    report = checking.examine()
    if as_json:
        print(json.dumps(asdict(report)))
        return
    print_columns("fastadv doctor", _lines(dict(report.facts)), ("", ""))
    names = tuple(dict.fromkeys(row.backend for row in report.backends))
    print_columns("Backends", _matrix(report.backends, names), ("operation", *names))
    for line in _reasons(report.backends):
        print_line(line)
    print()
    rows = [
        (
            extra.name,
            f"missing {', '.join(extra.missing)}" if extra.missing else "installed",
            extra.use,
            extra.install if extra.missing else "",
        )
        for extra in report.extras
    ]
    print_columns("Optional extras", rows, ("extra", "state", "for", "how to get it"), whole=1)
    print_line("every extra that a machine without a GPU can hold: pip install 'fastadv[all]'")
    print_line("to develop, in a source checkout: pip install -e '.[test,lint,docs]'")
    print_next("demo")


def _lines(facts: Mapping[str, str]) -> list[tuple[str, str]]:
    """A line a thing."""
    rows = [
        (title, ", ".join(f"{before}{facts[name]}" for name, before in parts.items() if name in facts))
        for title, parts in _LINES.items()
    ]
    together = {*_ELSEWHERE, *(name for parts in _LINES.values() for name in parts)}
    return rows + [(name, value) for name, value in facts.items() if name not in together]


def _matrix(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[str, ...]]:
    """A row an operation, a column a backend."""
    runs = {(row.op, row.backend): "yes" if row.available else "-" for row in rows}
    return [(op, *(runs.get((op, name), "") for name in names)) for op in dict.fromkeys(row.op for row in rows)]


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Why backends do not run: a line a reason, with the operations where not all have it."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if not row.available:
            found.setdefault((row.backend, row.reason), []).append(row.op)
    count = len({row.op for row in rows})
    lines = []
    for (name, reason), ops in found.items():
        of = "" if len(ops) == count else f" {', '.join(ops)}"
        lines.append(f"{name} does not run{of}: {reason}")
    return lines
