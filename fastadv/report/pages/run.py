"""``fastadv report``: the page of a run, from what its folder holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastadv.core import text
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_least, is_number
from fastadv.core.files import write_atomically
from fastadv.core.notices import notify
from fastadv.data import FaceSource, ManifestRow, read_image, read_manifest, to_uint8
from fastadv.data.run_files import RUN, image_file
from fastadv.engine import notices
from fastadv.report.figures import ticks_plot
from fastadv.report.page import render_page
from fastadv.report.pages import identify as identify_page
from fastadv.report.pages import parts
from fastadv.report.pages.change import change_figures, series_of
from fastadv.report.pages.frame import PAGE, page_of, plots, section, tiles
from fastadv.report.pages.frame import notices as noted
from fastadv.report.parts import Card, CardGallery, Commands, Page, Part, Plot, Plots, Table, Tiles
from fastadv.runs.attack import NORMS_NOTE, AttackSummary, source_name, summarise, summary_rows
from fastadv.runs.inputs import open_faces

VERIFICATION = "verification.json"
_EXAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run's folder says.

    Attributes:
        path: The folder.
        config: The configuration it began with.
        versions: The software it began with.
        rows: One per image.
        verification: The figures of a verification, or None.
        finished: Whether every image is there.
    """

    path: Path
    config: Mapping[str, Any]
    versions: Mapping[str, Any]
    rows: tuple[ManifestRow, ...]
    verification: Mapping[str, Any] | None
    finished: bool

    @property
    def threshold(self) -> float | None:
        """The threshold of the goals, in the metric's own unit, or None where no file has it."""
        for place in (self.verification or {}, self.config):
            value = place.get("threshold")
            if is_number(value):
                return float(value)
        return None


def read_run(folder: Path) -> RunRecord:
    """Reads a run's folder, finished or not.

    Raises:
        ValueError: The folder is missing or no run's, a file of it is damaged, or there is no image yet.
    """
    if not folder.is_dir():
        raise ArgumentError(f"{folder}: expected a folder, got {'a file' if folder.exists() else 'no such folder'}")
    if not (folder / RUN).is_file():
        raise ArgumentError(f"{folder}: expected the folder of a run, got one without {RUN}")
    saved = _object(folder / RUN)
    config, versions = saved.get("config"), saved.get("versions")
    if not isinstance(config, dict) or not isinstance(versions, dict):
        raise ArgumentError(f"{folder / RUN}: expected the description of a run, got one without config or versions")
    rows = tuple(read_manifest(folder))
    if not rows:
        raise ArgumentError(f"{folder}: expected a run with images, got one without; start its command again")
    return RunRecord(
        path=folder,
        config=config,
        versions=versions,
        rows=rows,
        verification=_object(folder / VERIFICATION) if (folder / VERIFICATION).is_file() else None,
        finished=(folder / "manifest.parquet").is_file(),
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{path}: expected a JSON object, got a file that cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ArgumentError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def render(
    folder: Path,
    *,
    data: Path | FaceSource | None = None,
    landmarks: Path | None = None,
    out: Path | None = None,
    examples: int = _EXAMPLES,
    beside: Sequence[Path] = (),
) -> Path:
    """Write the report of a run's folder as one HTML file that needs no network; the same folder, the same bytes.

    Args:
        folder: What ``fastadv attack`` or ``fastadv verify --out`` wrote; an unfinished run is shown as it is.
        data: The faces that the run was made from, for originals and differences; without them the adversarial
            images are shown alone.
        landmarks: As the run had them.
        out: The file; ``report.html`` in the folder when None.
        examples: How many images the gallery shows, spread evenly over the run.
        beside: Folders of other runs, to draw what they changed beside this run's.

    Returns:
        The file.

    Raises:
        ValueError: A folder is no run's or damaged, or ``examples`` is negative.
        SourceError, ImageError, AlignmentError: The data or an image cannot be read.
        ImportError: jinja2 or matplotlib is not installed.
        OSError: The file cannot be written.
    """
    check_least("examples", examples, 0)
    run = read_run(Path(folder))
    others = [read_run(Path(other)) for other in beside]
    page = run_page(run, data=data, landmarks=landmarks, examples=examples, beside=others)
    file = run.path / PAGE if out is None else Path(out)
    write_atomically(file, render_page(page).encode())
    return file


def run_page(
    run: RunRecord,
    *,
    data: Path | FaceSource | None = None,
    landmarks: Path | None = None,
    examples: int = _EXAMPLES,
    beside: Sequence[RunRecord] = (),
) -> Page:
    """The page of one run; raises as ``render`` does."""
    summary = summarise(run.rows)
    cards, noticed = _gallery(run, data, landmarks, examples)
    lines = list(notices((r.name, tuple(filter(None, r.flags.split(";")))) for r in run.rows)) + noticed
    if not run.finished:
        lines.insert(0, f"The run is not finished: these are the {text.count(len(run.rows), 'image')} made so far.")
    name = str(parts.mapping(run.config, "attack").get("name", run.rows[0].attack))
    model = str(run.config.get("model", "a model"))
    changes = change_figures(series_of([(each.path.name, each.rows) for each in (run, *beside)]))
    return page_of(
        f"{name} against {model}",
        _lead(run, summary),
        section("", _tiles(run, summary)),
        section("Take note", noted(lines)),
        section("Numbers", *_numbers(run, summary)),
        section("Similarity", plots(_figures(run))),
        section("Change", plots(changes)),
        section(
            "Images",
            CardGallery(cards=tuple(cards)) if cards else None,
            lead=f"Spread evenly over the run. {_gallery_lead(run, cards)}" if cards else "",
        ),
        section("Effort", _effort(run)),
        section(
            "Make it again",
            Commands(commands=_commands(run.config)),
            lead="Words in capitals stand for paths of yours. Another folder of faces after --data is all it takes "
            "to do the same on your own.",
        ),
        config=run.config,
        versions=run.versions,
    )


def _lead(run: RunRecord, summary: AttackSummary) -> str:
    goals = {row.goal for row in run.rows}
    aims = {
        "impersonate": "to be taken for another person",
        "evade": "not to be recognised",
        "match": "to have another person's features",
        "identify-as": "to be identified as another person",
        "misidentify": "to be identified as somebody else",
        "classify-as": "to be classified as another person",
        "misclassify": "to be classified as somebody else",
    }
    tried = " or ".join(aims.get(goal, goal) for goal in sorted(goals))
    images = text.count(summary.images, "face image")
    return f"{images}, each changed a little {tried}, and evaluated as the 8-bit image that is written to disk."


def _tiles(run: RunRecord, summary: AttackSummary) -> Tiles:
    made: list[tuple[str, ...]] = [
        (text.percent(summary.success), "attacks that succeed", f"of {text.count(summary.images, 'image')}"),
        (
            text.percent(summary.success_of_rest),
            "success of the rest",
            f"{text.percent(summary.met_before)} had met the goal before",
        ),
    ]
    clean, attacked = (_shares(run.verification, key) for key in ("clean", "attacked"))
    if "accuracy" in clean and "accuracy" in attacked:
        before = f"clean {text.percent(clean['accuracy'])}"
        made.append((text.percent(attacked["accuracy"]), "accuracy under attack", before))
    largest = text.levels(max(r.linf for r in run.rows))
    made += [
        (largest, "largest change", "of all images, in steps of 1/255"),
        (f"{summary.mean_ticks:.1f}", "evaluations an image", "in the mean"),
    ]
    return tiles(*made)


def _shares(verification: Mapping[str, Any] | None, key: str) -> dict[str, float]:
    """The numbers of one part of the figures."""
    part = parts.mapping(verification or {}, key)
    return {name: float(value) for name, value in part.items() if isinstance(value, (int, float))}


def _numbers(run: RunRecord, summary: AttackSummary) -> tuple[Part, ...]:
    clean, attacked = (_shares(run.verification, key) for key in ("clean", "attacked"))
    made: list[Part] = []
    if clean:
        given = run.config.get("threshold")
        at = f"threshold {given:g}" if isinstance(given, (int, float)) else "clean thresholds"
        names = [
            (f"accuracy at {at}", "accuracy", "accuracy"),
            ("AUC", "auc", "auc"),
            ("equal error rate", "eer", "eer"),
            ("TAR at FAR 0.1 %", "tar_at_far_1e3", None),
            ("impostors accepted, EER threshold", None, "impersonation_at_eer"),
            ("impostors accepted, FAR 0.1 % threshold", None, "impersonation_at_far_1e3"),
            ("genuine refused, EER threshold", None, "evasion_at_eer"),
        ]
        rows = tuple(
            (name, text.percent(clean.get(before or "")), text.percent(attacked.get(after or "")))
            for name, before, after in names
        )
        notes = parts.mapping(run.verification or {}, "clean").get("notes")
        note = ". ".join(map(str, notes)) if isinstance(notes, list) else ""
        made.append(Table(header=("verification", "clean", "attacked"), rows=rows, note=note))
    made += identify_page.tables(run.path)
    kinds = list(dict.fromkeys(row.goal for row in run.rows))
    columns = [summarise([row for row in run.rows if row.goal == kind]) for kind in kinds]
    made.append(Table(header=("attack", *kinds), rows=summary_rows(columns), note=NORMS_NOTE))
    return tuple(made)


def _figures(run: RunRecord) -> tuple[Plot, ...]:
    comparable = [r for r in run.rows if r.goal in ("evade", "impersonate")]
    if not comparable or len({r.metric for r in comparable}) > 1:
        return ()
    span = parts.score_span([comparable])
    title = f"{parts.score_name(comparable[0].metric)} before and after".capitalize()
    made = [parts.distributions(title, comparable, threshold=run.threshold, span=span)]
    if parts.both_kinds(comparable):
        made.insert(0, parts.rocs([("attacked", comparable)]))
    return tuple(made)


def _effort(run: RunRecord) -> Part:
    ticks = sorted({row.ticks for row in run.rows})
    if len(ticks) > 1:
        return Plots(plots=(ticks_plot([r.ticks for r in run.rows], title="Model evaluations an image took"),))
    seconds = (run.verification or {}).get("seconds")
    note = f" The whole took {seconds:.1f} s." if isinstance(seconds, (int, float)) else ""
    return Table(
        header=("evaluations", "images"),
        rows=((str(ticks[0]), f"{len(run.rows):,}"),),
        note=f"Every image took the same number of model evaluations.{note}",
    )


def _commands(config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return (
        ("This run:", parts.command_line(config)),
        ("This page, with originals and differences:", "fastadv report OUT --data DATA"),
    )


def _gallery_lead(run: RunRecord, cards: Sequence[Card]) -> str:
    if len(cards[0].shots) == 1:
        return "Originals and differences need the data that the run was made from (--data)."
    return "The difference is grey where nothing changed."


def _gallery(
    run: RunRecord, data: Path | FaceSource | None, landmarks: Path | None, examples: int
) -> tuple[list[Card], list[str]]:
    """The cards, and what is to be noted about them."""
    chosen = parts.spread(run.rows, examples)
    factor = parts.amplification(chosen)
    source: FaceSource | None = None
    cards: list[Card] = []
    gone: list[str] = []
    changed: list[str] = []
    for row in chosen:
        file = image_file(run.path, row.name)
        if ".." in Path(row.name).parts or not file.is_file():
            gone.append(row.name)
            continue
        image = read_image(file)
        if source is None and data is not None:
            size = (image.shape[0], image.shape[1])
            source = data if isinstance(data, FaceSource) else open_faces(data, size=size, landmarks=landmarks)
        original = None
        if source is not None:
            name = source_name(row)
            face = source.load(name) if name in source else None
            if face is None or face.source_hash != row.source_hash or face.image.shape[1:] != image.shape[:2]:
                changed.append(name)
            else:
                original = to_uint8(face.image)
        cards.append(parts.single_card(row, image, original, factor))
    lines = [*_listed(gone, "image", "missing in the folder"), *_listed(changed, "original", "not in the data")]
    for line in lines:
        notify(f"{run.path}: {line}")
    return cards, lines


def _listed(names: Iterable[str], what: str, why: str) -> list[str]:
    found = list(dict.fromkeys(names))
    if not found:
        return []
    return [f"{text.count(len(found), what)} {why} as the run had them: {', '.join(found[:5])}"]
