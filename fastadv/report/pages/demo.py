"""The page of the demo: four attacks side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from fastadv.core import text
from fastadv.core.files import write_atomically
from fastadv.core.provenance import versions
from fastadv.data import read_image, to_uint8
from fastadv.data.run_files import image_file
from fastadv.engine import notices
from fastadv.recognition import VerificationReport
from fastadv.report.figures import ticks_plot
from fastadv.report.page import render_page
from fastadv.report.pages import parts
from fastadv.report.pages.curves import ROC, draw_verification
from fastadv.report.pages.frame import PAGE, plots, section, tiles
from fastadv.report.pages.frame import notices as noted
from fastadv.report.parts import Card, CardGallery, Commands, Page, Plot, Table, Tiles
from fastadv.runs import describe
from fastadv.runs.attack import NORMS_NOTE, source_name
from fastadv.studies.demo import DemoResult, DemoRun

_EXAMPLES = 6


def write_demo(result: DemoResult) -> Path:
    """Draw the ROC of every run of a demo into its folder, and write the page.

    Returns:
        The page.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
        OSError: A file cannot be written.
    """
    for run in (*result.runs, result.stopped):
        title = f"{result.model}, {len(result.pairs)} pairs, {run.label}"
        draw_verification(run.verification, run.path / ROC, title=title)
    page = result.out / PAGE
    write_atomically(page, render_page(demo_page(result)).encode())
    return page


def demo_page(result: DemoResult) -> Page:
    """The page of a demo's results; originals come from the source.

    Raises:
        ImageError: An image of a run cannot be read.
        ImportError: jinja2 or matplotlib is not installed.
    """
    strongest = min(result.runs, key=_strength)
    clean = result.runs[0].verification.clean
    rows = result.runs[0].rows
    span = parts.score_span([run.rows for run in (*result.runs, result.stopped)])
    threshold = result.runs[0].verification.threshold
    figures = [parts.rocs([(run.label, run.rows) for run in result.runs])]
    figures += [
        parts.distributions(run.label, run.rows, threshold=threshold, span=span)
        for run in (*result.runs, result.stopped)
    ]
    lines = [f"{run.label}: {line}" for run in result.runs for line in _notices(run)]
    settings = (parts.facts(run.label, describe(run.attack)) for run in (*result.runs, result.stopped))
    return Page(
        title="Four attacks on face verification",
        lead=f"A small network, {result.model}, decides whether two pictures show one person. The people are drawn by "
        f"the computer and exist nowhere. The first picture of each of {text.count(len(rows), 'pair')} is then changed "
        f"by at most {text.levels(strongest.attack.budget.eps)} per pixel: strangers are made to match, and "
        "pictures of one person not to. Every number is measured on the 8-bit image as it is written to disk, at "
        "thresholds chosen on clean pairs.",
        sections=(
            section("", _tiles(clean, strongest)),
            section("Take note", noted(lines)),
            section("The attacks side by side", _table(clean, result.runs)),
            section(
                "How alike two pictures look to the network",
                plots(figures),
                lead="Pairs right of the threshold are accepted. An attack that works turns the picture around: "
                "strangers move to the right of it, pictures of one person to the left. FIM that stops at success goes "
                "just past the threshold.",
            ),
            section(
                "The pictures",
                CardGallery(cards=_cards(result), wide=True),
                lead=f"Pairs spread evenly over the list, not the best ones. Below each adversarial picture its "
                f"change, {parts.amplification(rows)} times as large; grey is unchanged. The numbers are "
                "the similarity before and after, and the largest change of a pixel.",
            ),
            section(
                "Effort",
                _throughput(result),
                plots((_stopped_ticks(result),)),
                lead="An evaluation is one pass through the network and back. The engine drops an image the moment it "
                "is done and puts the next into its place, so an attack that may stop early costs only what its images "
                "need.",
            ),
            section(
                "On your own data",
                Commands(commands=_commands(result)),
                lead="The demo's faces, pairs and runs are ordinary folders. Put a folder with one folder of images "
                "per person in the place of --data; faces are expected to be aligned, or come with landmarks.",
            ),
            section("Configuration", *settings, parts.facts("Versions", versions())),
        ),
        footer=f"fastadv {versions()['fastadv']}, demo with seed {result.seed}",
    )


def _strength(run: DemoRun) -> tuple[float, float, float]:
    """The lowest accuracy, of equals the fewest evaluations, of these the smallest change."""
    attacked = run.verification.attacked
    accuracy = attacked.accuracy if attacked is not None and attacked.accuracy is not None else 1.0
    length = run.summary.mean_l2
    return accuracy, run.summary.mean_ticks, math.inf if length is None else length


def _notices(run: DemoRun) -> tuple[str, ...]:
    # a positive pair that the network gets wrong without help is no news here
    flags = ((row.name, tuple(f for f in row.flags.split(";") if f and f != "met_at_start")) for row in run.rows)
    return notices(flags)


def _tiles(clean: VerificationReport, strongest: DemoRun) -> Tiles:
    attacked = strongest.verification.attacked
    assert attacked is not None
    speed = _per_second(strongest)
    budget, largest = strongest.attack.budget.eps, max(row.linf for row in strongest.rows)
    when_clean = f"{text.percent(clean.eer)} when clean"
    made = [
        (text.percent(clean.accuracy), "clean accuracy", f"EER {text.percent(clean.eer)}"),
        (text.percent(attacked.accuracy), f"accuracy under {strongest.label}", "chance is 50\u00a0%"),
        (text.percent(attacked.impersonation_at_eer), "strangers accepted", when_clean),
        (text.percent(attacked.evasion_at_eer), "genuine refused", when_clean),
        (text.levels(largest), "largest change", f"allowed: {text.levels(budget)}"),
    ]
    if speed is not None:
        made.append((text.rate(speed), "images a second", f"{strongest.label}, this machine"))
    return tiles(*made)


def _table(clean: VerificationReport, runs: Sequence[DemoRun]) -> Table:
    def cells(of: Callable[[DemoRun], str]) -> tuple[str, ...]:
        return tuple(of(run) for run in runs)

    def attacked(run: DemoRun, field: str) -> str:
        return text.percent(getattr(run.verification.attacked, field))

    rows = (
        ("accuracy", text.percent(clean.accuracy), *cells(lambda r: attacked(r, "accuracy"))),
        ("AUC", text.percent(clean.auc), *cells(lambda r: attacked(r, "auc"))),
        ("strangers accepted", text.percent(clean.eer), *cells(lambda r: attacked(r, "impersonation_at_eer"))),
        ("genuine refused", text.percent(clean.eer), *cells(lambda r: attacked(r, "evasion_at_eer"))),
        ("evaluations an image", text.NONE, *cells(lambda r: f"{_mean(r, 'ticks'):.0f}")),
        ("success of the attacks", text.NONE, *cells(lambda r: text.percent(r.summary.success))),
        ("met before", text.NONE, *cells(lambda r: text.percent(r.summary.met_before))),
        ("success of the rest", text.NONE, *cells(lambda r: text.percent(r.summary.success_of_rest))),
        ("largest change, mean *", text.NONE, *cells(lambda r: _number(r.summary.mean_linf, text.levels))),
        ("L2 of the change, mean *", text.NONE, *cells(lambda r: _number(r.summary.mean_l2, lambda v: f"{v:.2f}"))),
    )
    return Table(
        header=("", "clean", *(run.label for run in runs)),
        rows=rows,
        note="Accuracy: ten folds, each at the threshold of the other nine. Accepted and refused: at the threshold of "
        "the clean equal error rate. All four ascend the distance of embeddings here, since the goal is verification. "
        f"{NORMS_NOTE}.",
    )


def _number(value: float | None, shown: Callable[[float], str]) -> str:
    return text.NONE if value is None else shown(value)


def _mean(run: DemoRun, field: str) -> float:
    return float(sum(getattr(row, field) for row in run.rows)) / len(run.rows)


def _per_second(run: DemoRun) -> float | None:
    return len(run.rows) / run.seconds if run.seconds else None


def _cards(result: DemoResult) -> tuple[Card, ...]:
    by_name = [{row.name: row for row in run.rows} for run in result.runs]
    chosen = parts.spread(result.runs[0].rows, _EXAMPLES)
    factor = parts.amplification(result.runs[0].rows)
    cards = []
    for row in chosen:
        original = to_uint8(result.source.load(source_name(row)).image)
        other = to_uint8(result.source.load(row.target).image)
        shots = [
            parts.shot("original", original, source_name(row), f"similarity {text.score(row.score_before)}"),
            parts.shot("compared with", other, row.target),
        ]
        for run, rows in zip(result.runs, by_name, strict=True):
            image = read_image(image_file(run.path, row.name))
            shots.append(parts.attacked_shot(run.label, rows[row.name], image, original, factor))
        aim = "Two people, to be taken for one" if row.goal == "impersonate" else "One person, not to be recognised"
        cards.append(Card(title=aim, note=f"{source_name(row)} and {row.target}", shots=tuple(shots)))
    return tuple(cards)


def _throughput(result: DemoResult) -> Table:
    rows = []
    for run in (*result.runs, result.stopped):
        evaluations = sum(row.ticks for row in run.rows)
        rows.append(
            (
                run.label,
                *parts.rates(asdict(run.summary)),
                f"{evaluations / len(run.rows):.1f}",
                text.rate(_per_second(run)),
                text.rate(evaluations / run.seconds if run.seconds else None),
            )
        )
    return Table(
        header=("", "success", "met before", "success of the rest", "evaluations", "images/s", "eval./s"),
        rows=tuple(rows),
        note="Evaluations: of one image, in the mean. Speed: on this machine, writing included."
        if all(run.seconds for run in result.runs)
        else "A dash: an earlier demo had made these images, so there is no time to tell.",
    )


def _stopped_ticks(result: DemoResult) -> Plot:
    return ticks_plot([row.ticks for row in result.stopped.rows], title="FIM that stops at success: evaluations taken")


def _commands(result: DemoResult) -> tuple[tuple[str, str], ...]:
    strongest = min(result.runs, key=_strength)
    config = {
        "command": "verify",
        "model": result.model,
        "attack": describe(strongest.attack),
        "metric": "cosine",
        "seed": result.seed,
        "selection": {"pairs": "pairs.csv"},
    }
    own = f"fastadv verify --data FACES --pairs PAIRS.csv --model {result.model} --attack {strongest.attack.name}"
    return (
        ("This page:", f"fastadv demo --seed {result.seed}"),
        (
            f"{strongest.label} of this page, in the demo's folder:",
            parts.command_line(config, data="faces", weights="", out="again"),
        ),
        ("The same on your own faces (a CSV file first,second,same names the pairs):", f"{own} --out RUN"),
        ("The report of any run:", "fastadv report RUN --data FACES"),
    )
