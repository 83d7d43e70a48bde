"""``fastadv attack --ray``: workers attack blocks of orders and write the images; the driver keeps the rows."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow

from fastadv.attacks import Recipe
from fastadv.core.cores import workers
from fastadv.core.notices import Notice, notify
from fastadv.core.places import write_bytes
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource, ManifestRow, to_uint8
from fastadv.data.images import encode_png
from fastadv.data.manifest import PNG_BYTES, iterate_manifest, journal_line, row_from_json
from fastadv.data.run_files import RUN, image_file
from fastadv.distributed.cluster import Cluster, begin_worker, software_notes
from fastadv.distributed.output import Output, check_shared
from fastadv.distributed.shared_engine import SharedEngine
from fastadv.engine import Engine, Job, Result
from fastadv.models import FaceModel
from fastadv.runs import RunIdentity
from fastadv.runs.attack import AttackSummary, goals_and_known, summarise
from fastadv.runs.goals import Enrolled, GoalChoice
from fastadv.runs.production import Making, Order, made
from fastadv.runs.workers import fitted

_LARGEST = 256  # images of a call: their rows come when all are written, and are made again if the driver is killed
_EACH = 32  # calls that a worker gets at least, if there are images enough: so that all workers end together


@dataclass(frozen=True, kw_only=True, eq=False)
class WorkerTask:
    """What the driver sends to every worker, so that no worker lists, hashes or enrols anything.

    Attributes:
        model: The network.
        source: The faces, with the hashes of the files: a worker refuses a file that differs.
        attack: The attack.
        aim: The goal.
        enrolled: The people, where the goal needs a gallery.
        sample: One order of the run.
        seed: The random seed.
        engine: The engine, with every choice made that changes a bit.
        out: The folder or URL of the run.
        place: The driver's working directory, to which its paths are relative.
    """

    model: FaceModel
    source: FaceSource
    attack: Recipe
    aim: GoalChoice
    enrolled: Enrolled | None
    sample: Order
    seed: int
    engine: Engine
    out: Path
    place: str


class AttackWorker:
    """An actor of Ray Data: a process with one engine, in which several calls run at a time."""

    def __init__(self, sent: Any, device: str, threads: int) -> None:
        """Unpack a `WorkerTask`.

        Args:
            sent: The packed task, or a Ray reference to it.
            device: The device to compute on.
            threads: Number of PyTorch's threads.
        """
        self._task: WorkerTask = begin_worker(sent, device, threads)
        with suppress(OSError):
            os.chdir(self._task.place)
        task = self._task
        goal_of, known = goals_and_known(task.source, task.model, task.attack, task.aim, task.enrolled, [task.sample])
        self._making = Making(
            goal_of=goal_of,
            source=task.source,
            attack=task.attack,
            model=task.model,
            seed=task.seed,
            engine=task.engine,
            goal_name=task.aim.goal,
            known=known,
        )
        self._engine = SharedEngine(task.attack, task.model, seed=task.seed, engine=task.engine)
        self._host = socket.gethostname()
        self._notices: SimpleQueue[str] = SimpleQueue()
        warnings.simplefilter("always", Notice)
        warnings.showwarning = self._notice

    def _notice(self, message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, Notice):
            self._notices.put(" ".join(str(message).split()))

    def __call__(self, block: Mapping[str, Any]) -> pyarrow.Table:
        """Attack a block of orders, and write the images.

        Returns:
            The lines of the journal in the order of the block, then notices.

        Raises:
            ImageError, AlignmentError, SourceError: A face cannot be read, or has changed.
            OSError: An image cannot be written.
        """
        check_shared(self._task.out, RUN)
        columns = (map(str, block[name]) for name in ("name", "source", "target"))
        orders = [Order(name=name, source=face, target=target) for name, face, target in zip(*columns, strict=True)]
        with ThreadPoolExecutor(workers()) as pool:
            written = {row.name: pool.submit(self._write, row, result) for row, result in self._made(orders)}
            lines = [written[order.name].result() for order in orders]
        notices = list[bytes]()
        with suppress(Empty):
            while True:
                notices.append(self._notices.get_nowait().encode())
        return pyarrow.table(
            {
                "text": pyarrow.array([*lines, *notices], pyarrow.binary()),
                "host": [*[self._host] * len(lines), *[""] * len(notices)],
            }
        )

    def _made(self, orders: Sequence[Order]) -> Iterator[tuple[ManifestRow, Result]]:
        def attacked(jobs: Iterator[Job]) -> Iterator[Result]:
            return (result for _, result in self._engine.results(jobs))

        return made(orders, self._making, attacked=attacked)

    def _write(self, row: ManifestRow, result: Result) -> bytes:
        data = encode_png(to_uint8(result.image))
        write_bytes(image_file(self._task.out, row.name), data)
        return journal_line(replace(row, image_hash=hashlib.sha256(data).hexdigest()), len(data))


def attack_on_cluster(
    task: WorkerTask,
    orders: Sequence[Order],
    identity: RunIdentity,
    output: Output,
    cluster: Cluster,
    *,
    fresh: bool = False,
    progress: Progress = silent,
) -> AttackSummary:
    """Attack every order in the workers of a cluster to which this process is connected, and finish the run.

    Args:
        task: What the workers are sent.
        orders: The images to generate.
        identity: The identity of the run.
        output: The folder or URL.
        cluster: The workers.
        fresh: Whether to remove an earlier run and begin anew.
        progress: Called after every block.

    Raises:
        ClusterError: The workers cannot start, or die repeatedly; what is written is kept.
        ValueError, OSError: As the folder, or as ``attack_folder`` in a worker.
    """
    with identity.open(output.folder, lost=output.lost, fresh=fresh) as run:
        output.begun(run)
        known = run.done
        pending = [order for order in orders if order.name not in known]
        done = len(orders) - len(pending)
        progress("attacking", done, len(orders))
        hosts: dict[str, set[str]] = {}
        told: set[bytes] = set()
        blocks = _blocks(pending, max(task.engine.slots or 1, min(_LARGEST, len(pending) // (cluster.workers * _EACH))))
        sent = replace(task, engine=fitted(task.engine))
        try:
            with closing(cluster.results(AttackWorker, sent, blocks)) as tables:
                for text, host in (line for table in tables for line in zip(*table.to_pydict().values(), strict=True)):
                    if host:
                        values = json.loads(text)
                        size = values.pop(PNG_BYTES)
                        row = row_from_json(values, host)
                        hosts.setdefault(row.software, set()).add(host)
                        if run.add(row, size):
                            output.wrote(text)
                            done += 1
                            progress("attacking", done, len(orders))
                    elif text not in told:
                        told.add(text)
                        notify(text.decode())
        finally:
            output.settle()
        run.finish([order.name for order in orders])
        output.finished()
        for note in software_notes(hosts):
            notify(note)
        return summarise(iterate_manifest(output.folder))


def _blocks(orders: Sequence[Order], size: int) -> list[pyarrow.Table]:
    """The orders as tables of ``size`` rows."""
    names = [field.name for field in fields(Order)]
    parts = (orders[k : k + size] for k in range(0, len(orders), size))
    return [pyarrow.table({name: [getattr(order, name) for order in part] for name in names}) for part in parts]
