"""Attacks on many faces, written as they are done: streamed in and out, and resumed after a kill."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from types import MappingProxyType, TracebackType

import numpy as np
from torch import Tensor

from fastadv.attacks import GalleryClass, Goal, Recipe, check_recipe
from fastadv.core.cores import workers
from fastadv.core.differences import difference
from fastadv.core.errors import ArgumentTypeError
from fastadv.core.provenance import software
from fastadv.core.spent import Spent
from fastadv.data import Face, FaceSource, ManifestRow, RunFolder, RunFolderError, face_id, read_manifest, to_uint8
from fastadv.data.images import encode_png
from fastadv.engine import Engine, Job, Result, stream_jobs
from fastadv.models import FaceModel
from fastadv.runs import RunIdentity, UsedFaces, Work, goal_hash, list_hash
from fastadv.runs.learned import Learned
from fastadv.runs.workers import each, fitted, shared_out

NONE_KNOWN: Mapping[str, Tensor] = MappingProxyType({})
_WINDOW = 32  # faces that are learned of at a time
_QUEUED = 64  # images that wait for the disk


@dataclass(frozen=True, kw_only=True)
class Order:
    """One adversarial image to make.

    Attributes:
        name: Its own name; the file is ``images/<name>.png``.
        source: The face that is changed.
        target: The face that it is compared with, or "".
    """

    name: str
    source: str
    target: str = ""


GoalOf = Callable[[Order, Face], Goal]
Attacked = Callable[[Iterator[Job]], Iterator[Result]]
"""An engine: from jobs to their results, in any order."""


def produce(
    orders: Sequence[Order],
    goal_of: GoalOf,
    source: FaceSource,
    attack: Recipe,
    model: FaceModel,
    work: Work,
    *,
    goal_name: str,
    known: Mapping[str, Tensor] = NONE_KNOWN,
    stage: str = "attacking",
) -> list[ManifestRow]:
    """Make what is ordered, and write it where a folder is given.

    Orders that the folder has already are not made again. Images are decoded ahead and written behind in threads;
    at any time a bounded number is in memory. The rows are returned in the order of ``orders``.

    Args:
        orders: What to make; names are unique.
        goal_of: The goal of one order, given its source face.
        source: Where the faces come from.
        attack: How to move.
        model: The model to attack.
        work: How images are made, and where they go.
        goal_name: What the manifest calls the goal.
        known: The model's float32 embeddings of source faces, by name, of a goal on embeddings: not computed again.
        stage: The name that progress gets.

    Raises:
        ImageError, AlignmentError: A face cannot be read; what was finished before is on disk.
        OSError: An image cannot be written.
    """
    rows = _finished(work.folder, {order.name for order in orders})
    for row in produced(orders, goal_of, source, attack, model, work, goal_name=goal_name, known=known, stage=stage):
        rows[row.name] = row
    return [rows[order.name] for order in orders]


def produced(
    orders: Sequence[Order],
    goal_of: GoalOf,
    source: FaceSource,
    attack: Recipe,
    model: FaceModel,
    work: Work,
    *,
    goal_name: str,
    known: Mapping[str, Tensor] = NONE_KNOWN,
    stage: str = "attacking",
) -> Iterator[ManifestRow]:
    """As ``produce``, but only the rows of what is made now, one after the other: memory does not grow with them."""
    done = frozenset() if work.folder is None else work.folder.done
    pending = [order for order in orders if order.name not in done]
    count = len(orders) - len(pending)
    work.progress(stage, count, len(orders))
    making = Making(
        goal_of=goal_of,
        source=source,
        attack=attack,
        model=model,
        seed=work.seed,
        engine=work.engine,
        goal_name=goal_name,
        known=known,
    )
    for row, _ in (_sent if work.workers else _made)(pending, making, work):
        count += 1
        work.progress(stage, count, len(orders))
        yield row


def stream(
    attack: Recipe,
    goal_for: Callable[[Face], Goal],
    model: FaceModel,
    source: FaceSource,
    *,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    fresh: bool = False,
) -> Iterator[Result]:
    """Attack every face of a source; results come as they are done, and memory does not grow with the source.

    With ``out``, images and rows are written there as by ``fastadv attack``; what an earlier, interrupted call has
    finished is not made and not returned again, and the manifest is closed when the stream ends. The folder goes on
    with the same network, attack, images, seed, batch and precision only; and since nobody can see into ``goal_for``,
    the goals of the images that are done are asked for again and compared.

    Args:
        attack: How to move.
        goal_for: The goal of one face: a goal whose tensors have one row.
        model: The model to attack, in evaluation mode.
        source: The faces, for example ``data.IdentityFolder("faces/")``.
        out: A folder for the run, or None.
        seed: Of every random number.
        engine: How to run; None takes the defaults.
        fresh: Remove the run that ``out`` holds, and begin anew.

    Raises:
        ValueError: As ``stream_jobs``; ``out`` holds another run, or one with other goals.
        ImageError, AlignmentError: A face cannot be read.
        OSError: An image cannot be written.
    """
    check_recipe(attack)
    if not isinstance(source, FaceSource):
        raise ArgumentTypeError(
            f"source: expected faces such as data.IdentityFolder('faces/'), got {type(source).__name__}"
        )
    if not callable(goal_for):
        raise ArgumentTypeError(
            f"goal_for: expected a function from a face to its goal, got {type(goal_for).__name__}; "
            "for one goal for all: lambda face: goal"
        )
    orders = [Order(name=name, source=name) for name in source.names]

    def goal_of(order: Order, face: Face) -> Goal:
        goal = goal_for(face)
        if not isinstance(goal, Goal):
            raise ArgumentTypeError(f"goal_for: expected a goal for {face.name}, got {type(goal).__name__}")
        return goal

    def results(pending: Sequence[Order], work: Work) -> Iterator[Result]:
        making = Making(goal_of=goal_of, source=source, attack=attack, model=model, seed=work.seed, engine=work.engine)
        yield from (result for _, result in _made(pending, making, work))

    if out is None:
        yield from results(orders, Work(seed=seed, engine=(engine or Engine()).resolve(model)))
        return
    identity = RunIdentity.of(
        "stream",
        model=model,
        attack=attack,
        engine=engine or Engine(),
        seed=seed,
        faces=UsedFaces(source=source),
        out=out,
        rules={"images in order": list_hash(orders)},
        images=len(orders),
        fresh=fresh,
    )
    with identity.work(out, fresh=fresh) as work:
        done = work.into.done
        _same_goals(work.into, source, goal_for)
        yield from results([order for order in orders if order.name not in done], work)
        work.into.finish([order.name for order in orders])


def _same_goals(folder: RunFolder, source: FaceSource, goal_for: Callable[[Face], Goal]) -> None:
    """Insists that the images that are done were made for the goals of today."""
    if not folder.done:
        return
    rows = {row.name: row for row in read_manifest(folder.path)}
    with source.stream([name for name in source.names if name in folder.done]) as faces:
        for face in faces:
            saved, wanted = rows[face.name].goal_hash, goal_hash(goal_for(face))
            found = difference({"goal": saved}, {"goal": wanted}, where=f"the row of {face.name}")
            if found:
                raise RunFolderError(f"{folder.path}: holds another run; {found}")


def _finished(folder: RunFolder | None, names: set[str]) -> dict[str, ManifestRow]:
    """The rows of these names that the folder has already."""
    if folder is None or not folder.done:
        return {}
    done = folder.done & names
    return {row.name: row for row in read_manifest(folder.path) if row.name in done}


@dataclass(frozen=True, kw_only=True, eq=False)
class Making:
    """How images are made, whoever makes them: this process, or a worker, which is sent it.

    Attributes:
        goal_of, source, attack, model, goal_name, known: As of ``produce``; without ``goal_name``, the goal's class.
        seed: Of every random number.
        engine: How to run.
    """

    goal_of: GoalOf
    source: FaceSource
    attack: Recipe
    model: FaceModel
    seed: int
    engine: Engine
    goal_name: str | None = None
    known: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, orders: Sequence[Order]) -> list[tuple[ManifestRow, bytes]]:
        """The rows and the PNG files of orders: the call of a worker."""
        return [(row, encode_png(to_uint8(result.image))) for row, result in made(orders, self)]


def _made(orders: Sequence[Order], making: Making, work: Work) -> Iterator[tuple[ManifestRow, Result]]:
    """As ``made``; a row is on its way to the disk when it is yielded."""
    with _Writers(work.folder) as writers:
        for row, result in made(orders, making, spent=work.spent):
            writers.write(row, result)
            yield row, result


def _sent(orders: Sequence[Order], making: Making, work: Work) -> Iterator[tuple[ManifestRow, bytes]]:
    """As ``_made``, by the workers: they read the faces, and this process writes."""
    assert work.workers is not None
    blocks = shared_out(orders, work.workers, least=work.engine.slots or work.engine.batch or 1)
    for _, block in each(work.workers, replace(making, engine=fitted(making.engine)), blocks):
        for row, data in block:
            if work.folder is not None:
                work.folder.write(row, data)
            yield row, data


def made(
    orders: Sequence[Order], making: Making, *, spent: Spent | None = None, attacked: Attacked | None = None
) -> Iterator[tuple[ManifestRow, Result]]:
    """Attack in the order of completion; nothing is written.

    Args:
        orders: What to make.
        making: How.
        spent: A clock that is told where the time goes, or None.
        attacked: The engine; None: one of its own.
    """
    attack, known, spent = making.attack, making.known, spent or Spent()
    about: dict[str, tuple[Order, Face, Goal]] = {}
    made_with = software(making.model.device)
    with making.source.stream([order.source for order in orders], workers=workers()) as faces:

        def jobs() -> Iterator[Job]:
            pairs = zip(orders, map(making.source.unchanged, faces), strict=True)
            while window := list(islice(pairs, _WINDOW)):
                if isinstance(known, Learned):
                    known.learn([face for _, face in window], (order.target for order, _ in window), spent)
                for order, face in window:
                    goal = making.goal_of(order, face)
                    about[order.name] = (order, face, goal)
                    clean = known.get(order.source)
                    yield Job(name=order.name, id=face_id(order.name), image=face.image, goal=goal, known=clean)

        own = partial(stream_jobs, attack, model=making.model, seed=making.seed, engine=making.engine, spent=spent)
        for result in (attacked or own)(jobs()):
            order, face, goal = about.pop(result.name)
            yield (
                ManifestRow(
                    name=result.name,
                    id=result.id,
                    goal=making.goal_name or type(goal).__name__.lower(),
                    target=order.target,
                    attack=attack.name,
                    eps=attack.budget.eps,
                    steps=attack.steps,
                    ticks=result.ticks,
                    success=result.success,
                    success_float=result.success_float,
                    linf=result.linf,
                    l2=result.l2,
                    score_before=result.score_before,
                    score_after=result.score_after,
                    metric=goal.metric,
                    seed=making.seed,
                    source_hash=face.source_hash,
                    flags=";".join(result.flags),
                    nonfinite=result.nonfinite,
                    levels=changed_levels(face.image, result.image),
                    template_distance=_template_distance(goal, result.embedding),
                    target_hash=_target_hash(making.source, order.target),
                    goal_hash="" if making.goal_name else goal_hash(goal),
                    software=made_with,
                    batch=result.batch,
                ),
                result,
            )


def changed_levels(before: Tensor, after: Tensor) -> tuple[int, ...]:
    """How many pixels change by 0, 1, 2, ... grey levels in the channel that changes most, up to the largest change.

    Args:
        before: ``(3, H, W)`` in [0, 1].
        after: The same.
    """
    # NumPy, not torch: outside of the engine's thread torch would start a second pool of threads
    change = np.abs(after.cpu().numpy() - before.cpu().numpy()).max(0) * np.float32(255)
    return tuple(np.bincount(np.rint(change).astype(np.int64).ravel()).tolist())


def _target_hash(source: FaceSource, target: str) -> str:
    """The hash of the target's file; of several, with ";" between their names, that of their hashes, one a line."""
    names = [target] if target in source else target.split(";")
    if not target or not all(name in source for name in names):
        return ""
    hashes = [source.content_hash(name) for name in names]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _template_distance(goal: Goal, embedding: Tensor | None) -> float | None:
    """From an image's embedding to the nearest template of the class that it is identified as (Massoli et al., 5.3)."""
    if not isinstance(goal, GalleryClass) or embedding is None:
        return None
    gallery = goal.gallery
    distances = gallery.distances(embedding[None].to(gallery.templates.device))
    said = gallery.vote(distances, goal.k)
    return float(distances[0, gallery.classes == said].min())


class _Writers:
    """Encodes and writes in threads; a failure is raised at the next write or at the end."""

    def __init__(self, folder: RunFolder | None) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(workers(), thread_name_prefix="fastadv-write")
        self._room = threading.Semaphore(_QUEUED)
        self._failed: list[BaseException] = []

    def write(self, row: ManifestRow, result: Result) -> None:
        if self._folder is None:
            return
        self._raise()
        self._room.acquire()
        self._pool.submit(self._work, self._folder, row, result).add_done_callback(self._settle)

    @staticmethod
    def _work(folder: RunFolder, row: ManifestRow, result: Result) -> None:
        folder.write(row, to_uint8(result.image))

    def _settle(self, future: Future[None]) -> None:
        error = future.exception()
        if error is not None:
            self._failed.append(error)
        self._room.release()

    def _raise(self) -> None:
        if self._failed:
            raise self._failed[0]

    def __enter__(self) -> _Writers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)  # what is finished is written, also after an error or Ctrl-C
        if error is None:
            self._raise()
