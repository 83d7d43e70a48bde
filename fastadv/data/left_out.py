"""Files that a data set holds and that are no faces of it: which they are, and how that is said."""

from __future__ import annotations

import os
from collections.abc import Callable

from fastadv.core.notices import notify
from fastadv.data import names
from fastadv.data.formats import readable, sniff

BY_CONTENT = "without the extension of an image"
NO_FOLDER = "without an identity, expected <identity>/<image>"
NO_FILE = "of links that lead nowhere and of what is no plain file"
PART = "beside the image of a sample with a label"
LOOP = "of links to a folder that they lie in"


class LeftOut:
    """What a listing leaves out, for one notice: images of formats that are not read, and files in the wrong place.

    Hidden files and what is no image (`Thumbs.db`, `notes.txt`) are not counted.
    """

    def __init__(self) -> None:
        """Nothing is left out yet."""
        self._formats: dict[str, list[str]] = {}
        self._others: dict[str, list[str]] = {}

    def takes(self, place: str, head: Callable[[], bytes]) -> bool:
        """Whether a plain file is an image that is read; an image that is not is counted.

        Args:
            place: Its path in the data set.
            head: Its first bytes: asked for where the extension is not that of a format that is read.
        """
        ending = names.extension(place)
        if ending in names.READ:
            return True
        found = sniff(head())
        if ending:
            if not readable(found):
                self._formats.setdefault(ending, []).append(place)
            return readable(found)
        if found is not None:
            self.add(BY_CONTENT, place)
        return False

    def add(self, reason: str, place: str) -> None:
        """Count an image that is left out for one of the reasons of this module."""
        self._others.setdefault(reason, []).append(place)

    def below(self, folder: str) -> str:
        """What is left out below a folder of the data set, by extension; empty where nothing is."""
        counts: dict[str, int] = {}
        for places in (*self._formats.values(), *self._others.values()):
            for place in places:
                if place.startswith(f"{folder}/"):
                    kind = os.path.splitext(place)[1].lower() or "without extension"
                    counts[kind] = counts.get(kind, 0) + 1
        return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))

    def places(self) -> dict[str, str]:
        """What is left out, and why."""
        formats = {place: f"the format {e} is not read" for e, places in self._formats.items() for place in places}
        return {**formats, **{place: reason for reason, places in self._others.items() for place in places}}

    def folders(self) -> set[str]:
        """The first folders of what is left out."""
        every = (place for places in (*self._formats.values(), *self._others.values()) for place in places)
        return {place.partition("/")[0] for place in every if "/" in place}

    def __str__(self) -> str:
        said = []
        if self._formats:
            counted = ", ".join(f"{len(places)} {ending}" for ending, places in sorted(self._formats.items()))
            first = names.shown(next(iter(self._formats.values()))[0])
            said.append(f"{counted} (formats that are not read, such as {first}; save them as JPEG or PNG)")
        for reason, places in self._others.items():
            said.append(f"{len(places)} {reason} (such as {names.shown(places[0])})")
        return "; ".join(said)

    def tell(self, root: object) -> None:
        """Say it once for the data set at `root`, where anything is left out."""
        said = str(self)
        if said:
            notify(f"{root}: images left out: {said}", stacklevel=5)


def tell_nested(root: object, found: list[str]) -> None:
    """Say that folders within folders are taken as people of their own.

    Args:
        root: The data set.
        found: Names of faces whose folders were not given by a label.
    """
    deep = [name for name in found if name.count("/") > 1]
    if deep:
        notify(
            f"{root}: {len(deep)} of {len(found)} images lie deeper than <identity>/<image>: each folder is an "
            f"identity of its own, such as {names.shown(deep[0].rpartition('/')[0])}",
            stacklevel=5,
        )
