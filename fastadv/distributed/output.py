"""Output of a run on Ray: a folder that all nodes share, or a URL. Workers write images, the driver the rest."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fastadv.core.files import remove_temporaries, write_atomically
from fastadv.core.notices import notify
from fastadv.core.places import CONNECTIONS, write_bytes
from fastadv.core.remote import RemotePath, is_remote, to_path
from fastadv.data import RunFolder
from fastadv.data.hashes import KEPT
from fastadv.data.manifest import JOURNAL, PARQUET, ManifestRow, iterate_manifest, journal_line
from fastadv.data.names import several
from fastadv.data.run_files import FOUND, IMAGES, RUN, RunFolderError
from fastadv.data.writer import Lost

ROWS = "rows"
"""Parts of the journal of a run at a URL, and its description, until it is finished."""
_LINES, _SECONDS = 1024, 30.0  # of a part of the journal at most


class Output:
    """A folder that all nodes share, into which the driver writes directly.

    Attributes:
        out: The folder or URL of the images.
        folder: The folder of the driver's own files.
    """

    lost: Lost | None = None

    def __init__(self, out: Path, folder: Path) -> None:
        """Use `output_of` instead."""
        self.out, self.folder = out, folder

    def begun(self, run: RunFolder) -> None:
        """The run is open; workers may write after this."""
        run.claim()

    def wrote(self, line: bytes) -> None:
        """A line of the journal is written."""

    def settle(self) -> None:
        """Write all lines that are not written yet, before the driver ends."""

    def finished(self) -> None:
        """All images and the manifest are there."""
        remove_temporaries(self.folder)  # of workers that were killed


class _UrlOutput(Output):
    """A URL: the driver's files are in a temporary folder, and copied to the URL.

    Objects cannot be appended to, so the journal is kept in objects of up to 1,024 lines below ``rows/``, beside the
    description. At the end ``manifest.parquet`` and ``run.json`` are written, and ``rows/`` is removed.
    """

    out: RemotePath

    def __init__(self, out: RemotePath, folder: Path, *, fresh: bool) -> None:
        super().__init__(out, folder)
        self.lost = self._lost
        self._lines: list[bytes] = []
        self._kept = time.monotonic()
        self._tree = out.tree() if out.exists() else {"": {}}
        self._earlier: dict[str, dict[str, bool]] = {}  # a run that goes when the new one begins
        found, rows = self._tree[""], self._tree.get(ROWS, {})
        mark = RUN if RUN in found else f"{ROWS}/{RUN}" if RUN in rows else None
        if mark is None and not set(found) <= {KEPT, *FOUND}:
            raise RunFolderError(
                f"out: expected a new or empty folder, or that of a run, got {out}, which has no {RUN} and holds "
                f"{several(sorted(found))}"
            )
        if mark is not None and fresh:
            self._earlier, self._tree, mark, rows = self._tree, {"": {}}, None, {}
        parts = sorted(name for name in rows if name.endswith(".jsonl"))
        self._part = len(parts)
        if mark is not None:
            self._fetch(mark, parts)

    def _fetch(self, mark: str, parts: list[str]) -> None:
        """Copy the driver's files into the temporary folder, in the form of a run in a folder."""
        for name in (KEPT, *FOUND):
            if name in self._tree[""]:
                write_atomically(self.folder / name, (self.out / name).read_bytes())
        write_atomically(self.folder / RUN, (self.out / mark).read_bytes())
        journal = b"".join((self.out / ROWS / name).read_bytes() for name in parts)
        if mark == RUN:
            write_atomically(self.folder / PARQUET, (self.out / PARQUET).read_bytes())
            rows = list(iterate_manifest(self.folder))
            missing = set(self._lost((row, None) for row in rows))
            if not missing:
                return
            notify(f"{self.out}: images are missing and are generated again: {several(sorted(missing))}")
            (self.folder / PARQUET).unlink()
            journal = b"".join(journal_line(row, 0) for row in rows if row.name not in missing)
        write_atomically(self.folder / JOURNAL, journal)

    def _lost(self, rows: Iterable[tuple[ManifestRow, int | None]]) -> list[str]:
        """The images that are missing; an image that exists is whole, since an object store writes objects whole."""
        places = ((row.name, f"{IMAGES}/{row.name}.png".rpartition("/")) for row, _ in rows)
        return [name for name, (folder, _, file) in places if file not in self._tree.get(folder, {})]

    def _remove(self, tree: Mapping[str, Mapping[str, bool]], *names: str) -> None:
        """Remove files, and all files below folders; a run's marks last, so that a call that ends early is repeated."""
        files = [
            f"{folder}/{name}".lstrip("/")
            for folder, entries in tree.items()
            for name, is_folder in entries.items()
            if not is_folder and (folder or name).partition("/")[0] in names
        ]
        marks = [file for file in files if file in (RUN, f"{ROWS}/{RUN}")]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for part in ([file for file in files if file not in marks], marks):
                list(pool.map(lambda file: (self.out / file).unlink(), part))

    def begun(self, run: RunFolder) -> None:
        super().begun(run)
        self._remove(self._earlier, IMAGES, ROWS, PARQUET, RUN, KEPT, *FOUND)
        self._earlier = {}
        if not run.finished:
            for name in (KEPT, *FOUND):
                if (self.folder / name).is_file():
                    write_bytes(self.out / name, (self.folder / name).read_bytes())
            write_bytes(self.out / ROWS / RUN, (self.folder / RUN).read_bytes())

    def wrote(self, line: bytes) -> None:
        self._lines.append(line)
        if len(self._lines) >= _LINES or time.monotonic() - self._kept > _SECONDS:
            self.settle()

    def settle(self) -> None:
        if self._lines:
            write_bytes(self.out / ROWS / f"{self._part:06d}.jsonl", b"".join(self._lines))
            self._part += 1
            self._lines.clear()
        self._kept = time.monotonic()

    def finished(self) -> None:
        for name in (PARQUET, RUN):
            write_bytes(self.out / name, (self.folder / name).read_bytes())
        self._tree = self.out.tree()
        self._remove(self._tree, ROWS)


def check_shared(out: Path, mark: str) -> None:
    """Raise, in a worker, unless it sees the driver's folder: it would make another one on its own disk.

    Args:
        out: The folder, or a URL.
        mark: A file that the driver has written there.

    Raises:
        RunFolderError: The file is not there.
    """
    if not is_remote(out) and not (out / mark).is_file():
        raise RunFolderError(
            f"out: expected a folder that all nodes share, got {out}, in which {socket.gethostname()} sees no {mark}; "
            "use a shared file system or a URL"
        )


@contextmanager
def output_of(out: Path, *, fresh: bool) -> Iterator[Output]:
    """The output of a run.

    Args:
        out: A folder that all nodes see under this path, or a URL.
        fresh: Whether to remove the run that a URL holds.

    Raises:
        RunFolderError: A URL holds something else.
        OSError: A URL cannot be read or written.
    """
    out = to_path(out)
    if not isinstance(out, RemotePath):
        out = out.absolute()  # workers are elsewhere
        yield Output(out, out)
        return
    with TemporaryDirectory(prefix="fastadv-") as folder:
        try:
            yield _UrlOutput(out, Path(folder), fresh=fresh)
        except RunFolderError as error:
            raise RunFolderError(str(error).replace(folder, str(out))) from error
