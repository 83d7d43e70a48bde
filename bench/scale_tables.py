"""Tables of ``docs/scale.md`` from a result of ``fastadv bench scale``, and of what Ray costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from bench.markdown import number, table

Row = Mapping[str, Any]
#: Shares of resources, as the tables call them; the last two are asked for by shards of one run only.
RESOURCES = MappingProxyType(
    {
        "network": "network",
        "storage": "storage",
        "files": "operations on files",
        "Python": "Python thread",
        "codec": "decoding, encoding",
        "list": "listing",
        "merge": "merging",
    }
)
_ONE_RUN = ("list", "merge")


def part(results: Mapping[str, Any], name: str) -> list[Row]:
    """The rows of one part of a result."""
    return [row for row in results["rows"] if row["part"] == name]


def first(row: Row, *, one_run: bool) -> str:
    """The resource of which most is asked for, a key of ``RESOURCES``."""
    names = [name for name in RESOURCES if name in row and (one_run or name not in _ONE_RUN)]
    return max(names, key=lambda name: float(row[name]))


def costs(results: Mapping[str, Any]) -> str:
    """What is measured and what is assumed, with symbols and units."""
    lines = [
        [row["what"], row["symbol"], f"{number(row['value'])} {row['unit']}".strip(), row["source"]]
        for row in part(results, "cost")
    ]
    return table(["quantity", "symbol", "value", "source"], lines)


def devices(results: Mapping[str, Any]) -> str:
    """Images per second of a worker, and what all images take."""
    lines = [
        [row["worker"], *(number(row[c]) for c in ("images_per_s", "days", "for_a_week")), row["source"]]
        for row in part(results, "device")
    ]
    return table(["worker", "images/s", "days of one worker", "workers for a week", "source of images/s"], lines)


def totals(results: Mapping[str, Any]) -> str:
    """Storage, memory and time of all images."""
    lines = [[row["what"], f"{number(row['value'])} {row['unit']}"] for row in part(results, "total")]
    return table(["10⁹ images", ""], lines)


def loads(results: Mapping[str, Any]) -> str:
    """The share of each resource that workers ask for, and the one that saturates first."""
    lines = []
    for row in part(results, "load"):
        name = first(row, one_run=False)
        lines.append(
            [
                f"{row['worker']}; {row['workers']}",
                *(f"{number(100 * row[each])} %" if each in row else "" for each in RESOURCES),
                f"{RESOURCES[name]}{'' if row[name] < 1 else ' (saturated)'}",
            ]
        )
    return table(["worker; number", *RESOURCES.values(), "highest but listing and merging"], lines)


def _by_workers(rows: Sequence[Row], *columns: str) -> dict[tuple[str, ...], dict[int, Row]]:
    found: dict[tuple[str, ...], dict[int, Row]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[c]) for c in columns), {})[row["workers"]] = row
    return found


def days(results: Mapping[str, Any]) -> str:
    """Days for all images against the number of workers."""
    lines = []
    for (worker,), rows in _by_workers(part(results, "load"), "worker").items():
        lines.append([f"{worker}: runs of their own", *(number(row["days"]) for row in rows.values())])
        lines.append([f"{worker}: shards of one run", *(number(row["days_in_shards"]) for row in rows.values())])
    counts = dict.fromkeys(row["workers"] for row in part(results, "load"))
    return table(["days with so many workers", *map(str, counts)], lines)


def slots(results: Mapping[str, Any]) -> str:
    """Slots that are kept full against batches that wait for their last image."""
    lines = [
        [str(row["slots"]), f"{row['full']:.3f} ({row['low']:.3f} to {row['high']:.3f})", f"{row['batches']:.2f}"]
        for row in part(results, "slots")
    ]
    return table(["images at hand", "slots kept full", "whole batches"], lines)


def _simulated(results: Mapping[str, Any], cell: Callable[[Row], str]) -> str:
    cases = _by_workers(part(results, "simulation"), "scenario", "way")
    counts = dict.fromkeys(row["workers"] for row in part(results, "simulation"))
    lines = [[f"{scenario}: {way}", *map(cell, rows.values())] for (scenario, way), rows in cases.items()]
    return table(["workers", *map(str, counts)], lines)


def simulation(results: Mapping[str, Any]) -> str:
    """Time to finish over the ideal one, with its interval."""
    return _simulated(
        results, lambda r: f"{r['over_ideal']:.3f} ({r['over_ideal_low']:.3f} to {r['over_ideal_high']:.3f})"
    )


def lost(results: Mapping[str, Any]) -> str:
    """Work that was lost, and workers' time without work at the end."""
    return _simulated(results, lambda r: f"{_percent(r['lost_share'])}, {_percent(r['idle'])}")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share >= 1e-5 or not share else "< 0.001 %"


def distributed(results: Mapping[str, Any]) -> str:
    """A row a case: images a second of both runs, and their ratio."""
    head = ["compared", "images", "direct, images/s", "with Ray, images/s", "ratio (95 % interval)"]
    return table(
        head,
        (
            (
                row["case"],
                f"{row['images']:,}",
                number(row["direct images/s"]),
                number(row["Ray images/s"]),
                f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
            )
            for row in results["rows"]
        ),
    )


KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = MappingProxyType(
    {
        "scale-costs": costs,
        "scale-days": days,
        "scale-devices": devices,
        "scale-loads": loads,
        "scale-lost": lost,
        "scale-simulation": simulation,
        "scale-slots": slots,
        "scale-totals": totals,
    }
)
