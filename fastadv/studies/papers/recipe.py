"""What the reproduction of a paper's table is made of: parts to run, a table, and the paper's findings to check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastadv.core.errors import ArgumentError
from fastadv.core.estimates import Estimate
from fastadv.core.progress import Progress
from fastadv.data.face_search import FaceSearch
from fastadv.engine import Engine
from fastadv.runs.inputs import PairChoice, RunInputs
from fastadv.studies.transfer.networks import parse_network

Scale = Literal["smoke", "small", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "small", "paper")
SHIPPED = ("synth-mobile", "synth-vgg", "synth-shuffle", "synth-resnet")
"""The networks of a run at scale ``"smoke"`` that names none."""

Results = Mapping[str, Any]
"""What the parts of a recipe found, plain JSON values, by the names of the parts."""

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What recipes are run with.

    Attributes:
        scale: ``"smoke"`` (seconds), ``"small"`` (minutes) or ``"paper"`` (the paper's numbers).
        data: The faces, as ``open_faces`` takes them; None: synthetic ones, which the run draws before any part.
        networks: Texts (``transfer.networks.parse_network``): all of a study of several networks, else one. None at
            scale ``"smoke"``: as many of the shipped ones as a recipe needs.
        pairs: The list of verification pairs; None for the one that the faces bring.
        landmarks: Five points an image, or None.
        search: How faces are found in photographs, in place of landmarks; the run then keeps the points it has found.
        seed: Of every random number.
        engine: How images are attacked, with open choices.
        device: Where to compute.
    """

    scale: Scale
    data: Path | None
    networks: tuple[str, ...]
    pairs: Path | None = None
    landmarks: Path | None = None
    search: FaceSearch | None = None
    seed: int = 0
    engine: Engine = field(default_factory=Engine)
    device: str = "cpu"

    def at(self, smoke: Value, small: Value, paper: Value) -> Value:
        """The value of this scale."""
        return {"smoke": smoke, "small": small, "paper": paper}[self.scale]

    @property
    def network(self) -> str:
        """The first network's text; the only one in a recipe of a single network."""
        return self.networks[0]

    @property
    def names(self) -> tuple[str, ...]:
        """What the networks are called."""
        return tuple(parse_network(text).name for text in self.networks)

    @property
    def label(self) -> str:
        """Of the folder of the parts: ``"mobilefacenet"``, ``"mobilefacenet+edgeface_xs"``."""
        return "+".join(self.names)

    def of(self, *networks: str) -> Setup:
        """The same with other networks."""
        return replace(self, networks=networks)

    def inputs(self, folder: Path | None, network: str | None = None) -> RunInputs:
        """What a study is given.

        Args:
            folder: Where it writes.
            network: The text of its network; "" for a study that names its networks itself; None: the first.
        """
        assert self.data is not None
        known = None if network == "" else parse_network(network or self.network)
        return RunInputs(
            data=self.data,
            model=None if known is None else known.model,
            weights=None if known is None or known.weights is None else Path(known.weights),
            landmarks=self.landmarks,
            seed=self.seed,
            engine=self.engine,
            device=self.device,
            out=folder,
        )

    def verification(self, limit: int | None = None) -> PairChoice:
        """Which verification pairs; at most so many."""
        return PairChoice(file=self.pairs, limit=limit)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a part takes, as counted before it is run.

    Attributes:
        gradients: Gradient evaluations of one image.
        forwards: Evaluations of one image without a gradient.
        images: Images that are written.
        seconds: What takes time besides, such as fitting detectors.
    """

    gradients: int = 0
    forwards: int = 0
    images: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            gradients=self.gradients + other.gradients,
            forwards=self.forwards + other.forwards,
            images=self.images + other.images,
            seconds=self.seconds + other.seconds,
        )


@dataclass(frozen=True, kw_only=True)
class StudyPart(ABC):
    """A study that recipes need, run once in a folder of its own. Equal parts have equal names.

    Subclasses hold the study's settings as plain values: their ``repr`` says whether a finished part is this one.

    Attributes:
        name: Of the folder, and the key of its results.
    """

    name: str

    @property
    def base(self) -> StudyPart:
        """The part whose study this one goes on with, and which is run before: one among its settings, or itself."""
        return next((value.base for value in vars(self).values() if isinstance(value, StudyPart)), self)

    @abstractmethod
    def run(self, setup: Setup, folder: Path, progress: Progress) -> Mapping[str, Any]:
        """Run the study in the folder, or go on with it, and give what it found as plain JSON values."""

    @abstractmethod
    def cost(self, setup: Setup) -> Cost:
        """An upper bound of what it takes."""


Cell = Estimate | float | None
"""A number of a table; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table of numbers: the paper's, or ours in the same rows and columns.

    Attributes:
        columns: Names of the columns.
        rows: By name, as many cells as columns.
        percent: Whether the numbers are shares in [0, 1], shown as per cent.

    Raises:
        ValueError: A row with another number of cells.
    """

    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Cell, ...]]
    percent: bool = False

    def __post_init__(self) -> None:
        for name, cells in self.rows.items():
            if len(cells) != len(self.columns):
                raise ArgumentError(f"rows: expected {len(self.columns)} cells in {name!r}, got {len(cells)}")

    @staticmethod
    def of_percent(columns: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> PaperTable:
        """A printed table whose numbers are per cent."""
        shares = {name: tuple(None if v is None else round(v / 100, 6) for v in cells) for name, cells in rows.items()}
        return PaperTable(columns=tuple(columns), rows=shares, percent=True)

    def with_rows_of(self, printed: PaperTable) -> PaperTable:
        """The same with the paper's other rows, without numbers: what was not measured."""
        missing = {name: (None,) * len(self.columns) for name in printed.rows if name not in self.rows}
        return replace(self, rows={**self.rows, **missing})

    def described(self) -> dict[str, Any]:
        """As plain JSON values: each cell None or an object with value, low, high, hits and trials."""
        return {
            "columns": list(self.columns),
            "rows": [{"name": name, "cells": [_cell(cell) for cell in cells]} for name, cells in self.rows.items()],
            "percent": self.percent,
        }


def _cell(cell: Cell) -> dict[str, Any] | None:
    if cell is None:
        return None
    if isinstance(cell, Estimate):
        return cell.described()
    return {"value": float(cell), **dict.fromkeys(("low", "high", "hits", "trials"))}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A finding of a paper.

    Attributes:
        statement: What the paper says: "targeted attacks are easier to detect than untargeted ones".
        check: What must be above 0 for it to hold, with its interval; None where it was not measured.
    """

    statement: str
    check: Callable[[Results], Estimate | None] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A curve of a figure: as many x as y."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure: curves, with the unit in the axes' names.

    Attributes:
        title: Above it.
        traces: The curves.
        x_name: Of the horizontal axis.
        y_name: Of the vertical axis.
        log_x: Whether the horizontal axis is logarithmic.
        level: A name and a height, drawn across, or None.
    """

    title: str
    traces: tuple[Trace, ...]
    x_name: str
    y_name: str
    log_x: bool = False
    level: tuple[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images side by side.

    Attributes:
        title: Above them.
        files: Captions and files of the parts, relative to the folder of all recipes.
        note: Below them.
    """

    title: str
    files: tuple[tuple[str, str], ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class StudyRecipe:
    """A table or a figure of a paper, measured again.

    Attributes:
        name: Of the command line: ``"massoli-table-1"``.
        source: Author, year, table or figure, and section.
        title: What it shows.
        parts: The studies that it needs, at a setup. Of a recipe that is not ``together`` the setup has one network,
            and it is run for each of the given ones.
        table: What they found, in the rows and columns of the paper.
        printed: The paper's numbers; None where it prints none.
        claims: What the paper found.
        figures: What they found, as curves.
        pictures: What they found, as images.
        together: Whether all networks are in one study.
        networks: How many networks it needs.
        notes: What the page must say: choices, and what differs from the paper.
    """

    name: str
    source: str
    title: str
    parts: Callable[[Setup], tuple[StudyPart, ...]]
    table: Callable[[Results], PaperTable]
    printed: PaperTable | None = None
    claims: tuple[Claim, ...] = ()
    figures: Callable[[Results], tuple[Figure, ...]] | None = None
    pictures: Callable[[Results], tuple[Pictures, ...]] | None = None
    together: bool = False
    networks: int = 1
    notes: tuple[str, ...] = ()

    @property
    def paper(self) -> str:
        """The first word of the name: ``"massoli"``."""
        return self.name.partition("-")[0]

    def setups(self, setup: Setup) -> tuple[Setup, ...]:
        """One for each study: for each network, or for all of them together.

        Raises:
            ValueError: It needs more networks.
        """
        if not setup.networks and setup.scale == SCALES[0]:
            setup = setup.of(*SHIPPED[: self.networks])
        if len(setup.networks) < self.networks:
            raise ArgumentError(
                f"--network: expected {self.networks} or more for {self.name}, got {len(setup.networks)}"
            )
        return (setup,) if self.together else tuple(setup.of(network) for network in setup.networks)


def numbered(
    name: str, paper: str, number: str, section: str, title: str, table: Callable[[Results], PaperTable], **more: Any
) -> StudyRecipe:
    """The recipe of a table or figure by its number, ``"table 1"``; ``name`` is the first word of the recipe's."""
    source = f"{paper}, {number}, section {section}"
    return StudyRecipe(name=f"{name}-{number.replace(' ', '-')}", source=source, title=title, table=table, **more)
