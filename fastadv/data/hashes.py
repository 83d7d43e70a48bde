"""Content hashes of image files that are computed once: kept by name with what tells that a file has not changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastadv.core.errors import UNREADABLE
from fastadv.core.remote import RemotePath

KEPT = ".hashes.json"

Stamp = tuple[int, int, int, int]
"""Size, time of modification and of the inode's change in nanoseconds, and number of the inode; of a URL as of
`RemotePath.stamp`."""


def stamp_of(path: str | os.PathLike[str]) -> Stamp | None:
    """What changes when a file does; None where it cannot be asked."""
    try:
        if isinstance(path, RemotePath):
            return path.stamp()
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@dataclass(frozen=True, kw_only=True)
class KnownHashes:
    """SHA-256 by a key such as ``faces:person/file``, each valid for one stamp of its file.

    Attributes:
        entries: Keys with stamp and hash.
    """

    entries: dict[str, tuple[Stamp, str]] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> KnownHashes:
        """What an earlier run has kept in its folder; empty where that is nothing readable."""
        try:
            saved = json.loads((folder / KEPT).read_bytes())
            entries = {str(key): (tuple(map(int, stamp)), str(digest)) for key, (stamp, digest) in saved.items()}
        except UNREADABLE:
            return KnownHashes()
        return KnownHashes(entries={key: value for key, value in entries.items() if len(value[0]) == 4})  # type: ignore[misc]

    def find(self, key: str, stamp: Stamp | None) -> str | None:
        """The hash of a key, if its file is as it was."""
        kept = self.entries.get(key)
        return kept[1] if kept is not None and stamp is not None and kept[0] == stamp else None

    def keep(self, key: str, stamp: Stamp | None, digest: str) -> None:
        """Remember a hash; without a stamp it is not kept."""
        if stamp is not None:
            self.entries[key] = (stamp, digest)

    def to_bytes(self) -> bytes:
        """The file's content."""
        plain: Mapping[str, object] = {key: [list(stamp), digest] for key, (stamp, digest) in self.entries.items()}
        return json.dumps(plain, sort_keys=True).encode() + b"\n"
