"""The folder of a run or of a study on the disk: whose it is, whether it may be used, whether its images are whole."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastadv.core.differences import difference
from fastadv.core.errors import UNREADABLE, ArgumentError, Error, FileError
from fastadv.core.fields import check_int
from fastadv.core.files import is_temporary, naming, remove_temporaries, write_atomically
from fastadv.core.lock import FolderLock
from fastadv.core.provenance import versions
from fastadv.data.hashes import KEPT
from fastadv.data.manifest import JOURNAL, PARQUET, ManifestRow
from fastadv.data.names import several

RUN = "run.json"
LOCK = ".lock"
IMAGES = "images"
SHARDS = "shards"
"""Parts of a run that several processes compute, until they are merged."""
ERROR = "error.txt"
"""Why the last call that had begun to write failed; gone once the run is continued."""
FOUND = ("landmarks.txt", "gallery-landmarks.txt")
"""Landmarks that were found in the photographs of a run, and of its gallery: kept before the run itself begins."""


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """What a folder of ours is of.

    Attributes:
        mark: The file that describes it.
        what: What messages call it.
        written: What the commands write there, and nothing that a user could have put there; removed in this order. A
            run's description is none of it: it is written anew at once.
    """

    mark: str
    what: str
    written: tuple[str, ...]


_WRITTEN = (
    IMAGES,
    JOURNAL,
    PARQUET,
    KEPT,
    "verification.json",
    "roc.svg",
    "identification.json",
    "identification.svg",
    "transfer.json",
    "untargeted.json",
    "cells",
    "defences.json",
    "clean",
    "scores",
    "made",
    "report.html",
    SHARDS,
    ERROR,
)
RUN_FOLDER = FolderKind(mark=RUN, what="run", written=_WRITTEN)
_MOST_IMAGES = 1 << 40
ALIGNED = "align.json"  # describes a folder of aligned faces
_log = logging.getLogger("fastadv")


class RunFolderError(Error, ValueError):
    """A folder that cannot take this run; the message names it and says why."""


def image_file(folder: Path, name: str) -> Path:
    """Where the image of a name lies in a run's folder; the name is as `check_image_name` wants it."""
    return folder / IMAGES / f"{name}.png"


def damaged_images(folder: Path, rows: Iterable[ManifestRow]) -> list[str]:
    """The names whose image is gone or is not the one that was written; a row without a hash asks for a file only."""
    return lost_images(folder, ((row, None) for row in rows))


def lost_images(folder: Path, rows: Iterable[tuple[ManifestRow, int | None]]) -> list[str]:
    """As ``damaged_images``, of rows with the sizes of their files, where these are known."""
    found = []
    for row, size in rows:
        try:
            data = image_file(folder, row.name).read_bytes()
        except OSError:
            found.append(row.name)
            continue
        same = not row.image_hash or hashlib.sha256(data).hexdigest() == row.image_hash
        if not same or size not in (None, len(data)):
            found.append(row.name)
    return found


def check_images(folder: Path, rows: Iterable[ManifestRow]) -> None:
    """Insists that a run's images are those that were written, for who reads them.

    Raises:
        RunFolderError: Some are gone or damaged; the first few are named.
    """
    damaged = damaged_images(folder, rows)
    if damaged:
        raise RunFolderError(
            f"{folder}: images are missing or damaged: {several(damaged)}; the command of that run generates them again"
        )


def check_free(path: Path, kind: FolderKind = RUN_FOLDER, *, besides: Sequence[str] = ()) -> None:
    """Insists that a folder is new, empty or one of its kind, and that it can be made.

    Args:
        path: The folder.
        kind: Its kind.
        besides: What it may hold without a description.

    Raises:
        RunFolderError: It is a file, or holds something else.
        FileError: Its parent cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"out: expected a folder for the {kind.what}, got the file {path}")
    if path.is_dir() and not (path / kind.mark).exists():
        others = sorted(n for n in os.listdir(path) if n not in (LOCK, KEPT, *FOUND, *besides) and not is_temporary(n))
        if others:
            raise RunFolderError(
                f"out: expected a new or empty folder, or that of a {kind.what}, got {path}, which has no {kind.mark} "
                f"and holds {several(others)}"
            )
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise FileError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def clear(path: Path, kind: FolderKind = RUN_FOLDER) -> None:
    """Remove what the commands write from a folder of its kind; what else lies there stays."""
    for name in kind.written:
        place = path / name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def plain_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON values, as a file would give them back.

    Raises:
        ValueError: It is not JSON.
    """
    if not isinstance(config, Mapping):
        raise ArgumentError(f"config: expected a mapping of JSON values, got {type(config).__name__}")
    try:
        plain = json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"config: expected JSON values, got others: {error}") from error
    return dict(plain)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a folder says of itself.

    Attributes:
        config: Everything that the results depend on: the identity.
        shown: How messages call values of it.
        versions: The software that it was begun with.
        images: How many images the run is to have, of a run in shards all of them; None: not said. No part of the
            identity, from which it follows.
    """

    config: Mapping[str, Any]
    shown: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=versions)
    images: int | None = None

    @staticmethod
    def read(path: Path, kind: FolderKind = RUN_FOLDER) -> Description:
        """Reads the file that describes a folder.

        Raises:
            RunFolderError: It is missing or damaged.
        """
        file = path / kind.mark
        try:
            saved = json.loads(file.read_bytes())
            config, before, words = dict(saved["config"]), dict(saved["versions"]), dict(saved.get("shown", {}))
            images = saved.get("images")
            if images is not None:
                check_int("images", images, 0, _MOST_IMAGES)
        except UNREADABLE as error:
            raise RunFolderError(
                f"{file}: expected the description of a {kind.what}, got a damaged file ({type(error).__name__}); "
                "use --fresh or another --out"
            ) from error
        return Description(config=config, shown=words, versions=before, images=images)

    def write(self, path: Path, kind: FolderKind = RUN_FOLDER) -> None:
        """Writes the file, whole or not at all."""
        described: dict[str, Any] = {
            "config": dict(self.config),
            "shown": dict(self.shown),
            "versions": dict(self.versions),
        }
        if self.images is not None:
            described["images"] = self.images
        text = json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False)
        write_atomically(path / kind.mark, text.encode() + b"\n", fsync=True)


def locked(path: Path, kind: FolderKind = RUN_FOLDER) -> FolderLock:
    """The folder for this process alone.

    Raises:
        RunFolderError: Another process has it.
        FileError: It cannot be written.
    """
    try:
        return FolderLock(path / LOCK)
    except BlockingIOError as error:
        raise RunFolderError(
            f"{path}: expected a folder that no other process writes to, got a {kind.what} that is being written"
        ) from error
    except OSError as error:
        raise naming(error, path) from error


def check_config(
    path: Path, wanted: Mapping[str, Any], shown: Mapping[str, str], kind: FolderKind = RUN_FOLDER
) -> None:
    """Compares a folder's description with the configuration wanted now."""
    saved, now = Description.read(path, kind), versions()
    found = difference(saved.config, wanted, where=kind.mark, shown=(saved.shown, shown))
    if found:
        raise RunFolderError(f"{path}: holds another {kind.what}; {found}")
    before = saved.versions
    changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    if changed:
        _log.warning("%s: continues with other software than it began with: %s", path, ", ".join(changed))


@contextmanager
def held(
    path: Path,
    kind: FolderKind,
    config: Mapping[str, Any] | None = None,
    *,
    shown: Mapping[str, str] | None = None,
    beside: Mapping[str, bytes] | None = None,
    fresh: bool = False,
) -> Iterator[None]:
    """A folder of a kind for this process alone: begun with a configuration, or gone on with under the same.

    A folder that was made here and got nothing but its description goes again where an error ends the call.

    Args:
        path: The folder.
        kind: What it is of.
        config: Everything that the results depend on, JSON values; None: as the folder says.
        shown: How messages call values of the configuration, by their dotted names.
        beside: Files that are written before the description is.
        fresh: Remove what the folder holds of its kind, and begin anew.

    Raises:
        RunFolderError: The folder holds something else or another configuration (the first differing part is named), or
            another process writes it.
        OSError: The folder cannot be made or written.
    """
    check_free(path, kind)
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    lock = locked(path, kind)
    try:
        remove_temporaries(path)
        if fresh and (path / kind.mark).exists():
            clear(path, kind)
        begun = not (path / kind.mark).exists()
        if config is not None and begun:
            for name, data in (beside or {}).items():
                write_atomically(path / name, data)
            Description(config=plain_json(config), shown=shown or {}).write(path, kind)
        elif config is not None:
            check_config(path, plain_json(config), shown or {}, kind)
        try:
            yield
        except BaseException:
            if begun and {entry.name for entry in path.iterdir()} <= {kind.mark, KEPT, LOCK, *FOUND}:
                for name in (KEPT, kind.mark):
                    (path / name).unlink(missing_ok=True)
            raise
    finally:
        lock.release()
        if made and not any(path.iterdir()):
            path.rmdir()
