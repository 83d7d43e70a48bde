"""What all pages share: sections, tiles, the configuration at the end, and the file that is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastadv.core.errors import UNREADABLE, ArgumentError
from fastadv.core.files import write_atomically
from fastadv.data.run_files import RUN
from fastadv.report.page import render_page
from fastadv.report.pages import parts
from fastadv.report.parts import Facts, Notices, Page, Part, Plot, Plots, Section, Tile, Tiles

PAGE = "report.html"


def section(title: str, *found: Part | None, lead: str = "") -> Section:
    """A section of the parts that there are."""
    return Section(title=title, lead=lead, parts=tuple(part for part in found if part is not None))


def tiles(*found: tuple[str, ...]) -> Tiles:
    """Headline numbers from value, label and, where there is one, note."""
    return Tiles(tiles=tuple(Tile(**dict(zip(("value", "label", "note"), one, strict=False))) for one in found))


def plots(found: Iterable[Plot]) -> Plots | None:
    """The figures side by side; None of none."""
    made = tuple(found)
    return Plots(plots=made) if made else None


def notices(lines: Iterable[str]) -> Notices | None:
    """What a reader must know; None where that is nothing."""
    made = tuple(lines)
    return Notices(lines=made) if made else None


def page_of(
    title: str,
    lead: str,
    *sections: Section,
    config: Mapping[str, Any],
    versions: Mapping[str, Any],
    more: Iterable[Facts] = (),
) -> Page:
    """A page that ends with the configuration and the versions of its run.

    Args:
        title: Its heading.
        lead: A sentence or two below it.
        sections: In order.
        config: The configuration of the run.
        versions: The software of the run.
        more: Facts before these.
    """
    facts = (*more, parts.facts("Configuration", config), parts.facts("Versions", versions))
    footer = f"fastadv {versions.get('fastadv', '')}".rstrip()
    return Page(title=title, lead=lead, sections=(*sections, section("Configuration", *facts)), footer=footer)


def read_json(path: Path) -> Any:
    """A JSON file of a folder."""
    return json.loads(path.read_bytes())


def read_description(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The configuration and the versions of a run's folder."""
    run = read_json(folder / RUN)
    return run["config"], run["versions"]


def write_page(folder: Path, draw: Callable[[], Page], out: Path | None, *, expected: str) -> Path:
    """Draw a page from the files of a folder and write it.

    Args:
        folder: Of the study.
        draw: Reads the files and makes the page.
        out: The file; None: ``report.html`` in the folder.
        expected: What a folder is said to lack whose files do not make a page.

    Returns:
        The file.

    Raises:
        ValueError: The files are missing or damaged.
        ImportError: jinja2 or matplotlib is not installed.
        OSError: The page cannot be written.
    """
    try:
        page = draw()
    except UNREADABLE as error:
        raise ArgumentError(f"{folder}: expected {expected}, got one that cannot be read: {error!r}") from error
    target = out or folder / PAGE
    write_atomically(target, render_page(page).encode())
    return target
