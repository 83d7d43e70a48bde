"""``fastadv attack`` in several processes, one engine each: a shard for each, which are merged in the end."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from fastadv.core.allocator import keep_freed_memory
from fastadv.core.cores import given_to_children, own_cores, shares
from fastadv.core.errors import ArgumentError, Error
from fastadv.core.files import is_temporary, write_atomically
from fastadv.core.notices import Notice, notify
from fastadv.core.progress import Notes, Progress, silent
from fastadv.data.hashes import KEPT, KnownHashes
from fastadv.data.manifest import PARQUET, iterate_manifest
from fastadv.data.names import several
from fastadv.data.run_files import FOUND, LOCK, RUN, RUN_FOLDER, RunFolderError, clear, locked
from fastadv.models import open_device
from fastadv.models.memory import is_out_of_memory
from fastadv.runs.attack import AttackSummary, summarise
from fastadv.runs.merging import DamagedShardError, merge_shards
from fastadv.runs.sharding import Shard, check_place, discard_shards, found_shards
from fastadv.studies.attack import AttackPlan, PreparedAttack, prepare_attack


class WorkerError(Error, RuntimeError):
    """A process of a run has failed; the message names its shard."""


def worker_devices(devices: Sequence[str], workers: int | None) -> tuple[str, ...]:
    """The device of each process, of devices that are there.

    Raises:
        ValueError: CUDA devices with a number of workers, a device twice or beside a CPU, or more workers than cores.
    """
    opened = [open_device(device) for device in devices]
    kinds = {device.type for device in opened}
    if workers is not None and kinds != {"cpu"}:
        raise ArgumentError(
            f"workers: expected it with --device cpu only, got {devices[0]}; give --device several times"
        )
    if len(devices) > 1 and (kinds != {"cuda"} or len({device.index or 0 for device in opened}) < len(opened)):
        raise ArgumentError(f"device: expected one, or CUDA devices, each once, got {', '.join(devices)}")
    if (workers or 1) > len(own_cores()):
        raise ArgumentError(f"workers: expected at most one for each of the {len(own_cores())} cores, got {workers}")
    return tuple(devices) * (workers or 1)


def attack_in_processes(wanted: AttackPlan, devices: Sequence[str], *, progress: Progress = silent) -> AttackSummary:
    """Attack as planned in a process for each device, and merge what they have made.

    On a CPU, the cores of this process are divided among them, and so are PyTorch's threads. The same call continues a
    run that was stopped. A script must guard its call by ``if __name__ == "__main__"``, since processes are spawned.

    Args:
        wanted: Without a shard; the further networks of an ensemble may be on any device.
        devices: As of ``worker_devices``.
        progress: Told of the images of all processes together.

    Raises:
        WorkerError: A process has failed or was killed; the others were stopped, and what they finished is kept.
        ValueError, OSError: As ``attack_as_planned`` and ``merge_shards``; with ``fresh``, other files lie there.
    """
    given = replace(wanted.inputs, device=devices[0])
    run = given.folder
    check_place(run)
    prepared = prepare_attack(replace(wanted, inputs=given), progress=progress)
    shards = [Shard(number=k + 1, count=len(devices)) for k in range(len(devices))]
    if given.fresh or not (run / RUN).exists():
        shards[0].part(prepared.orders)  # refuses more shards than images
    if given.fresh:
        _discard(prepared)
    if (run / RUN).exists():  # with nothing to make but images that are damaged
        if not (run / PARQUET).exists():
            notify(f"{run}: holds an unfinished run of one process, and is continued in one process")
        if found_shards(run):
            merge_shards(run, progress=progress)
        return replace(prepared, wanted=replace(wanted, inputs=replace(given, fresh=False))).run(progress)
    shards[0].check(run, prepared.identity.config, prepared.identity.shown)
    if _merged(run, shards, progress):
        return summarise(iterate_manifest(run))
    images = len(prepared.orders)
    settled = replace(wanted, inputs=replace(given, engine=prepared.identity.engine, fresh=False))
    with _hashes_beside(run, prepared.identity.known):
        del prepared  # with its network
        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()  # for the process on the same device
        _attack(settled, dict(zip(shards, devices, strict=True)), images, progress)
    merge_shards(run, progress=progress)
    return summarise(iterate_manifest(run))


def _merged(run: Path, shards: Sequence[Shard], progress: Progress) -> bool:
    """Merge shards that are all finished, as a kill in the merge leaves them: their moved images are not missing."""
    if not all((shard.folder(run) / PARQUET).is_file() for shard in shards):
        return False
    try:
        merge_shards(run, progress=progress)
    except DamagedShardError:  # to be generated again
        return False
    return True


def _discard(prepared: PreparedAttack) -> None:
    """Remove run and shards of the folder, which shards would share with nothing else.

    Raises:
        RunFolderError: Other files lie there, or somebody writes.
    """
    run = prepared.wanted.inputs.folder
    if run.exists():
        ours = {LOCK, RUN, *FOUND, *RUN_FOLDER.written}
        others = sorted(name for name in os.listdir(run) if name not in ours and not is_temporary(name))
        if others:
            raise RunFolderError(
                f"{run}: expected nothing beside the run to begin it anew in several processes, got {several(others)}; "
                "remove it or use another --out"
            )
        lock = locked(run)
        try:
            discard_shards(run)
            clear(run)
            (run / RUN).unlink(missing_ok=True)
        finally:
            lock.release()


@contextmanager
def _hashes_beside(run: Path, known: KnownHashes) -> Iterator[None]:
    """The hashes of the images beside the shards, so that no process computes them again."""
    made = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(run / KEPT, known.to_bytes())
    try:
        yield
    finally:
        if not found_shards(run):  # nothing was begun
            (run / KEPT).unlink(missing_ok=True)
            if made and not any(run.iterdir()):
                run.rmdir()


@dataclass(eq=False)
class _Worker:
    """A process, and what it has reported."""

    shard: Shard
    process: BaseProcess
    reports: Connection
    done: int | None = None
    finished: bool = False


def _attack(wanted: AttackPlan, devices: Mapping[Shard, str], images: int, progress: Progress) -> None:
    """Start the processes, and listen to them until they end."""
    file = io.BytesIO()
    torch.save(wanted, file)
    context = multiprocessing.get_context("spawn")
    on_cpu = set(devices.values()) == {"cpu"}
    cores: Sequence[list[int] | None] = shares(len(devices)) if on_cpu else [None] * len(devices)
    threads = max(1, torch.get_num_threads() // len(devices))
    workers: list[_Worker] = []
    resource_tracker.ensure_running()  # started by the first process, it would let Ctrl-C through to that one
    try:
        for (shard, device), own in zip(devices.items(), cores, strict=True):
            reports, reporting = context.Pipe(duplex=False)
            given = (reporting, file.getvalue(), shard, device, threads)
            workers.append(_Worker(shard, context.Process(target=_work, args=given, daemon=True), reports))
            with given_to_children(own, threads), _interrupts_later():
                workers[-1].process.start()
            reporting.close()
        _listen(workers, images, progress)
    finally:
        _stop(workers)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block; processes started inside never get it: this one ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen(workers: Sequence[_Worker], images: int, progress: Progress) -> None:
    """Pass on what the processes report; returns when all have finished."""
    told: set[str] = set()
    running = list(workers)
    while running:
        ready = wait([worker.reports for worker in running])
        for worker in [worker for worker in running if worker.reports in ready]:
            try:
                kind, what = worker.reports.recv()
            except EOFError:
                running.remove(worker)
                worker.process.join()
                if not worker.finished:
                    raise WorkerError(
                        f"shard {worker.shard}: expected its process to finish, got exit code "
                        f"{worker.process.exitcode}; the same command continues the run"
                    ) from None
                continue
            if kind == "error":
                raise WorkerError(f"shard {worker.shard}: {what}")
            if kind == "fault":
                raise RuntimeError(f"shard {worker.shard}: {what}")
            if kind == "finished":
                worker.finished = True
            elif kind == "note" and isinstance(progress, Notes):
                progress.note(f"shard {worker.shard}: {what}")
            elif kind == "notice" and what not in told:
                told.add(what)
                notify(what)
            elif kind == "progress":
                _pass_on(worker, workers, images, progress, *what)


def _pass_on(
    worker: _Worker, workers: Sequence[_Worker], images: int, progress: Progress, stage: str, done: int, total: int
) -> None:
    """The images of all as one stage; of other stages those of the first process."""
    if stage == "attacking":
        worker.done = done
        progress(stage, sum(each.done or 0 for each in workers), images)
    elif worker is workers[0]:
        progress(stage, done, total)


def _stop(workers: Sequence[_Worker]) -> None:
    """End processes as Ctrl-C ends a run: images at hand are written. A second Ctrl-C kills them."""
    started = [worker for worker in workers if worker.process.pid is not None]
    try:
        for worker in started:
            worker.reports.close()  # nobody waits until it is read
            worker.process.terminate()
        for worker in started:
            worker.process.join()
    finally:
        for worker in started:
            worker.process.kill()


# in a process of its own


def _work(reporting: Connection, plan: bytes, shard: Shard, device: str, threads: int) -> None:
    """Make a shard, and report."""
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        keep_freed_memory()
        torch.set_num_threads(threads)
        report = _Report(reporting)
        kind, what, code = _outcome(plan, shard, device, report)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who is told of an error ends all
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(130)
    report.send(kind, what)
    sys.exit(code)


def _outcome(plan: bytes, shard: Shard, device: str, report: _Report) -> tuple[str, str, int]:
    """Make a shard: how it ended, as the parent is told, and the exit code."""
    try:
        wanted = torch.load(io.BytesIO(plan), map_location=device, weights_only=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # the parent has prepared the same
            prepared = prepare_attack(replace(wanted, shard=shard, inputs=replace(wanted.inputs, device=device)))
            warnings.simplefilter("always", Notice)
            warnings.showwarning = report.notice
            prepared.run(report)
    except (Error, OSError) as error:
        return "error", str(error), 2
    except Exception as error:
        if is_out_of_memory(error):
            return "error", "memory: expected enough for its process, got too little; lower --workers or --batch", 2
        return "fault", traceback.format_exc(), 70
    return "finished", "", 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Of the first request to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Nobody would merge what this process makes; killed at any moment, it loses the images in flight only."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@dataclass(eq=False)
class _Report:
    """Tells the parent of progress, notes and notices."""

    reporting: Connection
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.send("progress", (stage, done, total))

    def note(self, line: str) -> None:
        self.send("note", line)

    def notice(self, message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        self.send("notice", " ".join(str(message).split()))

    def send(self, kind: str, what: object) -> None:
        with self._lock:
            try:
                self.reporting.send((kind, what))
            except OSError:  # the parent has stopped to listen, and ends this process
                return
