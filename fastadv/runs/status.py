"""How far a run is, read from its folder: whether it is written at the moment, elsewhere or not at all."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet

from fastadv.core.errors import UNREADABLE
from fastadv.data.manifest import JOURNAL, PARQUET
from fastadv.data.run_files import ERROR, RUN, Description, RunFolderError, image_file
from fastadv.runs.sharding import Shard, begun_shards, found_shards

FINISHED, UNFINISHED, MISSING, UNMERGED = "finished", "unfinished", "missing", "not merged"
_LATEST = 256  # images that the rate is of


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """How far a run or a shard is.

    Attributes:
        state: ``"finished"``, ``"unfinished"``, of a shard also ``"missing"`` (nothing is written yet), and of a run
            whose shards are all finished ``"not merged"``.
        images: How many it is to have; None where ``run.json`` does not say it.
        done: How many it has.
        images_per_second: Of the latest 256 images, by the times of their files; of several shards the sum; None where
            there are fewer than two, or the run is finished.
        seconds_since_image: Since the latest image was written, of an unfinished run with images.
        last_error: Why the latest call that had begun to write failed; None where it did not, or was killed, or the run
            was continued since.
    """

    state: str
    images: int | None = None
    done: int = 0
    images_per_second: float | None = None
    seconds_since_image: float | None = None
    last_error: str | None = None

    @property
    def left(self) -> int | None:
        """How many images are to be made yet."""
        return None if self.images is None else max(0, self.images - self.done)


def run_status(run: Path) -> tuple[Progressed, dict[str, Progressed]]:
    """How far a run is, and each of its shards by its name, where it has any.

    Raises:
        RunFolderError: It is no folder of a run, or its description is damaged.
    """
    found = begun_shards(run) or found_shards(run)
    if (run / RUN).is_file():  # shards beside it are merged
        return _status(run, Description.read(run).images), {}
    if not found:
        raise RunFolderError(f"{run}: expected the folder of a run, got one without {RUN} or shards")
    described = next((Description.read(s.folder(run)) for s in found if (s.folder(run) / RUN).is_file()), None)
    images = None if described is None else described.images
    shards = {}
    for shard in sorted({*found, *(Shard(number=k + 1, count=found[0].count) for k in range(found[0].count))}):
        size = None if images is None else shard.size(images)
        begun = (shard.folder(run) / RUN).is_file()
        shards[shard.name] = _status(shard.folder(run), size) if begun else Progressed(state=MISSING, images=size)
    every = shards.values()
    rates = [each.images_per_second for each in every if each.images_per_second is not None]
    waited = [each.seconds_since_image for each in every if each.seconds_since_image is not None]
    errors = [f"{name}: {each.last_error}" for name, each in shards.items() if each.last_error is not None]
    return Progressed(
        state=UNMERGED if all(each.state == FINISHED for each in every) else UNFINISHED,
        images=images,
        done=sum(each.done for each in every),
        images_per_second=sum(rates) if rates else None,
        seconds_since_image=min(waited, default=None),
        last_error="; ".join(errors) or None,
    ), shards


def _status(folder: Path, images: int | None) -> Progressed:
    error = None
    with suppress(OSError):
        error = (folder / ERROR).read_text(encoding="utf-8", errors="replace").strip()
    if (folder / PARQUET).is_file():
        try:
            done = pyarrow.parquet.read_metadata(folder / PARQUET).num_rows
        except (pyarrow.ArrowException, *UNREADABLE) as damage:
            raise RunFolderError(f"{folder / PARQUET}: expected a Parquet file, got another: {damage}") from damage
        return Progressed(state=FINISHED, images=done, done=done, last_error=error)
    latest: deque[bytes] = deque(maxlen=_LATEST)
    done = 0
    try:
        with open(folder / JOURNAL, "rb") as journal:
            for line in journal:
                if line.endswith(b"\n"):
                    latest.append(line)
                    done += 1
    except OSError:
        if (folder / PARQUET).is_file():  # finished since it was looked for
            return _status(folder, images)
    times = sorted(_times(folder, latest))
    passed = times[-1] - times[0] if times else 0.0
    return Progressed(
        state=UNFINISHED,
        images=images,
        done=done,
        images_per_second=(len(times) - 1) / passed if passed else None,
        seconds_since_image=max(0.0, time.time() - times[-1]) if times else None,
        last_error=error,
    )


def _times(folder: Path, lines: deque[bytes]) -> Iterator[float]:
    """When the images of lines of a journal were written."""
    for line in lines:
        with suppress(*UNREADABLE):
            yield image_file(folder, json.loads(line)["name"]).stat().st_mtime
