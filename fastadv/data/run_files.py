"""The folder of a run as it lies on the disk: whose it is, whether it may be used, whether its images are whole."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastadv.core.differences import difference
from fastadv.core.errors import Error, FileError
from fastadv.core.files import is_temporary, naming, write_atomically
from fastadv.core.lock import FolderLock
from fastadv.core.provenance import versions
from fastadv.data.hashes import KEPT
from fastadv.data.manifest import JOURNAL, PARQUET, ManifestRow
from fastadv.data.names import several

RUN = "run.json"
LOCK = ".lock"
IMAGES = "images"
# What the commands write in a run's folder, and nothing that a user could have put there.
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
)
_log = logging.getLogger("fastadv")


class RunFolderError(Error, ValueError):
    """A folder that cannot take this run; the message names it and says why."""


def image_file(folder: Path, name: str) -> Path:
    """Where the image of a name lies in a run's folder; the name is as `check_image_name` wants it."""
    return folder / IMAGES / f"{name}.png"


def damaged_images(folder: Path, rows: Iterable[ManifestRow]) -> list[str]:
    """The names whose image is gone or is not the one that was written; a row without a hash asks for a file only."""
    found = []
    for row in rows:
        file = image_file(folder, row.name)
        try:
            same = hashlib.sha256(file.read_bytes()).hexdigest() == row.image_hash if row.image_hash else file.is_file()
        except OSError:
            same = False
        if not same:
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


def check_free(path: Path, *, mark: str = RUN, what: str = "run") -> None:
    """Insists that a folder is new, empty or holds what `mark` tells, and that it can be made.

    Raises:
        RunFolderError: It is a file, or holds something else.
        FileError: Its parent cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"out: expected a folder for the {what}, got the file {path}")
    if path.is_dir() and not (path / mark).exists():
        others = sorted(n for n in os.listdir(path) if n not in (LOCK, KEPT) and not is_temporary(n))
        if others:
            raise RunFolderError(
                f"out: expected a new or empty folder, or that of a {what}, got {path}, which has no {mark} "
                f"and holds {several(others)}"
            )
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise FileError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def clear_run(path: Path) -> None:
    """Remove what runs write from a folder that holds one, but for `run.json`; what else lies there stays."""
    for name in _WRITTEN:
        place = path / name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def write_description(path: Path, config: Mapping[str, Any], shown: Mapping[str, str]) -> None:
    """Writes `run.json`, whole or not at all."""
    described = {"config": dict(config), "shown": dict(shown), "versions": versions()}
    text = json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomically(path / RUN, text.encode() + b"\n", fsync=True)


def locked(path: Path) -> FolderLock:
    try:
        return FolderLock(path / LOCK)
    except BlockingIOError as error:
        raise RunFolderError(f"{path}: another process is writing this run") from error
    except OSError as error:
        raise naming(error, path) from error


def check_config(path: Path, wanted: Mapping[str, Any], shown: Mapping[str, str]) -> None:
    """Compares `run.json` with the configuration wanted now."""
    file = path / RUN
    now = versions()
    try:
        saved = json.loads(file.read_bytes())
        config, before, words = dict(saved["config"]), dict(saved["versions"]), dict(saved.get("shown", {}))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunFolderError(
            f"{file}: expected the description of a run, got a damaged file ({type(error).__name__}); "
            "use --fresh or another --out"
        ) from error
    found = difference(config, wanted, where=RUN, shown=(words, shown))
    if found:
        raise RunFolderError(f"{path}: holds another run; {found}")
    changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    if changed:
        _log.warning("%s: continues with other software than it began with: %s", path, ", ".join(changed))
