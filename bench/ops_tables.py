"""Tables of fused operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from bench.markdown import number, table

_DERIVATIVE = " (derivative)"


def derivatives(results: Mapping[str, Any]) -> str:
    """A row for the derivative of an operation at a size: its time, eager PyTorch's, and the speed-ups."""
    cases: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in results["rows"]:
        if row["op"].endswith(_DERIVATIVE):
            cases.setdefault((row["op"].removesuffix(_DERIVATIVE), row["size"]), {})[row["backend"]] = row
    return table(
        ["derivative of", "size", "ms", "eager, ms", "over eager", "over torch.compile"],
        (
            (
                f"`{op.partition(' ')[0]}`{op.removeprefix(op.partition(' ')[0])}",
                size,
                number(found["cpu"]["ms"]),
                number(found["eager"]["ms"]),
                f"{number(found['cpu']['times_eager'])}×",
                f"{number(found['cpu']['times_compile'])}×" if "times_compile" in found["cpu"] else "–",
            )
            for (op, size), found in cases.items()
        ),
    )


KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = MappingProxyType({"ops-derivatives": derivatives})
