"""Tables of false alarms, of attackers who know the detector, of the cost of a guard, and of the service under load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from types import MappingProxyType
from typing import Any

from bench.markdown import number, table

_KINDS = {"mlp": "MLP", "lstm": "LSTM"}
_CASE = ("network, detector, reading", "batch")
_SOURCES = {"natural": "unchanged images of the test", "outside": "people outside the classes"}
MEANS = {
    "MLP, L2": "mlp-centroid-l2-relative",
    "MLP, cosine": "mlp-centroid-cosine-relative",
    "logistic regression, both": "linear-centroid-l2+cosine-relative",
    "LSTM, both": "lstm-centroid-l2+cosine-relative",
    "MLP, both": "mlp-centroid-l2+cosine-relative",
    "**MLP and logistic regression, both**": "mlp+linear-centroid-l2+cosine-relative",
}
_GROUPS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "seen targeted": lambda row: row["seen"] and row["kind"] == "targeted",
    "seen untargeted": lambda row: row["seen"] and row["kind"] == "untargeted",
    "unseen": lambda row: not row["seen"],
}
_PHASES = {"overload": " (overload)", "after": " (after it)"}
Row = Mapping[str, Any]


def guard(results: Mapping[str, Any]) -> str:
    """A row a network, detector and batch: the forward pass, and what the guard and plain hooks add to it."""
    head = [*_CASE, "forward pass, ms p50 / p99", "guard adds, p50 (95 % interval)"]
    head += ["p99 (95 % interval)", "plain hooks add, p50 / p99", "calls"]
    return table(
        head,
        (
            (
                *case,
                f"{number(runs['bare']['ms_p50'])} / {number(runs['bare']['ms_p99'])}",
                *(_added(runs["guard"], quantile) for quantile in ("p50", "p99")),
                f"{runs['by hand']['adds_p50_percent']:.1f} % / {runs['by hand']['adds_p99_percent']:.1f} %",
                f"{runs['bare']['calls']:,}",
            )
            for case, runs in _cases(results).items()
        ),
    )


def guard_parts(results: Mapping[str, Any]) -> str:
    """The same rows: milliseconds of what a guard does besides the network, medians within the calls that are timed."""
    head = [*_CASE, "checks, ms", "network, its layers tapped, less the bare one", "its output", "score", "verdicts"]
    return table(
        head,
        (
            (
                *case,
                number(runs["guard"]["ms_checks"]),
                number(runs["guard"]["ms_network"] - runs["bare"]["ms_p50"]),
                *(number(runs["guard"][f"ms_{part}"]) for part in ("between", "score", "verdicts")),
            )
            for case, runs in _cases(results).items()
        ),
    )


def _cases(results: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Row]]:
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in results["rows"]:
        metric = row.get("metric", "l2")
        both = "" if metric == "l2" else f", `{metric}`"
        case = (f"{row['model']}, {_KINDS[row['detector']]}, `{row['reading']}`{both}", str(row["batch"]))
        found.setdefault(case, {})[row["run"]] = row
    return found


def adaptive(results: Mapping[str, Any]) -> str:
    """A row a number of steps, a radius or a source of images; a column a network and reading: successes of images."""
    columns: list[str] = []
    found: dict[tuple[str, str], dict[str, dict[bool, str]]] = {}
    for study in results["rows"]:
        model = study["study"]["config"]["model"]
        for point in study["adaptive_points"]:
            reading = "relative" if point["detector"].endswith("-relative") else "raw"
            column = f"{model}, `{reading}`"
            columns += [column] * (column not in columns)
            radius, steps = f"{255 * point['eps']:g}/255", str(point["steps"])
            other = point["made_for"].removesuffix("-relative").count("-") > 0
            varied = point["varied"] == "transfer"
            source = f", made for {'another detector of the study' if other else point['made_for']}" if varied else ""
            cells = found.setdefault((radius + source, steps), {}).setdefault(column, {})
            cells[point["targeted"]] = f"{point['hidden']} of {point['images']}"
    return table(
        ["ε", "steps", *columns],
        (
            (
                *row,
                *(
                    " / ".join(cells[column][kind] for kind in (True, False)) if column in cells else ""
                    for column in columns
                ),
            )
            for row, cells in found.items()
        ),
    )


def sources(results: Mapping[str, Any]) -> str:
    """A row a source of unchanged natural images, a column a study: false alarms, with Wilson's interval."""
    found: dict[str, list[str]] = {}
    heads = ["natural images"]
    for study in results["rows"]:
        fitted = study["study"]["config"]["also_natural"]
        heads.append(study["study"]["config"]["model"] + (f", fitted with `{'`, `'.join(fitted)}`" if fitted else ""))
        for row in study["false_alarms"]:
            if row["sort"] in ("natural", "outside", "other"):
                name = f"`{row['label']}`" if row["sort"] == "other" else _SOURCES[row["sort"]]
                alarms = row["found"]
                span = f"[{100 * alarms['low']:.1f}, {100 * alarms['high']:.1f}]"
                cell = f"{alarms['flagged']} of {alarms['images']}: {100 * alarms['share']:.1f} % {span}"
                found.setdefault(name, [""] * len(results["rows"]))[len(heads) - 2] = cell
    return table(heads, ((name, *cells) for name, cells in found.items()))


def means(results: Mapping[str, Any]) -> str:
    """A row a detector with centroids, a column a study: its mean and lowest AUC, and detection rates at 1 %."""
    heads = ["detector"]
    found: dict[str, list[str]] = {}
    for place, study in enumerate(results["rows"]):
        config = study["study"]["config"]
        heads.append(f"{config['model']}, seed {config['seed']}")
        for name, label in MEANS.items():
            rows = [row for row in study["measured"] if row["detector"] == label]
            areas = [row["auc"] for row in rows]
            rates = " / ".join(
                f"{100 * fmean(row['found'][1] for row in rows if keep(row)):.0f}" for keep in _GROUPS.values()
            )
            cell = f"{fmean(areas):.3f}, {min(areas):.3f}; {rates} %".replace("0.", ".")
            found.setdefault(name, [""] * len(results["rows"]))[place] = cell
    return table(heads, ((name, *cells) for name, cells in found.items()))


def calibrated(results: Mapping[str, Any]) -> str:
    """A row a study and detector: false alarms on people who are new to it, and the attacks that are flagged."""
    head = ["network, detector", "fit: other people", "fit: attacks", "calibrated: other people"]
    head += ["calibrated: photographs", "calibrated: attacks"]
    shared = results["rows"][0]["detectors"][0]["at_false_alarms_on_other_people"]
    head += [f"attacks, at {100 * limit['rate']:g} %" for limit in shared]
    rows = []
    names = {label: name for name, label in MEANS.items()}
    for study in results["rows"]:
        for one in study["detectors"]:
            fit, made = (
                next(t for t in one["thresholds"] if (t["threshold_from"], t["nominal"]) == (source, 0.01))
                for source in ("fit", "calibrated")
            )
            people, photographs = (made["false_alarms"][name] for name in ("other people of LFW", "photographs"))
            chosen = ", chosen" if one["label"] == study["best"] else ""
            rows.append(
                (
                    f"{study['model']}, {names.get(one['label'], one['label']).strip('*')}{chosen}",
                    f"{100 * fit['false_alarms']['other people of LFW']['share']:.1f} %",
                    _shares(fit["attacks_flagged"]),
                    _alarms(people),
                    _alarms(photographs),
                    _shares(made["attacks_flagged"]),
                    *(_shares(limit["found"]) for limit in one["at_false_alarms_on_other_people"]),
                )
            )
    return table(head, rows)


def _shares(found: Row) -> str:
    return " / ".join(f"{100 * found[name]:.0f}" for name in _GROUPS) + " %"


def _alarms(found: Row) -> str:
    span = f"[{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    return f"{found['flagged']} of {found['of']:,}: {100 * found['share']:.1f} % {span}"


def _added(row: Row, quantile: str) -> str:
    low, high = row[f"adds_{quantile}_interval"]
    return f"{row[f'adds_{quantile}_percent']:.1f} % ({low:.1f} to {high:.1f})"


def serve(results: Mapping[str, Any]) -> str:
    """A row a number of clients: requests, latencies of answers and of refusals, and errors."""
    head = ["clients", "answered", "answers per second", "latency p50 / p95 / p99, ms", "images per forward pass"]
    head += ["refused (503)", "latency of refusals p50 / p99, ms", "errors"]
    return table(
        head,
        (
            (
                f"{row['clients']}{_PHASES.get(row['phase'], '')}",
                f"{row['answered']:,}",
                number(row["per_second"]),
                " / ".join(number(row[f"ms_p{q}"]) for q in (50, 95, 99)),
                number(row["images_per_pass"]),
                f"{row['refused']:,}",
                " / ".join(number(row[f"refused_ms_p{q}"]) for q in (50, 99)) if row["refused"] else "",
                str(row["errors"]),
            )
            for row in results["rows"]
        ),
    )


KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = MappingProxyType(
    {
        "adaptive": adaptive,
        "calibrated": calibrated,
        "guard": guard,
        "guard-parts": guard_parts,
        "means": means,
        "serve": serve,
        "sources": sources,
    }
)
