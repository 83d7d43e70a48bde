"""Finished shards of a run as one run: the bytes that one process would have written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from fastadv.core.differences import difference
from fastadv.core.files import naming, remove_temporaries, write_atomically
from fastadv.core.notices import notify
from fastadv.core.progress import Progress, silent
from fastadv.data import manifest
from fastadv.data.hashes import KEPT
from fastadv.data.manifest import PARQUET, ManifestRow
from fastadv.data.names import several
from fastadv.data.run_files import (
    FOUND,
    IMAGES,
    RUN,
    SHARDS,
    Description,
    RunFolderError,
    damaged_images,
    image_file,
    locked,
)
from fastadv.runs.sharding import Shard, begun_shards, check_place, found_shards, set_aside, whole

_ROWS = 2**16  # of all shards together that are read ahead


class DamagedShardError(RunFolderError):
    """A finished shard lacks images of its manifest; the message names them."""


def merge_shards(run: Path, *, progress: Progress = silent) -> int:
    """Make one finished run of the finished shards below a folder, and remove them.

    Images are renamed, nothing is computed. Everything is checked before anything is changed; killed in the middle, the
    same call goes on. Shards of different software are merged, with a notice.

    Args:
        run: The run's folder.
        progress: Told of every image.

    Returns:
        The number of shards; 0 where the run is merged already.

    Raises:
        DamagedShardError: Images are missing or damaged.
        RunFolderError: There are no shards; some are missing, unfinished or of another run; the folder holds something
            else, or it or a shard is being written.
        OSError: The folder cannot be written.
    """
    _shards(run)  # a folder without is not written to
    check_place(run)
    with ExitStack() as locks:
        locks.callback(locked(run).release)
        shards, found = _shards(run), found_shards(run)
        for shard in found:  # nobody may be mending images in one, until all are removed
            locks.callback(locked(shard.folder(run)).release)
        if shards and (run / RUN).is_file():
            _check_merged(run, shards)
        elif shards:
            described = _finished(run, shards)
            remove_temporaries(run)
            _check_images(run, shards, described.images, progress)
            _move_images(run, shards, described.images, progress)
            for name in (KEPT, *FOUND):
                if (shards[0].folder(run) / name).is_file():
                    write_atomically(run / name, (shards[0].folder(run) / name).read_bytes(), fsync=True)
            manifest.write_parquet(_in_order(run, shards), run / PARQUET)
            described.write(run)  # the last step: without it the folder is no run
        if found:
            set_aside(run)
        remove_temporaries(run)
    return len(shards)


def take_back(run: Path, shard: Shard) -> None:
    """Move images of a finished shard back to it that a merge has moved and then was killed: they are not made again.

    Raises:
        RunFolderError: The shards are being merged, or this one is being written.
        OSError: A folder cannot be written.
    """
    folder = shard.folder(run)
    if (run / RUN).is_file() or not (run / IMAGES).is_dir() or not (folder / PARQUET).is_file():
        return
    lock = locked(folder)
    try:
        for row in _rows(run, shard):
            source, target = (image_file(place, row.name) for place in (run, folder))
            if not target.exists() and not damaged_images(run, [row]):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
    except manifest.ManifestError:
        return  # all are made again, as opening the shard says
    finally:
        lock.release()


def _shards(run: Path) -> list[Shard]:
    """The shards that have begun; none of a run that is merged."""
    shards = begun_shards(run)
    if not shards and not ((run / RUN).is_file() and (run / PARQUET).is_file()):
        raise RunFolderError(f"{run}: expected the shards of 'fastadv attack --shard K/N' below {SHARDS}, got none")
    return shards


def _check_merged(run: Path, shards: Sequence[Shard]) -> None:
    """Insists that a run is the one that its shards were merged to."""
    if not (run / PARQUET).is_file():
        raise RunFolderError(f"{run}: expected shards only, got an unfinished run of one process beside them")
    saved = Description.read(run)
    for shard in shards:
        found = _difference(saved, Description.read(shard.folder(run)), RUN)
        if found:
            raise RunFolderError(f"{shard.folder(run)}: holds another run; {found}")


def _finished(run: Path, shards: Sequence[Shard]) -> Description:
    """The description of the whole run, once all shards are there, finished, and of it."""
    counts = sorted({shard.count for shard in shards})
    if len(counts) > 1:
        raise RunFolderError(
            f"{run}: expected shards of one number, got {' and '.join(map(str, counts))}; remove those of the other"
        )
    wanted = [Shard(number=k, count=counts[0]) for k in range(1, counts[0] + 1)]
    missing = [shard.name for shard in wanted if not (shard.folder(run) / RUN).is_file()]
    open_ = [s.name for s in wanted if s.name not in missing and not (s.folder(run) / PARQUET).is_file()]
    parts = [f"{several(names)} {why}" for names, why in ((missing, "missing"), (open_, "unfinished")) if names]
    if parts:
        raise RunFolderError(
            f"{run}: expected {counts[0]} finished shards, got {' and '.join(parts)}; their commands (--shard K/N) "
            "generate the rest"
        )
    first: Description | None = None
    for shard in wanted:
        saved = Description.read(shard.folder(run))
        if saved.config.get("shard") != str(shard):
            raise RunFolderError(f"{shard.folder(run)}: expected shard {shard}, got {saved.config.get('shard')}")
        first = first or saved
        found = _difference(first, saved, f"{wanted[0].name}/{RUN}")
        if found:
            raise RunFolderError(f"{shard.folder(run)}: holds another run; {found}")
    assert first is not None
    return Description(config=whole(first.config), shown=first.shown, versions=first.versions, images=first.images)


def _difference(saved: Description, other: Description, where: str) -> str | None:
    remedy = "generate one of them again with --fresh"
    shown = (saved.shown, other.shown)
    return difference(whole(saved.config), whole(other.config), where=where, shown=shown, remedy=remedy)


def _rows(run: Path, shard: Shard) -> Iterator[ManifestRow]:
    return manifest.iterate_manifest(shard.folder(run) / PARQUET)


def _check_images(run: Path, shards: Sequence[Shard], images: int | None, progress: Progress) -> None:
    """Insists that every image is there, in its shard or moved already, and say where software differs."""
    software: dict[str, set[str]] = {}
    moved = {file for file in (run / IMAGES).rglob("*") if not file.is_dir()}
    done = 0
    for shard in shards:
        folder, count = shard.folder(run), 0
        damaged = []
        for row in _rows(run, shard):
            place = folder if image_file(folder, row.name).exists() else run
            damaged += damaged_images(place, [row])
            moved.discard(image_file(run, row.name))
            software.setdefault(row.software, set()).add(shard.name)
            count += 1
            progress("checking images", done + count, images or done + count)
        done += count
        if damaged:
            raise DamagedShardError(
                f"{folder}: expected the images of its manifest, got missing or damaged ones: {several(damaged)}; "
                f"--shard {shard} generates them again"
            )
        if images is not None and count != shard.size(images):
            raise RunFolderError(f"{folder}: expected {shard.size(images)} images, got {count}")
    if moved:  # by a merge of shards that were begun anew since
        others = sorted(str(file.relative_to(run)) for file in moved)
        raise RunFolderError(f"{run}: expected images of its shards only, got others: {several(others)}; remove them")
    found = different_software(software)
    if found:
        notify(f"{run}: the shards were computed by different software, which can change bits: {found}")


def different_software(software: Mapping[str, set[str]]) -> str:
    """What differs between lines of software, with what has each of them; the index of a device is no difference."""
    values: dict[str, dict[str, set[str]]] = {}
    for line, names in software.items():
        for part in filter(None, line.split(", ")):
            name, _, value = part.partition(" ")
            value = value.partition(":")[0] if name == "device" else value
            values.setdefault(name, {}).setdefault(value, set()).update(names)
    return "; ".join(
        f"{name} {value} in {several(sorted(where))}"
        for name, found in values.items()
        if len(found) > 1
        for value, where in sorted(found.items())
    )


def _move_images(run: Path, shards: Sequence[Shard], images: int | None, progress: Progress) -> None:
    """Rename every image that is not moved yet; copy it where the shard lies on another file system."""
    done, made = 0, set[Path]()
    for shard in shards:
        for row in _rows(run, shard):
            source, target = (image_file(folder, row.name) for folder in (shard.folder(run), run))
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(target.parent)
            done += 1
            progress("merging", done, images or done)
            try:
                os.replace(source, target)
            except FileNotFoundError:
                pass  # an earlier call has moved it: the check has seen it there
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise naming(error, target) from error
                write_atomically(target, source.read_bytes())


def _in_order(run: Path, shards: Sequence[Shard]) -> Iterator[ManifestRow]:
    """The rows of all shards in the order of the run's list, of which they have every N-th one."""
    ahead = max(1, _ROWS // len(shards))
    rows = [manifest.parquet_rows(s.folder(run) / PARQUET, at_a_time=ahead, in_memory=True) for s in shards]
    while rows:
        for each in rows:  # the first that ends is followed by ends only
            row = next(each, None)
            if row is None:
                return
            yield row
