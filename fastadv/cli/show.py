"""What people see: progress, tables, notices."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fastadv.attacks import Recipe
from fastadv.cli.console import errors, printed
from fastadv.core import progress as progressing
from fastadv.core.numbers import show_eps
from fastadv.runs import attack as attacking
from fastadv.studies import verify as verifying

Made = TypeVar("Made")


_VERIFIED = (
    ("accuracy at clean thresholds", "accuracy", "accuracy"),
    ("AUC", "auc", "auc"),
    ("EER", "eer", "eer"),
    ("TAR at FAR 1e-3", "tar_at_far_1e3", ""),
    ("impersonation accepted at EER", "", "impersonation_at_eer"),
    ("impersonation accepted at FAR 1e-3", "", "impersonation_at_far_1e3"),
    ("evasion refused at EER", "", "evasion_at_eer"),
)
"""The figures of a verification, with their names in the reports of clean and of attacked pairs."""


_ETA = (TextColumn("ETA"), TimeRemainingColumn())
_STEPS = (
    "epoch",
    "fitting",
)  # how stages begin that count steps or epochs; those of a network, "NAME: ...", count either, the others images


class _Rate(ProgressColumn):
    """Images per second since the stage began; steps where it counts those."""

    def render(self, task: Task) -> Text:
        seconds = task.finished_time or task.elapsed
        done = task.completed - task.fields["before"]  # what an earlier run has made was not made now
        unit = " steps" if task.description.startswith(_STEPS) else "" if ": " in task.description else " images"
        return Text(f"{done / seconds:.1f}{unit}/s" if seconds and done else "")


class _Told:
    """A progress bar per stage, and the lines to print after the run."""

    def __init__(self) -> None:
        self.bars = Progress(disable=True)
        self.stages: dict[str, TaskID] = {}
        self.lines: list[str] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self.stages:
            self.stages[stage] = self.bars.add_task(stage, total=total, before=done)
        self.bars.update(self.stages[stage], completed=done)

    def note(self, line: str) -> None:
        self.lines.append(line)


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[progressing.Progress]:
    """A progress bar per stage on standard error, where that is a terminal; Ctrl-C inside ends with 130."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), *_ETA)
    told = _Told()
    try:
        with Progress(*columns, console=errors, disable=quiet or not errors.is_terminal) as told.bars:
            yield told
        if not quiet:
            for line in told.lines:
                errors.print(line, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        if not told.stages:  # nothing was done yet
            raise
        errors.print("stopped; finished work is on disk, and the same command continues from there", soft_wrap=True)
        raise typer.Exit(130) from None


def timed(work: Callable[..., Made], *given: object, quiet: bool, **more: object) -> tuple[Made, float]:
    """What a study made of what it is given, with progress bars, and the seconds that it took."""
    begin = time.perf_counter()
    with progress_bars(quiet=quiet) as progress:
        made = work(*given, progress=progress, **more)
    return made, time.perf_counter() - begin


def print_table(
    title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ("", ""), note: str = ""
) -> None:
    """A table, and a note below it; a name in brackets is no markup."""
    made = Table(title=Text(title), title_justify="left", title_style="bold", header_style="bold")
    for k, name in enumerate(header):
        made.add_column(name, justify="left" if k == 0 else "right", overflow="fold")
    _print_rows(made, rows)
    if note:
        Console().print(note, highlight=False)


def print_columns(
    title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...], *, whole: int | None = None
) -> None:
    """Columns without a frame; the first ones are never broken: so many, or all but the last two."""
    whole = max(1, len(header) - 2) if whole is None else whole
    made = Table(
        show_header=any(header),
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        pad_edge=False,
    )
    for k, name in enumerate(header):
        made.add_column(name, no_wrap=k < whole, overflow="fold")
    _print_rows(made, rows)
    print()


def _print_rows(made: Table, rows: Sequence[tuple[str, ...]]) -> None:
    for row in rows:
        made.add_row(*(Text(printed(cell)) for cell in row))
    Console().print(made)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def attack_title(moves: Recipe) -> str:
    """The attack and its budget: ``"fim, linf 8/255"``, or the name alone where there is no ball."""
    budget = moves.budget
    return f"{moves.name}, {budget.norm} {show_eps(budget.eps)}" if budget.is_ball else moves.name


def print_summary(summary: attacking.AttackSummary, title: str, out: Path, seconds: float) -> None:
    """The figures of a run, and what a reader must know."""
    rows = [*attacking.summary_lines(summary, percent), ("time", f"{seconds:.1f} s"), ("written to", str(out))]
    print_table(title, rows, note=attacking.NORMS_NOTE)
    print_notices(summary.notices)


def print_attacks(summaries: Mapping[str, attacking.AttackSummary | None], title: str) -> None:
    """A table with a column for each goal that was attacked, and what a reader must know."""
    made = {name: summary for name, summary in summaries.items() if summary is not None}
    if not made:
        return
    print_table(title, attacking.summary_rows(made.values(), percent), ("", *made), attacking.NORMS_NOTE)
    for summary in made.values():
        print_notices(summary.notices)


def print_line(text: str) -> None:
    """A sentence below the tables, whatever signs are in it."""
    Console().print(printed(text), highlight=False, markup=False, soft_wrap=True)


def print_next(*words: object, **options: object) -> None:
    """The next command that makes sense: words, and options that are not None, ``True`` for a flag."""
    line = ["fastadv", *map(str, words)]
    for name, value in options.items():
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if each is not None and each is not False:
                line += [f"--{name.replace('_', '-')}", *([] if each is True else [str(each)])]
    print_line(f"next: {shlex.join(line)}")


def print_written(out: Path | None) -> None:
    """Where the files are."""
    if out is not None:
        print_line(f"written to {out}")


def print_opened(page: Path, seconds: float) -> None:
    """How long a study took, and where its page is."""
    print_line(f"{seconds:.0f} s; open {page}")


def print_notes(lines: Sequence[str]) -> None:
    """Below a table: why a figure is missing from it."""
    for line in lines:
        Console().print(line, highlight=False, soft_wrap=True)


def print_notices(lines: tuple[str, ...]) -> None:
    for line in lines:
        errors.print("[yellow]note:[/yellow]", Text(printed(line)), highlight=False, soft_wrap=True)


def print_verification(result: verifying.Verification, title: str, threshold: float | None = None) -> None:
    """The tables of a verification, with decisions at the thresholds from clean pairs or at a given one."""
    at = "at the threshold of the EER"
    figures: tuple[tuple[str, str, str], ...] = _VERIFIED
    if threshold is not None:
        at = f"at threshold {threshold:g}"
        figures = tuple(
            (name.replace("at clean thresholds", at).replace("at EER", at), one, other.replace("_at_eer", "_at_folds"))
            for name, one, other in _VERIFIED
        )
    clean, attacked = result.clean, result.attacked

    def shown(report: object, figure: str) -> str:
        return "–" if report is None or not figure else percent(getattr(report, figure))

    rows: list[tuple[str, ...]] = [(name, shown(clean, one), shown(attacked, other)) for name, one, other in figures]
    header: tuple[str, ...] = ("", "clean", "attacked")
    if attacked is None:
        rows, header = [row[:2] for row in rows[:4]], header[:2]
    rows += [(f"TAR at FAR {far:g}", percent(tar)) for far, tar in result.further if far < 1e-3]
    print_table(title, rows, header)
    at_eer, at_far = clean.eer_threshold, clean.threshold_at_far_1e3
    thresholds = f"EER {at_eer:.4f}" + ("" if at_far is None else f", FAR 1e-3 {at_far:.4f}")
    Console().print(f"thresholds from clean pairs ({clean.metric}): {thresholds}", highlight=False)
    print_notes(clean.notes)
    print_attacks({"impersonate": result.impersonation, "evade": result.evasion}, f"the attacks, {at}")
