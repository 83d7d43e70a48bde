"""A run in shards: each takes every N-th image of the run's list, into a folder of its own below the run's."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastadv.core.differences import difference
from fastadv.core.errors import ArgumentError
from fastadv.core.files import TEMPORARY_SUFFIX, remove_temporaries, write_atomically
from fastadv.core.numbers import parse_shard
from fastadv.data.kept_landmarks import is_found_list
from fastadv.data.manifest import PARQUET
from fastadv.data.run_files import FOUND, IMAGES, RUN, SHARDS, Description, RunFolderError, check_free, locked

Item = TypeVar("Item")
_NAME = re.compile(r"0*([0-9]{1,6})-of-([0-9]{1,6})")  # up to `MOST_SHARDS`


@dataclass(frozen=True, kw_only=True, order=True)
class Shard:
    """One of ``count`` shards of a run.

    Attributes:
        number: Which one, from 1.
        count: How many there are.
    """

    number: int
    count: int

    @staticmethod
    def parse(text: str) -> Shard:
        """A shard from ``"3/16"``.

        Raises:
            ValueError: As ``parse_shard``.
        """
        number, count = parse_shard(text)
        return Shard(number=number, count=count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """Of its folder: ``"03-of-16"``."""
        return f"{self.number:0{len(str(self.count))}}-of-{self.count}"

    def folder(self, run: Path) -> Path:
        """Its folder below the run's."""
        return run / SHARDS / self.name

    def size(self, images: int) -> int:
        """How many of a run's images it makes."""
        return len(range(self.number - 1, images, self.count))

    def part(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every ``count``-th item of the run's list.

        Raises:
            ValueError: There are fewer items than shards.
        """
        if len(items) < self.count:
            raise ArgumentError(f"shard: expected at most one for each of the {len(items)} images, got {self}")
        return items[self.number - 1 :: self.count]

    def identity(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The identity of this part of a run with an identity."""
        return {**config, "shard": str(self)}

    def take_landmarks(self, run: Path) -> None:
        """Take over the landmarks that the run or another shard has found, so that they are not looked for again.

        Raises:
            OSError: They cannot be written.
        """
        own = self.folder(run)
        for name in FOUND:
            places = (run, *(shard.folder(run) for shard in found_shards(run)))
            found = next((place / name for place in places if is_found_list(place / name)), None)
            if found is not None and not (own / name).exists():
                own.mkdir(parents=True, exist_ok=True)
                write_atomically(own / name, found.read_bytes(), fsync=True)

    def check_folder(self, run: Path) -> None:
        """Insists that a folder, of which ``check_place`` holds, can take a shard of this number.

        Raises:
            RunFolderError: It holds a run, or shards of another number.
        """
        if (run / RUN).exists():
            raise RunFolderError(
                f"{run}: expected a folder of shards, got one with a run; leave --shard out or use another --out"
            )
        for other in begun_shards(run):
            if other.count != self.count:
                raise RunFolderError(
                    f"{run}: expected shards of {other.count}, such as {other.name}, got {self}; remove {run / SHARDS} "
                    "or use another --out"
                )

    def check(self, run: Path, config: Mapping[str, Any], shown: Mapping[str, str], *, fresh: bool = False) -> None:
        """Insists that a folder, of which ``check_place`` holds, can take this shard of a run with an identity.

        Args:
            run: The run's folder.
            config: The identity of the whole run.
            shown: How messages call values of it.
            fresh: Whether shards of another run may lie there, which are to be begun anew too.

        Raises:
            RunFolderError: As ``check_folder``, or it holds shards of another run.
        """
        self.check_folder(run)
        for other in () if fresh else begun_shards(run):
            saved = Description.read(other.folder(run))
            where, words = f"{SHARDS}/{other.name}/{RUN}", (saved.shown, shown)
            found = difference(whole(saved.config), config, where=where, shown=words)
            if found:
                raise RunFolderError(f"{run}: holds shards of another run; {found}")


def check_place(run: Path) -> None:
    """Insists that a folder is new, empty, a run, or holds shards, of which some may be merged.

    Raises:
        RunFolderError, FileError: As ``check_free``.
    """
    check_free(run, besides=(SHARDS, IMAGES, PARQUET) if (run / SHARDS).is_dir() else ())


def whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of the run that a shard with an identity is of."""
    return {key: value for key, value in config.items() if key != "shard"}


def set_aside(run: Path) -> None:
    """Give the shards a temporary name, all at once: the next call that opens the run removes them.

    Raises:
        OSError: The folder cannot be written.
    """
    os.replace(run / SHARDS, run / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")


def discard_shards(run: Path) -> None:
    """Remove all shards, which nobody may be writing.

    Raises:
        RunFolderError: Somebody is.
        OSError: The folder cannot be written.
    """
    with ExitStack() as locks:
        for shard in found_shards(run):
            locks.callback(locked(shard.folder(run)).release)
        if (run / SHARDS).is_dir():
            set_aside(run)
            remove_temporaries(run)


def found_shards(run: Path) -> list[Shard]:
    """The shards that have a folder, in order."""
    try:
        names = os.listdir(run / SHARDS)
    except OSError:
        return []
    matches = (_NAME.fullmatch(name) for name in names)
    shards = {Shard(number=int(m[1]), count=int(m[2])) for m in matches if m}
    return sorted(shard for shard in shards if 1 <= shard.number <= shard.count and shard.name in names)


def begun_shards(run: Path) -> list[Shard]:
    """Those of ``found_shards`` with a description; without one, a folder has landmarks at most."""
    return [shard for shard in found_shards(run) if (shard.folder(run) / RUN).is_file()]


def known_folder(run: Path, shard: Shard | None = None) -> Path:
    """The folder whose settled choices and hashes a run, or a shard, begins with: its own, the run's, a shard's."""
    own = () if shard is None else (shard.folder(run),)
    places = (*own, run, *(each.folder(run) for each in begun_shards(run)))
    return next((place for place in places if (place / RUN).is_file()), run)
