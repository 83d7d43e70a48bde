"""Tables of the documentation, made from committed results.

``python -m bench.tables`` rewrites them, ``--check`` compares. A page holds ``<!-- table: KIND from FILE -->``, the
table, and ``<!-- end of table -->``; FILE is relative to the repository.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench import detection_tables, ops_tables, reproduction_tables, scale_tables
from bench.markdown import number, table

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in ("performance", "peers", "bring_your_own", "reproduction", "robustness", "scale")),
    *(f"docs/{name}.md" for name in ("detection", "distributed", "serving", "training", "operations")),
)
_MARKED = re.compile(r"(<!-- table: (\S+) from (\S+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)

Row = Mapping[str, Any]
FUZZERS = ("mutations", "coverage")
NAMES = MappingProxyType(
    {
        "fgsm": "FGSM",
        "pgd": "PGD",
        "mi-fgsm": "MI-FGSM",
        "mi-fgsm, 40 steps": "MI-FGSM, 40 steps",
        "apgd": "APGD",
        "fim": "FIM",
        "dfanet-fim": "DFANet-FIM",
        "cw-l2": "C&W-L2",
        "deepfool": "DeepFool",
        "l-bfgs": "L-BFGS",
        "df": "DF",
    }
)


def _groups(rows: Sequence[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[c]) for c in columns), []).append(row)
    return found


def _ours(row: Row) -> bool:
    return str(row["run"]).startswith("fastadv")


def _success(row: Row) -> str:
    """Of the images of 8 bits; with the number that it rests on."""
    return "" if row["success"] is None else f"{100 * row['success']:.0f} % of {row['images']}"


def _cell(row: Row | None, fastest: Row) -> str:
    """Images per second, the ratio to another run, and a mark where the row is lost."""
    if row is None:
        return ""
    ratio = number(row["images_per_s"] / fastest["images_per_s"])
    return f"{number(row['images_per_s'])} ({ratio}×{', lost' if row['lost'] else ''})"


def peers_summary(results: Mapping[str, Any]) -> str:
    """One row an attack: the fastest other implementation, lost or not, and the engine's runs against it."""
    lines = []
    for (network, attack), rows in _groups(results["rows"], "network", "attack").items():
        others = [row for row in rows if not _ours(row)]
        fastest = max(others, key=lambda row: row["images_per_s"])
        runs = {str(row["run"]).removeprefix("fastadv").removeprefix(", "): row for row in rows if _ours(row)}
        shown = ("", "bf16", "bf16, stop at success")
        further = [
            row for name, row in runs.items() if name not in shown and "stop" not in name and not name.startswith(".")
        ]
        best = max((row for row in further if not row["lost"]), key=lambda row: row["images_per_s"], default=None)
        named = "" if best is None else f"{str(best['run']).removeprefix('fastadv, ')}: {_cell(best, fastest)}"
        mark = ", lost" if fastest["lost"] else ""
        lines.append(
            [
                f"{NAMES[attack]}, {network}",
                f"{fastest['run']}, {number(fastest['images_per_s'])}{mark}",
                *(_cell(runs.get(name), fastest) for name in shown),
                named,
            ]
        )
    head = ["attack, network", "fastest other, images/s", "fp32", "bf16", "bf16, stop at success", "other settings"]
    return table(head, lines)


def peers_readme(results: Mapping[str, Any]) -> str:
    """The first columns of the summary, of the network that most attacks were run on."""
    lines = peers_summary(results).splitlines()
    first = results["rows"][0]["network"]
    kept = [line for k, line in enumerate(lines) if k < 2 or f", {first} |" in line]
    return "".join("|".join(line.split("|")[:6]).replace(f", {first}", "") + "|\n" for line in kept).replace(
        "attack, network", "attack"
    )


def peers(results: Mapping[str, Any]) -> str:
    """Every row, a table for each attack and network."""
    parts = []
    head = [
        *("implementation", "images/s (95 % interval)", "× fastest peer", "forward", "backward", "operations a tick"),
        *("syncs a tick", "peak MiB", "success", "median norm", "lost"),
    ]
    for (network, attack), rows in _groups(results["rows"], "network", "attack").items():
        norm = rows[0]["norm"].replace("Linf, grey levels", "L∞ in grey levels")
        lines = [
            [
                f"{row['run']} {row['version']}" if row["version"] else row["run"],
                f"{number(row['images_per_s'])} ({number(row['low'])} to {number(row['high'])})",
                number(row["times_fastest_peer"]),
                *(number(row[c]) for c in ("forwards_per_image", "backwards_per_image", "operations_per_tick")),
                *(number(row[c]) for c in ("syncs_per_tick", "peak_mib")),
                _success(row),
                number(row["median_norm"]),
                {True: "lost", False: "no", None: ""}[row["lost"]],
            ]
            for row in rows
        ]
        parts.append(f"## {NAMES[attack]}, {network}\n\nThe norm is {norm}.\n\n{table(head, lines)}")
    return "\n".join(parts)


def growth(results: Mapping[str, Any]) -> str:
    """The cost of an image along every axis."""
    # older files have what a row left behind, less what it returned to the system of what earlier rows had left
    left = "resident_mib_more" in results["rows"][0]
    lines = [
        [f"{row['axis']}: {row['value']:,}"]
        + [number(row[c]) for c in ("ms_per_image", "images_per_s", "page_faults_per_image")]
        + [_more(row["resident_mib_more" if left else "peak_mib"])]
        for row in results["rows"]
    ]
    memory = "MiB more afterwards" if left else "peak, MiB more"
    return table(["what grows", "ms an image", "images/s", "page faults an image", memory], lines)


def _more(value: float | None) -> str:
    return "" if value is None else f"{value:+.0f}"


def denoiser(results: Mapping[str, Any]) -> str:
    """PSNR before and after, a column a source of faces."""
    found = _groups(results["rows"], "sigma")
    sources = [f"{row['images']} faces, {row['faces']}" for row in next(iter(found.values()))]
    return table(
        ["σ", "noisy", *sources],
        (
            (sigma, f"{rows[0]['noisy_db']:.1f}", *(f"{row['denoised_db']:.1f}" for row in rows))
            for (sigma,), rows in found.items()
        ),
    )


def streaming(results: Mapping[str, Any]) -> str:
    """Where the time of a long run went, and its memory."""
    lines = [[row["what"], f"{number(row['value'])} {row['unit']}"] for row in results["rows"]]
    return table(["", f"{results['rows'][0]['images']:,} images"], lines)


def sanitize(results: Mapping[str, Any]) -> str:
    """What was run under which sanitizer, without a report."""
    lines = []
    for row in results["rows"]:
        if "tests" in row:
            what = f"{row['tests']} passed, {row['skipped']} skipped"
        elif "calls" in row:
            parts = [f"{row[name]} {name.replace('_', ' ')}" for name in ("operations", "cases", "instruction_sets")]
            parts += [f"{row['callers']} callers of {row['threads']} threads", f"{row['calls']:,} calls"]
            what = ", ".join([*parts, f"threads: {row['runtime']}"])
        else:  # a build
            continue
        lines.append([row["what"], what, number(row["seconds"])])
    return table(["step: sanitizers", "what", "seconds"], lines)


def flat(results: Mapping[str, Any]) -> str:
    """What a process held more after much work."""
    counts = ("hooks", "threads", "files", "tensors", "modules", "sources")
    lines = []
    for row in results["rows"]:
        more = [f"{row[f'{name}_more']:+d}" for name in counts]
        lines.append([row["work"], f"{row['times']:,}", f"{row['ticks']:,}", *more, f"{row['resident_mib_more']:+.1f}"])
    return table(["work", "times", "ticks", *counts, "resident MiB"], lines)


def breakdown(results: Mapping[str, Any]) -> str:
    """A row a run: where an image's time goes, a step, the gradient evaluation in it, and that of a plain loop."""
    head = ["attack, network", "run", "ms an image", "gradient evaluations", "steps", "float32 evaluation"]
    head += ["preparing networks", "a step, ms", "gradient evaluation, ms", "of it convolutions"]
    head += ["of a plain loop, ms", "ratio"]
    return table(
        head,
        (
            (
                f"{NAMES[row['attack']]}, {row['network']}",
                row["run"],
                number(row["ms_an_image"]),
                number(row["evaluations"]),
                *(f"{100 * row[f'share_{part}']:.0f} %" for part in ("steps", "evaluation", "preparation")),
                number(row["step_ms"]),
                number(row["gradient_ms"]),
                f"{100 * (row['share_convolutions, forward'] + row['share_convolutions, backward']):.0f} %",
                number(row["gradient_by_hand_ms"]),
                f"{row['ratio_of_gradients']:.2f}×",
            )
            for row in results["rows"]
        ),
    )


def engine_overhead(results: Mapping[str, Any]) -> str:
    """A row a network and precision: a step, the gradient evaluation in it, and both with separate activations."""
    head = [
        "network, precision",
        "gradient evaluation, ms",
        "step, ms",
        "the engine's own work (quartiles), ms",
        "share",
    ]
    head += ["separate: gradient evaluation, ms", "step, ms"]
    return table(
        head,
        (
            (
                f"{row['model']}, {row['precision']}",
                number(row["bare_ms"]),
                number(row["tick_ms"]),
                f"{number(row['own_ms'])} ({number(row['own_ms_q25'])} to {number(row['own_ms_q75'])})",
                f"{100 * row['own_share']:.1f} %",
                number(row["apart_bare_ms"]),
                number(row["apart_tick_ms"]),
            )
            for row in results["rows"]
        ),
    )


def fold(results: Mapping[str, Any]) -> str:
    """A row a network and precision: a gradient evaluation by what is folded, and ratios."""

    def ratio(row: Row, kind: str) -> str:
        found = (row[f"{kind}_ratio{end}"] for end in ("", "_low", "_high"))
        return "{:.2f} ({:.2f} to {:.2f})".format(*found)

    head = ["network, precision, batch", "batch norms", "folded behind a layer", "and before one"]
    head += ["none folded, ms", "behind a layer, ms", "all, ms", "none / all", "behind / all"]
    return table(
        head,
        (
            (
                f"{row['network']}, {row['precision']}, {row['batch']}",
                str(row["batch_norms"]),
                str(row["batch_norms"] - row["left_behind"]),
                str(row["left_behind"] - row["left_all"]),
                *(number(row[f"{kind}_ms"]) for kind in ("none", "behind", "all")),
                *(ratio(row, kind) for kind in ("none", "behind")),
            )
            for row in results["rows"]
        ),
    )


def fuzz(results: Mapping[str, Any]) -> str:
    """One row a reader: inputs by both engines, and what came of them."""
    rows = []
    for (target,), found in _groups(results["rows"], "target").items():
        inputs = {engine: sum(row["inputs"] for row in found if row["engine"] == engine) for engine in FUZZERS}
        counts = (sum(row[key] for row in found) for key in ("accepted", "refused", "finds"))
        edges = next((f"{row['edges']:,}" for row in found if row["edges"]), "")
        rows.append([target, *(f"{count:,}" for count in (*inputs.values(), *counts)), edges])
    total = [f"{sum(int(row[k].replace(',', '')) for row in rows):,}" for k in range(1, 6)]
    head = ["reader", *(f"inputs, {engine}" for engine in FUZZERS), "accepted", "refused", "finds", "edges"]
    return table(head, [*rows, ["all", *total, ""]])


def align(results: Mapping[str, Any]) -> str:
    """Speed and agreement of the face detectors."""
    lines = [
        [
            *(f"{row['pictures']}: {row['detector']}", number(row["pictures_per_second"]), number(row.get("speed_up"))),
            *(str(row["faces"]), row.get("sure_faces") or "", number(row.get("landmarks_apart_median"))),
        ]
        for row in results["rows"]
    ]
    head = ["pictures, detector", "pictures/s", "ratio", "faces", "sure faces found", "landmarks apart, px (median)"]
    return table(head, lines)


def align_accuracy(results: Mapping[str, Any]) -> str:
    """One row a data set and network: accuracy, and wrong pairs, by the origin of the landmarks."""
    origins = list(dict.fromkeys(row["landmarks"] for row in results["rows"]))
    found = {(row["data"], row["network"], row["landmarks"]): row for row in results["rows"]}
    rows = []
    for data, network in dict.fromkeys((row["data"], row["network"]) for row in results["rows"]):
        own = [found.get((data, network, origin)) for origin in origins]
        cells = [
            f"{100 * row['accuracy']:.2f} % ({row['wrong']} of {row['pairs']:,} wrong)" if row else "" for row in own
        ]
        rows.append([f"{data}, {network}", *cells])
    return table(["data, network", *origins], rows)


def torture(results: Mapping[str, Any]) -> str:
    """One row a call: what disturbed it, and how often something was not as it should be."""
    head = ["call", "kills at random moments", "changes of the disk", "places in the code", "faults", "differences"]
    keys = ("kills", "changes", "places", "faults", "problems_found")
    rows = []
    for row in results["commands"]:
        call = " ".join(itertools.takewhile(lambda word: word[0] not in "-{", row["words"].split()))
        rows.append([f"`{call}` ({row['command']})", *(f"{row[key]:,}" for key in keys)])
    return table(head, [*rows, ["all", *(f"{sum(row[key] for row in results['commands']):,}" for key in keys)]])


KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = MappingProxyType(
    {
        "align": align,
        "align-accuracy": align_accuracy,
        "breakdown": breakdown,
        "distributed": scale_tables.distributed,
        "flat": flat,
        "fold": fold,
        "fuzz": fuzz,
        "growth": growth,
        "peers": peers,
        "peers-readme": peers_readme,
        "peers-summary": peers_summary,
        "denoiser": denoiser,
        "sanitize": sanitize,
        "streaming": streaming,
        "torture": torture,
        "engine-overhead": engine_overhead,
        **detection_tables.KINDS,
        **ops_tables.KINDS,
        **reproduction_tables.KINDS,
        **scale_tables.KINDS,
    }
)


def rewritten(text: str) -> str:
    """The text of a page with its marked tables made anew.

    Raises:
        KeyError: A kind of table that there is not.
        OSError: A file that there is not.
    """

    def made(found: re.Match[str]) -> str:
        begin, kind, file, _, end = found.groups()
        return f"{begin}\n{KINDS[kind](json.loads((ROOT / file).read_text()))}\n{end}"

    return _MARKED.sub(made, text)


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the pages, or say which are out of date."""
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a table differs")
    check = parser.parse_args(arguments).check
    old = [page for page in PAGES if (ROOT / page).exists() and _outdated(ROOT / page)]
    for page in old:
        print(f"{page}: a table differs from its results" if check else f"{page}: rewritten")
        if not check:
            (ROOT / page).write_text(rewritten((ROOT / page).read_text()))
    return 1 if check and old else 0


def _outdated(page: Path) -> bool:
    text = page.read_text()
    return rewritten(text) != text


if __name__ == "__main__":
    sys.exit(main())
