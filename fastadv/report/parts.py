"""What a page is made of: values and text, nothing of how it looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fastadv.core.errors import ArgumentError

Tone = Literal["", "good", "bad"]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A headline number.

    Attributes:
        value: The number as shown.
        label: What it is.
        note: Below it, smaller.
    """

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Headline numbers side by side."""

    kind: ClassVar[str] = "tiles"
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; its first column names the rows.

    Attributes:
        header: Names of the columns.
        rows: Cells, as many in every row.
        note: Below it.

    Raises:
        ValueError: A row with another number of cells.
    """

    kind: ClassVar[str] = "table"
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ArgumentError(f"rows: expected {len(self.header)} cells, got {len(row)}: {row}")


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """A line or area of a figure: its label, and its colour by number (None: the text's own)."""

    label: str
    series: int | None
    dashed: bool = False
    filled: bool = False


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure.

    Attributes:
        svg: An SVG file, from `svg.svg_of`.
        title: Above it.
        alt: What a screen reader says; the title where it is empty.
        legend: Below the figure.
        note: The last line.
    """

    svg: str
    title: str
    alt: str = ""
    legend: tuple[LegendEntry, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Plots:
    """Figures side by side where there is room."""

    kind: ClassVar[str] = "plots"
    plots: tuple[Plot, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An image of a gallery.

    Attributes:
        image: (H, W, 3) uint8.
        alt: What it shows.
    """

    image: NDArray[np.uint8]
    alt: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Shot:
    """Images above each other with a caption.

    Attributes:
        title: In bold.
        pictures: One or more.
        lines: Below the title.
        verdict: The last line, with a tone.
        tone: "good" or "bad" colour the verdict, whose words say the same.
    """

    title: str
    pictures: tuple[Picture, ...]
    lines: tuple[str, ...] = ()
    verdict: str = ""
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Card:
    """Shots that belong together."""

    title: str
    shots: tuple[Shot, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class CardGallery:
    """Cards; wide ones take the page's width, others stand side by side."""

    kind: ClassVar[str] = "gallery"
    cards: tuple[Card, ...]
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Notices:
    """What a reader must know about the numbers."""

    kind: ClassVar[str] = "notices"
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Commands to copy, each with what it does."""

    kind: ClassVar[str] = "commands"
    commands: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values, folded away under a title."""

    kind: ClassVar[str] = "facts"
    title: str
    facts: tuple[tuple[str, str], ...]


Part = Tiles | Table | Plots | CardGallery | Notices | Commands | Facts


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """A heading, a few words, and parts."""

    title: str
    lead: str = ""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """A report.

    Attributes:
        title: Its heading.
        lead: A sentence or two below it.
        sections: In order; a section without parts and lead is left out.
        footer: The last line.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]
    footer: str = ""
