"""The output folder of a run: crash-safe, resumable, the same bytes whatever happened in between."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.core.closing import Closing
from fastadv.core.errors import ArgumentError, Error
from fastadv.core.files import naming, remove_temporaries, write_all, write_atomically
from fastadv.core.lock import FolderLock
from fastadv.core.notices import notify
from fastadv.data import manifest, run_files
from fastadv.data.images import encode_png
from fastadv.data.names import several
from fastadv.data.run_files import RunFolderError

_ROWS_PER_SYNC = 64
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_log = logging.getLogger("fastadv")
Lost = Callable[[Iterable[tuple[manifest.ManifestRow, int | None]]], list[str]]
"""Which images are gone or damaged, of rows with the sizes of their files where these are known."""


class RunFolder(Closing):
    """A folder that receives the images and the manifest of one run.

    `run.json` holds the configuration and the versions, `images/<name>.png` the images, `manifest.jsonl` a
    line per image as they come, and `manifest.parquet`, after `finish`, all rows in order. What `done`
    lists is final: a run that was killed is opened again with the same configuration and makes the rest; images
    that are gone or no longer what was written are not done, also of a finished run. No file holds a time or depends
    on the order of completion. Nothing is made on the disk before the first `write` (or `claim`), so that a call that
    fails before leaves no folder. Use `open`, as a context manager.

    Attributes:
        path: The folder.
        config: The configuration, as plain JSON values.
        finished: Whether the Parquet file is written; nothing can be added then.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        *,
        shown: Mapping[str, str],
        beside: Mapping[str, bytes],
        images: int | None,
        lost: Lost | None,
        lock: FolderLock | None,
    ) -> None:
        """Use `RunFolder.open`."""
        self.path = path
        self._lost = lost or partial(run_files.lost_images, path)
        self.config = dict(config)
        self._shown, self._beside, self._count = dict(shown), dict(beside), images
        self._folder_lock = lock
        self._lock = threading.Lock()
        self._images = path / run_files.IMAGES
        self._known_folders: set[Path] = set()
        self._pending: set[str] = set()
        self._journal: int | None = None
        self._journal_size = 0
        self._since_sync = 0
        self._closed = False
        self.finished = False
        self._done: set[str] = set()
        if lock is not None:
            self._resume()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        shown: Mapping[str, str] | None = None,
        beside: Mapping[str, bytes] | None = None,
        images: int | None = None,
        lost: Lost | None = None,
        fresh: bool = False,
    ) -> RunFolder:
        """Opens a run to go on, or prepares a new one.

        Args:
            path: A new or empty folder, or one of a run with the same configuration.
            config: Everything that the result depends on: JSON values.
            shown: How messages call values of the configuration, by their dotted names.
            beside: Files that are written next to `run.json` when it is.
            images: How many images the run is to have, noted in `run.json`; None: not known.
            lost: Says which images are gone, where they lie elsewhere than in the folder.
            fresh: Remove what a run has left in the folder, whatever its configuration, and begin anew.

        Raises:
            RunFolderError: The folder holds something else, a run with another configuration (the first
                differing part is named), or is in use by another writer.
            ValueError: The configuration is not JSON.
            OSError: The folder cannot be made or written.
        """
        path = Path(path)
        wanted = run_files.plain_json(config)
        run_files.check_free(path)
        lock = None
        if (path / run_files.RUN).exists():
            lock = run_files.locked(path)
            try:
                if fresh:  # the folder stays a run's, so that other files in it are no reason to refuse it
                    run_files.clear(path)
                    run_files.Description(config=wanted, shown=shown or {}, images=images).write(path)
                else:
                    run_files.check_config(path, wanted, shown or {})
            except BaseException:
                lock.release()
                raise
        try:
            return cls(path, wanted, shown=shown or {}, beside=beside or {}, images=images, lost=lost, lock=lock)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    def claim(self) -> None:
        """Makes the folder this run's, where that has not happened yet: for callers with files of their own in it.

        Raises:
            RunFolderError: Somebody else has written to it since `open`, or the folder is closed.
            OSError: The folder cannot be made or written.
        """
        with self._lock:
            self._claim()

    def _claim(self) -> None:
        if self._folder_lock is not None:
            return
        if self._closed:
            raise RunFolderError(f"{self.path}: expected an open run, got a closed one")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise naming(error, self.path) from error
        lock = run_files.locked(self.path)
        try:
            run_files.check_free(self.path)
            if (self.path / run_files.RUN).exists():
                run_files.check_config(self.path, self.config, self._shown)
            else:
                remove_temporaries(self.path)
                run_files.Description(config=self.config, shown=self._shown, images=self._count).write(self.path)
            self._folder_lock = lock
            self._resume()
        except BaseException:
            self._folder_lock = None
            lock.release()
            raise

    def _resume(self) -> None:
        """Take up what the folder holds; it is locked and of this configuration."""
        (self.path / run_files.ERROR).unlink(missing_ok=True)
        self.finished = (self.path / manifest.PARQUET).exists()
        self._done = self._recover()
        for name, data in self._beside.items():
            if not (self.path / name).exists() or (self.path / name).read_bytes() != data:
                write_atomically(self.path / name, data)
        if not self.finished:
            self._images.mkdir(exist_ok=True)
            self._journal = os.open(
                self.path / manifest.JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
            )
            self._journal_size = os.fstat(self._journal).st_size

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
        manifest.check_image_name(name)
        return run_files.image_file(self.path, name)

    def write(self, row: manifest.ManifestRow, png: NDArray[np.uint8] | bytes) -> None:
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
        row = replace(row, image_hash=hashlib.sha256(data).hexdigest())
        with self._lock:
            self._claim()
            self._require_writable()
            if row.name in self._done or row.name in self._pending:
                raise ArgumentError(f"name: expected one that is not written yet, got {row.name}")
            self._pending.add(row.name)
        try:
            self._make_folder(path.parent)
            write_atomically(path, data)
            self._append(row, len(data))
        finally:
            with self._lock:
                self._pending.discard(row.name)

    def add(self, row: manifest.ManifestRow, png_bytes: int) -> bool:
        """Writes the row of an image that another process has written, with the size of its file.

        Returns:
            Whether the name was not done already, which changes nothing.

        Raises:
            RunFolderError, OSError: As `write`.
        """
        with self._lock:
            self._claim()
            if row.name in self._done:
                return False
        self._append(row, png_bytes)
        return True

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
                got = "a closed one" if self._closed else "one whose images are being written"
                raise RunFolderError(f"{self.path}: expected an open run without unfinished images, got {got}")
            self._claim()
            listed = set(names)
            for problem, which in (
                ("not done yet", [name for name in names if name not in self._done]),
                ("done but not in the order", sorted(self._done - listed)),
            ):
                if which:
                    raise RunFolderError(f"{self.path}: {problem}: {several(which)}")
            if len(listed) != len(names):
                raise RunFolderError(f"{self.path}: expected each image once in the order, got one twice")
            if self.finished:
                if [row.name for row in manifest.iterate_manifest(self.path)] != names:
                    raise RunFolderError(f"{self.path}: expected the order in which the run was finished, got another")
                return
            rows = manifest.in_order(self.path / manifest.JOURNAL, names)
            manifest.write_parquet(rows, self.path / manifest.PARQUET)
            self._close_journal()
            (self.path / manifest.JOURNAL).unlink()
            self.finished = True

    def close(self) -> None:
        """Gives the folder free for other writers; a second call does nothing."""
        with self._lock:
            self._closed = True
            try:
                self._close_journal()
            finally:
                if self._folder_lock is not None:
                    self._folder_lock.release()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and self._folder_lock is not None:
            said = str(error) if isinstance(error, (Error, OSError)) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(OSError):  # the disk may be full
                write_atomically(self.path / run_files.ERROR, " ".join(said.split()).encode() + b"\n")
        super().__exit__(kind, error, trace)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _recover(self) -> set[str]:
        """What is done, after clearing up what a crash left and looking at every image."""
        journal = self.path / manifest.JOURNAL
        remove_temporaries(self.path)
        if self.finished:
            journal.unlink(missing_ok=True)  # died between the two steps of `finish`
            names: set[str] = set()
            try:
                damaged = self._lost((row, None) for row in _noted(manifest.iterate_manifest(self.path), names))
            except manifest.ManifestError as error:
                notify(f"{error}; all images are generated again")
                self._reopen([])
                return set()
            if not damaged:
                return names
            notify(f"{self.path}: images are missing or damaged and are generated again: {several(damaged)}")
            names.difference_update(damaged)
            self._reopen(row for row in manifest.iterate_manifest(self.path) if row.name in names)
        if not journal.exists():
            return set()
        found = manifest.read_journal(journal, damaged=lambda where, why: _log.warning("%s: %s; redone", where, why))
        held = {row.name: (row, size) for row, size, _ in found}
        for name in self._lost(list(held.values())):
            del held[name]
        text = b"".join(manifest.journal_line(row, size) for row, size in held.values())
        if text != journal.read_bytes():
            write_atomically(journal, text, fsync=True)
        return set(held)

    def _reopen(self, rows: Iterable[manifest.ManifestRow]) -> None:
        """An unfinished run with these rows in place of the finished one."""
        lines = (manifest.journal_line(row, run_files.image_file(self.path, row.name).stat().st_size) for row in rows)
        write_atomically(self.path / manifest.JOURNAL, b"".join(lines), fsync=True)
        (self.path / manifest.PARQUET).unlink()
        self.finished = False

    def _make_folder(self, folder: Path) -> None:
        if folder in self._known_folders:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise naming(error, folder) from error
        if not folder.resolve().is_relative_to(self._images.resolve()):
            raise ArgumentError(f"name: expected a folder inside of the run's, got {folder}, a link to outside")
        self._known_folders.add(folder)

    def _append(self, row: manifest.ManifestRow, png_bytes: int) -> None:
        line = manifest.journal_line(row, png_bytes)
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
                    raise naming(error, self.path / manifest.JOURNAL) from error
                raise
            self._journal_size += len(line)
            self._done.add(row.name)

    def _require_writable(self) -> None:
        if self._closed or self.finished:
            raise RunFolderError(
                f"{self.path}: expected a run that is being written, got a "
                f"{'closed' if self._closed else 'finished'} one"
            )

    def _close_journal(self) -> None:
        if self._journal is not None:
            descriptor, self._journal = self._journal, None
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EROFS):
                    raise naming(error, self.path / manifest.JOURNAL) from error
            finally:
                os.close(descriptor)


def _noted(rows: Iterable[manifest.ManifestRow], names: set[str]) -> Iterator[manifest.ManifestRow]:
    """The rows, whose names are put into a set."""
    for row in rows:
        names.add(row.name)
        yield row
