"""A Ray cluster: its address, its workers, and their results."""

from __future__ import annotations

import io
import logging
import os
import socket
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow
import torch

from fastadv.core.allocator import keep_freed_memory
from fastadv.core.cores import own_cores
from fastadv.core.errors import ArgumentError, Error, UnavailableError
from fastadv.core.extras import require_extra
from fastadv.core.notices import Notice, notify
from fastadv.core.provenance import software
from fastadv.engine import Engine
from fastadv.models import FaceModel
from fastadv.runs.merging import different_software
from fastadv.runs.workers import fitted

if TYPE_CHECKING:
    import ray.data

_CALLS = 4  # of a worker at a time: an image that takes long holds its call open, and the others fill the slots
_RESTARTS = 16  # of a worker: one that always dies ends the run


class ClusterError(Error, RuntimeError):
    """A cluster cannot be reached, or its workers cannot start or die repeatedly."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Workers on Ray: processes with one engine each.

    Ray Data gives blocks of images to a pool of actors, one actor for each worker. If an actor dies, with its process
    or its node, Ray restarts it wherever there is room, and repeats its calls that have not ended; it also repeats a
    call whose result is lost. Therefore a call ends only when all its images are written, a repeated call returns the
    same rows, an image that is written twice has the same bytes, and an actor keeps no state between calls. An actor
    runs several calls at a time on its one engine, so that the slots stay full.

    Attributes:
        address: ``"auto"`` for the cluster that this machine belongs to, ``"local"`` to start one on this machine for
            the run, or ``HOST:PORT``. Where the process is connected already, that cluster is used.
        workers: Number of workers, at least 1.
        gpus_per_worker: GPUs of each worker, also a fraction; 0: workers compute on CPUs.
        told: Notices of workers that have been passed on.

    Raises:
        ValueError: A field is out of range.
    """

    address: str = "auto"
    workers: int = 1
    gpus_per_worker: float = 0.0
    told: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ArgumentError(f"workers: expected at least 1, got {self.workers}")
        if not 0 <= self.gpus_per_worker < float("inf"):
            raise ArgumentError(f"gpus_per_worker: expected a number of at least 0, got {self.gpus_per_worker:g}")
        if not self.address or "://" in self.address:  # of Ray's client, on which Ray Data does not run
            raise ArgumentError(f"ray: expected auto, local or HOST:PORT, got {self.address!r}")

    @property
    def device(self) -> str:
        """The device of a worker: ``"cuda"`` or ``"cpu"``."""
        return "cuda" if self.gpus_per_worker else "cpu"

    @property
    def threads(self) -> int:
        """PyTorch's threads of a worker: those of this process, or fewer if the cluster has fewer cores for each."""
        import ray

        return max(1, min(torch.get_num_threads(), int(ray.cluster_resources().get("CPU", 1) // self.workers)))

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect to the cluster unless this process is connected already; Ray's progress bars and messages are off.

        Raises:
            MissingPackageError: Ray is not installed.
            ClusterError: There is no such cluster.
        """
        require_extra("ray", "ray")
        import ray

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.")
            warnings.filterwarnings("ignore", message="(?s).*Ray")
            ours = not ray.is_initialized()
            if ours:
                self._connect()
            try:
                with _quiet():
                    yield
            finally:
                if ours:
                    ray.shutdown()

    def _connect(self) -> None:
        import ray

        started: dict[str, Any] = {}
        if self.address == "local":  # its workers have this process's priority: Ray's niceness is 15
            started = {"num_cpus": len(own_cores()), "include_dashboard": False}
            started["_system_config"] = {"worker_niceness": 0}
        try:
            ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR, **started)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise ClusterError(
                f"ray: expected a running cluster at {self.address}, got none: {said}; 'ray start --head' starts one, "
                "--ray local starts one for the run"
            ) from error

    def mapped(
        self, dataset: ray.data.Dataset, worker: type, *given: object, rows: int, spare: int = 0
    ) -> ray.data.Dataset:
        """The dataset after a step that calls a worker for every ``rows`` rows.

        Args:
            dataset: The rows that the workers take.
            worker: Class of the workers.
            given: Arguments of its constructor.
            rows: Rows of one call.
            spare: Cores that other steps need: without any, those steps and the workers would wait for each other.
        """
        import ray

        return dataset.map_batches(
            worker,
            fn_constructor_args=given,
            batch_size=rows,
            batch_format="numpy",
            # As many calls are sent as run at a time: what waits at one worker could not go to another. It bounds what
            # is on its way too: Ray Data reads no further ahead than it can hand out.
            compute=ray.data.ActorPoolStrategy(
                size=self.workers,
                max_concurrent_calls_per_actor=_CALLS,
                max_tasks_in_flight_per_actor=_CALLS,
                enable_true_multi_threading=True,
            ),
            # By Ray Data's default calls are repeated without end: of a dead node they fail again and again until its
            # worker is placed anew. What ends a run are the deaths of a worker.
            max_restarts=_RESTARTS,
            **self._needs(spare),
        )

    def _needs(self, spare: int = 0) -> dict[str, Any]:
        """What Ray sets aside for a worker."""
        import ray

        if self.gpus_per_worker:
            return {"num_gpus": self.gpus_per_worker}
        cores = max(0, ray.cluster_resources().get("CPU", 1) - spare) / self.workers
        return {"num_cpus": min(self.threads, int(1e4 * cores) / 1e4)}  # Ray counts in 1/10,000

    def results(
        self, worker: type, task: object, blocks: Sequence[pyarrow.Table]
    ) -> Generator[pyarrow.Table, None, None]:
        """The results of workers with a task, one for each block, in the order in which they end.

        All blocks but the last have the same size.

        Raises:
            Error, OSError: As ``workers_errors``.
        """
        if not blocks:
            return
        import ray

        given = (ray.put(packed(task)), self.device, self.threads)
        found = self.mapped(ray.data.from_arrow(list(blocks)), worker, *given, rows=len(blocks[0]))
        with workers_errors():
            yield from found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)

    def each(self, do: Callable[[Any], Any], items: Iterable[Any]) -> Generator[tuple[int, Any], None, None]:
        """What a function returns for each item, once, with the item's place, in the order in which calls end.

        For work of which a call takes seconds or more: one call runs at a time in each worker, and what it returns
        comes to this process. Ray repeats a call whose process or node dies, wherever there is room. A worker keeps
        the function until it is sent another.

        Args:
            do: Sent to the workers, with its networks and data.
            items: One for each call; drawn as they are needed.

        Raises:
            Error, OSError: As ``workers_errors``.
        """
        import ray

        waiting = enumerate(items)
        # a worker on a GPU would end after each call by default
        call = ray.remote(max_retries=_RESTARTS, max_calls=0, **{"num_cpus": 0, **self._needs()})(_call)
        given = [ray.put(packed(do))], self.device, self.threads, os.getcwd()
        running: dict[Any, int] = {}
        hosts: dict[str, set[str]] = {}

        def send() -> None:
            for place, item in islice(waiting, self.workers - len(running)):
                running[call.remote(*given, packed(item))] = place

        try:
            with workers_errors():
                send()
                while running:
                    (ended, *_), _ = ray.wait(list(running))
                    made, notices, line, host = ray.get(ended)
                    place = running.pop(ended)
                    send()  # before this process writes what has come
                    hosts.setdefault(line, set()).add(host)
                    self._tell(notices)
                    yield place, unpacked(made, "cpu")
        finally:
            for left in running if ray.is_initialized() else ():
                ray.cancel(left, force=True)
        self._tell(software_notes(hosts))

    def _tell(self, notices: Iterable[str]) -> None:
        for text in notices:
            if text not in self.told:
                self.told.add(text)
                notify(text)

    def engine(self, engine: Engine, model: FaceModel) -> Engine:
        """The engine; with its open choices made by a worker, where workers compute elsewhere than this process."""
        return engine if self.device == model.device.type else self.settled(engine, model)

    def settled(self, engine: Engine, model: FaceModel) -> Engine:
        """The engine with its open choices made by a worker, for a driver without a GPU; none is TF32."""
        import ray

        ask = ray.remote(num_gpus=self.gpus_per_worker, num_cpus=0 if self.gpus_per_worker else 1)(_settled)
        with workers_errors():
            made: Engine = ray.get(ask.remote(packed(model), self.device, engine))
        chosen = engine.precision in (None, "auto") and made.precision == "tf32" and model.device.type != "cuda"
        return replace(made, precision="fp32") if chosen else made


def _settled(sent: bytes, device: str, engine: Engine) -> Engine:
    return fitted(engine.resolve(unpacked(sent, device)))


def connected(cluster: Cluster | None) -> AbstractContextManager[None]:
    """As ``Cluster.connected``, where there is a cluster."""
    return nullcontext() if cluster is None else cluster.connected()


def packed(value: object) -> bytes:
    """Serialise a value with tensors for another process, also if its classes are defined in a script."""
    from ray import cloudpickle

    file = io.BytesIO()
    torch.save(value, file, pickle_module=cloudpickle)
    return file.getvalue()


def unpacked(sent: bytes, device: str) -> Any:
    """Restore a value that was ``packed``, with all tensors on a device."""
    return torch.load(io.BytesIO(sent), map_location=device, weights_only=False)


def begin_worker(sent: Any, device: str, threads: int) -> Any:
    """Set up the process of a worker, and unpack its task from bytes or a reference to them.

    Raises:
        UnavailableError: There is no GPU where one is expected.
    """
    import ray

    keep_freed_memory()
    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            f"gpus_per_worker: expected workers with a GPU that PyTorch can use, got none on {socket.gethostname()}"
        )
    return unpacked(sent if isinstance(sent, bytes) else ray.get(sent), device)


@lru_cache(maxsize=1)
def _begun(sent: Any, device: str, threads: int) -> Any:
    """What this process, a worker, was sent last."""
    return begin_worker(sent, device, threads)


def _call(sent: Sequence[Any], device: str, threads: int, place: str, item: bytes) -> tuple[bytes, list[str], str, str]:
    """In a worker: what the function in ``sent`` returns, notices, software and host."""
    with suppress(OSError):
        os.chdir(place)  # the paths of the driver count from there
    do = _begun(sent[0], device, threads)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        made = do(unpacked(item, device))
    notices = [" ".join(str(each.message).split()) for each in caught if issubclass(each.category, Notice)]
    return packed(made), notices, software(device), socket.gethostname()


def software_notes(hosts: Mapping[str, set[str]]) -> list[str]:
    """A sentence where the workers' software or instruction set differs from the others' or from the driver's.

    Args:
        hosts: Machines by their software.
    """
    own = ", ".join(part for part in software().split(", ") if not part.startswith(("threads ", "device ")))
    found = different_software({**hosts, own: {"the driver"}}) if hosts else ""
    return [f"ray: the workers have different software, which can change bits: {found}"] if found else []


@contextmanager
def workers_errors() -> Iterator[None]:
    """Raise a worker's error as if it were raised here, if it is one that a user can correct.

    Raises:
        Error, OSError: The worker's.
        ClusterError: A worker cannot start, or is lost for good.
    """
    import ray.exceptions

    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and (isinstance(cause, ray.exceptions.RayError) or not _mendable(cause)):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            raise cause from None
        if isinstance(error, ray.exceptions.RayTaskError):
            raise
        last = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise ClusterError(f"ray: expected workers that do not die again and again, got {last}") from error


def _mendable(error: BaseException) -> bool:
    return isinstance(error, (Error, OSError))


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data without bars and messages of its own, and with the errors of the workers as they are."""
    import ray.data

    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    ours = {"enable_progress_bars": False, "print_on_execution_start": False, "raise_original_map_exception": True}
    before, level = {name: getattr(context, name) for name in ours}, logger.level
    try:
        for name, value in ours.items():
            setattr(context, name, value)
        logger.setLevel(logging.CRITICAL)  # what the driver raises says it
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)
