"""The page of a transfer study, from what its folder holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastadv.attacks.spec import parse_attack
from fastadv.core import text
from fastadv.data import FaceSource, ManifestRow, read_image, read_manifest, to_uint8
from fastadv.data.run_files import image_file
from fastadv.report.figures import roc_plot
from fastadv.report.pages import parts
from fastadv.report.pages.frame import notices, page_of, plots, read_description, read_json, section, tiles, write_page
from fastadv.report.parts import Card, CardGallery, Page, Part, Plot, Table
from fastadv.report.roc import Curve
from fastadv.report.study_figures import Line, heat_plot, line_plot

TARGETED, UNTARGETED = "transfer.json", "untargeted.json"
_EXAMPLES = 4
_MOST_CURVES = 6
Cells = Sequence[Mapping[str, Any]]


def render(folder: Path, *, source: FaceSource | None, out: Path | None = None) -> Path:
    """Draw the page of a study's folder.

    Args:
        folder: Of ``fastadv transfer``.
        source: Where the originals are; None shows none.
        out: The page; None: ``report.html`` in the folder.

    Raises:
        ValueError: The folder holds no finished study.
        ImportError: jinja2 or matplotlib is not installed.
        OSError: The page cannot be written.
    """

    def draw() -> Page:
        if (folder / UNTARGETED).is_file():
            return untargeted_page(read_json(folder / UNTARGETED), *read_description(folder))
        found, described = read_json(folder / TARGETED), read_description(folder)
        cards, lines = _cards(folder, source), tuple(found.get("notices", ()))
        return study_page(found["cells"], found["networks"], *described, cards, lines, found.get("sets", ()))

    return write_page(folder, draw, out, expected="a finished study with its run.json")


def study_page(
    cells: Cells,
    networks: Mapping[str, Any],
    config: Mapping[str, Any],
    versions: Mapping[str, Any],
    cards: tuple[Card, ...],
    lines: tuple[str, ...] = (),
    sets: Cells = (),
) -> Page:
    """The page from plain values; ``sets`` are means over several targets."""
    names = list(networks)
    means = [{**each, "target": f"mean of {each['set']}"} for each in sets if len(each["networks"]) > 1]
    methods = list(dict.fromkeys(c["method"] for c in cells))
    black = [c for c in cells if not c["white_box"]]
    best = max(black, key=lambda c: c["hit_rate"], default=None)
    numbers: list[tuple[str, ...]] = [
        (f"{config['pairs']:,}", "negative pairs", f"{text.levels(config['eps'])} a pixel"),
        (str(len(networks)), "networks", f"thresholds at FAR {text.percent(config['far'])}"),
    ]
    if best is not None:
        where = f"{best['method']}, {best['surrogate']} to {best['target']}"
        numbers.append((text.percent(best["hit_rate"], 0), "highest hit rate on an unseen network", where))
    return page_of(
        "What carries over from one face network to another",
        f"Pictures of {text.count(config['pairs'], 'pair')} of different people, which no network takes for one "
        "person, are changed until the surrogate does; then every other network is asked. A hit is a pair that it "
        "accepts at its own threshold. All numbers are measured on the 8-bit image.",
        section("", tiles(*numbers)),
        section(
            "Hit rates",
            plots(_heat(cells, names, m) for m in methods),
            lead="Rows: the network that is attacked. Columns: the network that is asked; the diagonal is the white "
            "box.",
        ),
        section(
            "Each method against the one it adds to",
            _verdicts(cells),
            notices(lines),
            lead="The difference of the hit rates on the same pairs after the same number of steps, with a 95 % "
            "interval; the verdict is by McNemar's exact test at 5 %.",
        ),
        section(
            "Over the steps",
            plots(_curves([*means, *cells], networks)),
            lead="Mean distance to the target's embedding, and the share of hits, after so many steps.",
        ),
        section("Over the drop rate", plots(_rate_sweeps([*means, *cells]))),
        section("At several false accept rates", _by_far([*means, *cells])),
        section("All numbers", _table(cells)),
        section(
            "The pictures",
            CardGallery(cards=cards, wide=True) if cards else None,
            lead="Below each adversarial picture its change, made larger; grey is unchanged.",
        ),
        config=config,
        versions=versions,
        more=(parts.facts("Networks", networks),),
    )


def untargeted_page(found: Mapping[str, Any], config: Mapping[str, Any], versions: Mapping[str, Any]) -> Page:
    """The page of an untargeted comparison, from plain values."""
    same = np.asarray(found["same"], bool)
    scores = np.asarray(found["scores"], np.float64)
    methods = ["clean", *found["methods"]]
    figures = []
    for m, network in enumerate(found["networks"]):
        curves = [Curve.of(method, scores[k, m], same, after=k > 0) for k, method in enumerate(methods)]
        plot = roc_plot(curves, negatives=int((~same).sum()))
        kind = "white box" if network == found["surrogate"] else "never seen"
        figures.append(replace(plot, title=f"{network} ({kind})"))
    rows = tuple(
        (
            r["network"] + (" (white box)" if r["white_box"] else ""),
            r["method"],
            text.percent(r["auc"]),
            text.percent(r["eer"]),
            text.percent(r["tar_at_far_1e2"]),
        )
        for r in sorted(found["rows"], key=lambda r: found["networks"].index(r["network"]))
    )
    header = ("network", "attack", "AUC", "EER", "TAR at FAR 1 %")
    return page_of(
        "Verification with half of the images attacked",
        f"Half of the images are moved away from their own embeddings by {found['surrogate']}; of each of the "
        f"{text.count(found['pairs'], 'pair')} at most one image is. The lower a curve, the stronger the attack.",
        section("ROC curves", plots(figures)),
        section("Numbers", Table(header=header, rows=rows, note=". ".join(found.get("notes", ())))),
        config=config,
        versions=versions,
    )


def _heat(cells: Cells, names: Sequence[str], method: str) -> Plot:
    rows = list(dict.fromkeys(c["surrogate"] for c in cells if c["method"] == method))
    found = {(c["surrogate"], c["target"]): c["hit_rate"] for c in cells if c["method"] == method}
    values = [[found.get((r, c), math.nan) for c in names] for r in rows]
    return heat_plot(values, rows=rows, columns=names, title=method, axes_names=("surrogate", "target"))


def _verdicts(cells: Cells) -> Part | None:
    rows = []
    for cell in cells:
        compared = cell["against_base"]
        if compared is None or cell["white_box"]:
            continue
        rows.append(
            (
                f"{cell['method']} against {cell['base']}",
                f"{cell['surrogate']} → {cell['target']}",
                str(cell["steps"][-1]),
                _signed(compared["difference"]),
                f"{_signed(compared['low'])} … {_signed(compared['high'])}",
                f"{compared['p']:.2g}",
                compared["verdict"],
            )
        )
    if not rows:
        return notices(("No method was run together with the one that it adds to, with as many steps.",))
    return Table(header=("methods", "networks", "steps", "difference", "95 %", "p", "verdict"), rows=tuple(rows))


def _signed(value: float) -> str:
    return f"{100 * value:+.0f}".replace("-", "−")


def _curves(cells: Cells, networks: Mapping[str, Any]) -> list[Plot]:
    """For each surrogate and target: distances over the steps, and hits where there are several measurements."""
    made: list[Plot] = []
    long = [c for c in cells if len(c["steps"]) > 1]
    for surrogate, target in dict.fromkeys((c["surrogate"], c["target"]) for c in long):
        chosen = [c for c in long if (c["surrogate"], c["target"]) == (surrogate, target)][:_MOST_CURVES]
        for kind, field, span in (
            ("distance", "distance_by_steps", None),
            ("hits", "hit_rate_by_steps", (-0.02, 1.02)),
        ):
            lines = [Line(label=c["method"], x=tuple(c["steps"]), y=tuple(c[field])) for c in chosen]
            made.append(
                line_plot(
                    lines,
                    title=f"{surrogate} → {target}: {kind}",
                    x_name="steps",
                    y_name="distance" if kind == "distance" else "share of hits",
                    log_x=True,
                    y_span=span,
                    level=("threshold", networks[target]["threshold_distance"])
                    if kind == "distance" and target in networks
                    else None,
                )
            )
    return made


def _rate_sweeps(cells: Cells) -> list[Plot]:
    """Hits over the drop rate, where a method was run at three or more."""
    made: list[Plot] = []
    specs = {method: parse_attack(method) for method in dict.fromkeys(c["method"] for c in cells)}
    names = {method: spec.without("rate").label for method, spec in specs.items()}
    for name in dict.fromkeys(names.values()):
        for surrogate in dict.fromkeys(c["surrogate"] for c in cells):
            lines = []
            for target in dict.fromkeys(c["target"] for c in cells):
                points = sorted(
                    (rate, c["hit_rate"])
                    for c in cells
                    if names[c["method"]] == name
                    and (rate := specs[c["method"]].rate) is not None
                    and (c["surrogate"], c["target"]) == (surrogate, target)
                )
                if len(points) >= 3:
                    lines.append(Line(label=target, x=tuple(p[0] for p in points), y=tuple(p[1] for p in points)))
            if lines:
                made.append(
                    line_plot(
                        lines[:_MOST_CURVES],
                        title=f"{name} on {surrogate}",
                        x_name="drop rate",
                        y_name="share of hits",
                        y_span=(-0.02, 1.02),
                    )
                )
    return made


def _by_far(cells: Cells) -> Table | None:
    """Hit rates at every rate of the thresholds, where there are several."""
    rates = [each["far"] for each in cells[0].get("by_far", ())]
    if len(rates) < 2:
        return None
    rows = [
        (c["surrogate"], c["method"], c["target"], *(text.percent(each["hit_rate"]) for each in c["by_far"]))
        for c in cells
    ]
    return Table(header=("surrogate", "method", "target", *(f"FAR {far:g}" for far in rates)), rows=tuple(rows))


def _table(cells: Cells) -> Table:
    rows = [
        (
            c["surrogate"],
            c["method"],
            c["target"] + (" (white box)" if c["white_box"] else ""),
            str(c["steps"][-1]),
            text.percent(c["hit_rate"]),
            f"{text.percent(c['low'])} … {text.percent(c['high'])}",
            *(text.percent(c[key]) for key in ("met_before", "success_of_rest")),
            f"{c['distance_by_steps'][-1]:.3f}",
        )
        for c in cells
    ]
    header = (
        *("surrogate", "method", "target", "steps", "hits", "95 %"),
        *("met before", "success of the rest", "mean distance"),
    )
    return Table(header=header, rows=tuple(rows))


def _cards(folder: Path, source: FaceSource | None) -> tuple[Card, ...]:
    """A few pairs, each by every method of the first surrogate."""
    rows = read_manifest(folder)
    surrogate = rows[0].name.split("/")[0] if rows else ""
    by_method: dict[str, list[ManifestRow]] = {}
    for row in rows:
        if row.name.split("/")[0] == surrogate:
            by_method.setdefault(row.name.split("/")[1], []).append(row)
    if source is None or not by_method:
        return ()
    lists = list(by_method.values())
    factor = parts.amplification(lists[0])
    cards = []
    count = min(_EXAMPLES, len(lists[0]))
    for place in (k * len(lists[0]) // count for k in range(count)):
        row = lists[0][place]
        name = row.name.split("/", 2)[2].split("__")[0].replace("+", "/")
        original, other = (to_uint8(source.load(n).image) for n in (name, row.target))
        shots = [parts.shot("original", original, name), parts.shot("target", other, row.target)]
        for method, made in by_method.items():
            image = read_image(image_file(folder, made[place].name))
            shots.append(parts.attacked_shot(method, made[place], image, original, factor))
        cards.append(Card(title=f"{name} for {row.target}", note=f"on {surrogate}", shots=tuple(shots)))
    return tuple(cards)
