"""The output folder of a run: crash-safe, resumable, the same bytes whatever happened in between."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.core.errors import ArgumentError, Error
from fastadv.data.faces import several
from fastadv.data.files import is_temporary, naming, write_all, write_atomically
from fastadv.data.images import encode_png
from fastadv.data.lock import FolderLock
from fastadv.data.manifest import (
    JOURNAL,
    PARQUET,
    ManifestRow,
    journal_line,
    read_journal,
    read_manifest,
    to_parquet,
)
from fastadv.data.provenance import versions

RUN = "run.json"
LOCK = ".lock"
IMAGES = "images"
_ROWS_PER_SYNC = 64
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_log = logging.getLogger("fastadv")


class RunFolderError(Error, ValueError):
    """A folder that cannot take this run; the message names it and says why."""


class RunFolder:
    """A folder that receives the images and the manifest of one run.

    `run.json` holds the configuration and the versions, `images/<name>.png` the images, `manifest.jsonl` a
    line per image as they come, and `manifest.parquet`, after `finish`, all rows in order. What `done`
    lists is final: a run that was killed is opened again with the same configuration and makes the rest. No
    file holds a time or depends on the order of completion. Use `open`, as a context manager.

    Attributes:
        path: The folder.
        config: The configuration, as plain JSON values.
        finished: Whether the Parquet file is written; nothing can be added then.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], lock: FolderLock) -> None:
        """Use `RunFolder.open`."""
        self.path = path
        self.config = dict(config)
        self._folder_lock = lock
        self._lock = threading.Lock()
        self._images = path / IMAGES
        self._known_folders: set[Path] = set()
        self._pending: set[str] = set()
        self._journal: int | None = None
        self._journal_size = 0
        self._since_sync = 0
        self._closed = False
        self.finished = (path / PARQUET).exists()
        self._done = self._recover()
        if not self.finished:
            self._images.mkdir(exist_ok=True)
            self._journal = os.open(path / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._journal_size = os.fstat(self._journal).st_size

    @classmethod
    def open(cls, path: str | os.PathLike[str], config: Mapping[str, Any]) -> RunFolder:
        """Makes the folder, or opens it again to go on.

        Args:
            path: A new or empty folder, or one of a run with the same configuration.
            config: Everything that the result depends on: JSON values.

        Raises:
            RunFolderError: The folder holds something else, a run with another configuration (the first
                differing key is named), or is in use by another writer.
            ValueError: The configuration is not JSON.
            OSError: The folder cannot be made or written.
        """
        path = Path(path)
        wanted = _plain_json(config)
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path}: this is a file, expected a folder for the run")
        path.mkdir(parents=True, exist_ok=True)
        if not (path / RUN).exists():
            others = sorted(n for n in os.listdir(path) if n != LOCK and not is_temporary(n))
            if others:
                raise RunFolderError(f"{path}: not empty and not a run (no {RUN}): it holds {several(others)}")
        try:
            lock = FolderLock(path / LOCK)
        except BlockingIOError as error:
            raise RunFolderError(f"{path}: another process is writing this run") from error
        try:
            _settle_config(path, wanted)
            return cls(path, wanted, lock)
        except BaseException:
            lock.release()
            raise

    @property
    def done(self) -> frozenset[str]:
        """The names whose image and row are final."""
        with self._lock:
            return frozenset(self._done)

    def image_path(self, name: str) -> Path:
        """Where the image of a name lies: `images/<name>.png`.

        Raises:
            ValueError: The name would leave the folder, or is no name.
        """
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name:
            raise ArgumentError(f"name: expected 'identity/file' without '.', '..' or a leading '/', got {name!r}")
        return self._images.joinpath(*parts[:-1], parts[-1] + ".png")

    def write(self, row: ManifestRow, png: NDArray[np.uint8] | bytes) -> None:
        """Writes an image, then its row; after that the name is done. May be called from several threads.

        Args:
            row: What to say about the image.
            png: The image, (H, W, 3) uint8, or the bytes of its PNG file.

        Raises:
            ValueError: The name is done already or would leave the folder, or `png` is no image.
            RunFolderError: The run is finished or the folder closed.
            OSError: With the file's name, for example when the disk is full; nothing half-written stays.
        """
        path = self.image_path(row.name)
        data = png if isinstance(png, bytes) else encode_png(png)
        if not data.startswith(_PNG_SIGNATURE):
            raise ArgumentError(f"png: expected a PNG file, got bytes that start with {data[:8]!r}")
        with self._lock:
            self._require_writable()
            if row.name in self._done or row.name in self._pending:
                raise ArgumentError(f"name: {row.name} is written already")
            self._pending.add(row.name)
        try:
            self._make_folder(path.parent)
            write_atomically(path, data)
            self._append(row, len(data))
        finally:
            with self._lock:
                self._pending.discard(row.name)

    def finish(self, order: Iterable[str]) -> None:
        """Writes all rows to `manifest.parquet` in the given order and removes the journal.

        Finishing again with the same order does nothing.

        Args:
            order: Every name of the run, once.

        Raises:
            RunFolderError: Names are missing or unexpected (the first few are named), images are being
                written, or the folder is closed.
            OSError: With the file's name; the run stays unfinished.
        """
        names = list(order)
        with self._lock:
            if self._closed or self._pending:
                raise RunFolderError(f"{self.path}: " + ("closed" if self._closed else "images are being written"))
            listed = set(names)
            for problem, which in (
                ("not done yet", [name for name in names if name not in self._done]),
                ("done but not in the order", sorted(self._done - listed)),
            ):
                if which:
                    raise RunFolderError(f"{self.path}: {problem}: {several(which)}")
            if len(listed) != len(names):
                raise RunFolderError(f"{self.path}: the order names an image twice")
            if self.finished:
                if [row.name for row in read_manifest(self.path)] != names:
                    raise RunFolderError(f"{self.path}: finished already in another order")
                return
            rows = {row.name: row for row in read_manifest(self.path / JOURNAL)}
            write_atomically(self.path / PARQUET, to_parquet(rows[name] for name in names), fsync=True)
            self._close_journal()
            (self.path / JOURNAL).unlink()
            self.finished = True

    def close(self) -> None:
        """Gives the folder free for other writers; a second call does nothing."""
        with self._lock:
            self._closed = True
            try:
                self._close_journal()
            finally:
                self._folder_lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _recover(self) -> set[str]:
        """What is done, after clearing up what a crash left."""
        journal = self.path / JOURNAL
        if self.finished:
            journal.unlink(missing_ok=True)  # died between the two steps of `finish`
            return {row.name for row in read_manifest(self.path)}
        _remove_temporaries(self.path)
        if not journal.exists():
            return set()
        rows = read_journal(journal, damaged=lambda where, why: _log.warning("%s: %s; redone", where, why))
        kept = {row.name: (row, size) for row, size in rows if self._has_image(row.name, size)}
        text = b"".join(journal_line(row, size) for row, size in kept.values())
        if text != journal.read_bytes():
            write_atomically(journal, text, fsync=True)
        return set(kept)

    def _has_image(self, name: str, size: int) -> bool:
        try:
            return self.image_path(name).stat().st_size == size
        except (OSError, ValueError):
            return False

    def _make_folder(self, folder: Path) -> None:
        if folder in self._known_folders:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise naming(error, folder) from error
        if not folder.resolve().is_relative_to(self._images.resolve()):
            raise ArgumentError(f"name: {folder} is a link to outside of the run's folder")
        self._known_folders.add(folder)

    def _append(self, row: ManifestRow, png_bytes: int) -> None:
        line = journal_line(row, png_bytes)
        with self._lock:
            self._require_writable()
            assert self._journal is not None  # writable
            try:
                write_all(self._journal, line)
                self._since_sync += 1
                if self._since_sync >= _ROWS_PER_SYNC:
                    self._since_sync = 0
                    os.fsync(self._journal)
            except BaseException as error:
                # A part of a line would spoil the next one.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._journal, self._journal_size)
                if isinstance(error, OSError):
                    raise naming(error, self.path / JOURNAL) from error
                raise
            self._journal_size += len(line)
            self._done.add(row.name)

    def _require_writable(self) -> None:
        if self._closed or self.finished:
            raise RunFolderError(f"{self.path}: the run is {'closed' if self._closed else 'finished'}")

    def _close_journal(self) -> None:
        if self._journal is not None:
            descriptor, self._journal = self._journal, None
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EROFS):
                    raise naming(error, self.path / JOURNAL) from error
            finally:
                os.close(descriptor)


def _plain_json(config: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise ArgumentError(f"config: expected a mapping of JSON values, got {type(config).__name__}")
    try:
        plain = json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"config: expected JSON values: {error}") from error
    return dict(plain)


def _settle_config(path: Path, wanted: dict[str, Any]) -> None:
    """Writes `run.json`, or compares it with the configuration wanted now."""
    file = path / RUN
    now = versions()
    if not file.exists():
        _remove_temporaries(path)
        text = json.dumps({"config": wanted, "versions": now}, indent=2, sort_keys=True, ensure_ascii=False)
        write_atomically(file, text.encode() + b"\n", fsync=True)
        return
    try:
        saved = json.loads(file.read_bytes())
        config, before = dict(saved["config"]), dict(saved["versions"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{file}: not the description of a run: {error!r}") from error
    difference = _first_difference(config, wanted, "")
    if difference:
        raise RunFolderError(f"{path}: holds a run with another configuration: {difference}")
    changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    if changed:
        _log.warning("%s: goes on with other software than it began with: %s", path, ", ".join(changed))


def _first_difference(saved: Any, wanted: Any, key: str) -> str | None:
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for name in sorted({*saved, *wanted}):
            inner = f"{key}.{name}" if key else name
            if name not in saved or name not in wanted:
                there, value = ("now", wanted[name]) if name in wanted else ("in the run", saved[name])
                return f"{inner}: {value!r} only {there}"
            difference = _first_difference(saved[name], wanted[name], inner)
            if difference:
                return difference
        return None
    # 1 == True == 1.0 in Python, not in a configuration.
    if json.dumps(saved, sort_keys=True) != json.dumps(wanted, sort_keys=True):
        return f"{key}: {saved!r} in the run, {wanted!r} now"
    return None


def _remove_temporaries(path: Path) -> None:
    for folder, _, files in os.walk(path):
        for name in files:
            if is_temporary(name):
                (Path(folder) / name).unlink(missing_ok=True)
