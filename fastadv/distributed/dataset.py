"""An attack as a step of a Ray Data pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastadv.attacks import Goal, Recipe, check_recipe
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.extras import require_extra
from fastadv.core.fields import check_seed
from fastadv.data import face_id, to_tensor, to_uint8
from fastadv.data.images import decode_image
from fastadv.distributed.cluster import Cluster, begin_worker, packed
from fastadv.distributed.shared_engine import SharedEngine
from fastadv.engine import Engine, Job
from fastadv.engine.run import check_model
from fastadv.models import FaceModel
from fastadv.runs.workers import fitted

if TYPE_CHECKING:
    import ray.data

Row = Mapping[str, Any]
_ROWS = 64  # of a call at least
_FOUND = ("success", "ticks", "linf", "l2", "score_before", "score_after", "nonfinite", "batch")


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetTask:
    """What every worker is sent; the fields are arguments of ``run``."""

    attack: Recipe
    goal: Goal | Callable[[Row], Goal]
    model: FaceModel
    image: str
    name: str
    seed: int
    engine: Engine


def run(
    attack: Recipe,
    goal: Goal | Callable[[Row], Goal],
    model: FaceModel,
    dataset: ray.data.Dataset,
    *,
    image: str = "image",
    name: str = "name",
    seed: int = 0,
    engine: Engine | None = None,
    workers: int = 1,
    gpus_per_worker: float = 0.0,
) -> ray.data.Dataset:
    """Attack the images of a Ray dataset, lazily, as one more step of its pipeline. ::

        faces = ray.data.read_parquet("s3://bucket/faces")  # columns image (bytes of a file), name, target
        goal = lambda row: fa.Impersonate(embeddings[row["target"]], threshold=0.3)
        made = fa.distributed.run(fa.attacks.fim(eps=8 / 255), goal, model, faces, workers=4, gpus_per_worker=1)
        made.write_parquet("s3://bucket/adversarial")

    As with ``fa.stream``, the result of an image depends on model, image, name, goal, attack and seed, and not on the
    other rows, their order, the number of workers, or workers that die.

    Args:
        attack: The attack, such as ``fa.attacks.fim()``.
        goal: One goal for all images, without labels and references or with one; or a function from a row to the goal
            of its image. All goals are of one kind.
        model: The attacked network, in evaluation mode.
        dataset: Rows with an image and a name.
        image: Column of the images: ``(H, W, 3)`` uint8 RGB, or the bytes of an image file; of the model's size.
        name: Column of the names. The random numbers of an image depend on the hash of its name.
        seed: Random seed.
        engine: The engine; None: the default one. With GPUs, ``batch`` and ``precision`` must be fixed.
        workers: Number of workers, each with one engine.
        gpus_per_worker: GPUs of each worker, also a fraction; 0: workers compute on CPUs.

    Returns:
        The rows, in any order, with the adversarial image ``(H, W, 3)`` uint8 in place of the image, and the further
        columns success, ticks, linf, l2, score_before, score_after, nonfinite, batch (as of ``Result``), flags (joined
        by ";"), and success_float where the engine measures it.

    Raises:
        MissingPackageError: Ray is not installed.
        ValueError, TypeError: An argument is wrong. When the dataset is read: an image has another size, a column is
            missing, or goals are of different kinds.
    """
    require_extra("ray", "fastadv.distributed.run")
    import ray

    recipe = check_recipe(attack)
    check_model(model)
    check_seed(seed)
    if not isinstance(dataset, ray.data.Dataset):
        raise ArgumentTypeError(f"dataset: expected a ray.data.Dataset, got {type(dataset).__name__}")
    if not (isinstance(goal, Goal) or callable(goal)):
        raise ArgumentTypeError(f"goal: expected a goal, or a function from a row to one, got {type(goal).__name__}")
    if isinstance(goal, Goal) and goal.row_count not in (None, 1):
        raise ArgumentError(f"goal: expected one row for all images, got {goal.row_count}; give a function of the row")
    cluster = Cluster(workers=workers, gpus_per_worker=gpus_per_worker)
    engine = engine or Engine()
    if not gpus_per_worker:
        engine = engine.resolve(model)  # measured once, not by each worker
    elif engine.batch == 0 or engine.precision == "auto":
        raise ArgumentError(
            f"engine: expected a fixed batch and precision with GPUs, got {engine.batch} and {engine.precision}; "
            "workers would each measure their own"
        )
    task = DatasetTask(attack=recipe, goal=goal, model=model, image=image, name=name, seed=seed, engine=fitted(engine))
    rows = max(_ROWS, engine.slots or 0)
    given = (ray.put(packed(task)), cluster.device, cluster.threads)
    return cluster.mapped(dataset, DatasetWorker, *given, rows=rows, spare=1)


class DatasetWorker:
    """An actor of Ray Data: a process with one engine, in which several calls run at a time."""

    def __init__(self, sent: Any, device: str, threads: int) -> None:
        """Unpack a `DatasetTask`; the arguments are those of `AttackWorker`."""
        self._task: DatasetTask = begin_worker(sent, device, threads)
        task = self._task
        self._engine = SharedEngine(task.attack, task.model, seed=task.seed, engine=task.engine)

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The rows of a block with their results, in its order; a repeated call returns the same."""
        task = self._task
        for column in (task.image, task.name):
            if column not in columns:
                raise ArgumentError(f"dataset: expected a column {column!r}, got {', '.join(columns)}")
        count = len(columns[task.name])
        jobs = [self._job({name: values[k] for name, values in columns.items()}) for k in range(count)]
        found = dict(self._engine.results(iter(jobs)))
        results = [found[k] for k in range(count)]
        names = (*_FOUND, *(("success_float",) if task.engine.success_float else ()))
        return {
            **columns,
            task.image: np.stack([to_uint8(result.image) for result in results]),
            **{name: [getattr(result, name) for result in results] for name in names},
            "flags": [";".join(result.flags) for result in results],
        }

    def _job(self, row: Row) -> Job:
        task = self._task
        name = str(row[task.name])
        goal = task.goal if isinstance(task.goal, Goal) else task.goal(row)
        if not isinstance(goal, Goal):
            raise ArgumentTypeError(f"goal: expected a goal for {name}, got {type(goal).__name__}")
        return Job(name=name, id=face_id(name), image=self._image(name, row[task.image]), goal=goal)

    def _image(self, name: str, value: object) -> Tensor:
        pixels = decode_image(value, name) if isinstance(value, bytes) else np.asarray(value)
        shape = (*self._task.model.input_size, 3)
        if pixels.dtype != np.uint8 or pixels.shape != shape:
            raise ArgumentError(
                f"image {name!r}: expected uint8 of shape {shape}, got {pixels.dtype} of shape {pixels.shape}; "
                "align the face first"
            )
        return to_tensor(pixels)
