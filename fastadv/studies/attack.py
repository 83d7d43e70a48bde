"""``fastadv attack``: from what a user asks for to a folder of adversarial faces."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastadv.attacks import Recipe
from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource
from fastadv.data.run_files import RUN
from fastadv.distributed.attack import WorkerTask, attack_on_cluster
from fastadv.distributed.cluster import Cluster
from fastadv.distributed.output import output_of
from fastadv.engine import Engine
from fastadv.models import FaceModel
from fastadv.runs import RunIdentity, list_hash
from fastadv.runs.attack import AttackSummary, attack_folder, plan
from fastadv.runs.enrolment import enrol
from fastadv.runs.goals import Enrolled, GoalChoice
from fastadv.runs.inputs import RunInputs
from fastadv.runs.merging import take_back
from fastadv.runs.production import Order
from fastadv.runs.sharding import Shard, begun_shards, check_place, known_folder


@dataclass(frozen=True, kw_only=True)
class AttackPlan:
    """An attack on a data set as ``fastadv attack`` is asked for it.

    Attributes:
        inputs: Network, faces and folder.
        attack: The attack.
        aim: Its goal.
        pairs: A list of sources and targets; None for the next identity of each image.
        gallery: Faces to enrol; None for the data itself.
        limit: So many images at most.
        shard: Every N-th image only, in a folder of its own below that of the run; None: all.

    Raises:
        ValueError: The attack has no such goal, or a gallery is given to one that takes none.
    """

    inputs: RunInputs
    attack: Recipe
    aim: GoalChoice
    pairs: Path | None = None
    gallery: Path | None = None
    limit: int | None = None
    shard: Shard | None = None

    def __post_init__(self) -> None:
        self.aim.check_attack(self.attack)
        if self.gallery is not None and not self.aim.needs_gallery:
            raise ArgumentError(
                f"gallery: expected it with --goal identify-as or misidentify only, got {self.gallery} with "
                f"{self.aim.goal}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedAttack:
    """An attack whose network, faces and identity are there, and checked; no image is attacked yet.

    Attributes:
        wanted: What was asked for; its folder is the shard's where there is one.
        model: The network.
        source: The faces.
        known: The faces to enrol, where the goal needs a gallery.
        orders: What to make.
        identity: What decides about every byte, of the shard where there is one.
    """

    wanted: AttackPlan
    model: FaceModel
    source: FaceSource
    known: FaceSource
    orders: Sequence[Order]
    identity: RunIdentity

    def run(self, progress: Progress = silent) -> AttackSummary:
        """Write images and manifest into the folder.

        Raises:
            ValueError, OSError: As the folder; else as ``attack_folder``.
        """
        given, aim, model = self.wanted.inputs, self.wanted.aim, self.model
        with self.identity.work(given.folder, fresh=given.fresh, progress=progress) as work:
            enrolled = self.enrolled(progress)
            return attack_folder(
                self.source, model, self.wanted.attack, aim, work, enrolled=enrolled, orders=self.orders
            )

    def enrolled(self, progress: Progress = silent) -> Enrolled | None:
        """The people, where the goal needs a gallery."""
        aim = self.wanted.aim
        if not aim.needs_gallery:
            return None
        return enrol(self.known, self.known.names, self.model, metric=aim.metric, progress=progress)


def attack_as_planned(wanted: AttackPlan, *, progress: Progress = silent) -> AttackSummary:
    """Attack as planned, and write images and manifest into the folder.

    Raises:
        ValueError, OSError: As ``prepare_attack`` and ``PreparedAttack.run``.
    """
    return prepare_attack(wanted, progress=progress).run(progress)


def attack_on_ray(wanted: AttackPlan, cluster: Cluster, *, progress: Progress = silent) -> AttackSummary:
    """Attack as planned in the workers of a Ray cluster; all that is settled, listed and hashed is so here, once.

    The same call continues a run that was stopped, and in a folder ``attack_as_planned`` does too.

    Args:
        wanted: Without a shard; its folder is one that all nodes share, or a URL, and all nodes see the faces too.
        cluster: The workers.
        progress: Told of the images of all workers together.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: There is no such cluster, or its workers die again and again.
        ValueError, OSError: As ``prepare_attack``, ``output_of`` and ``attack_on_cluster``.
    """
    given = wanted.inputs
    with cluster.connected(), output_of(given.folder, fresh=given.fresh) as output:
        given = replace(given, out=output.folder)
        begun = (output.folder / RUN).is_file() and not given.fresh
        if cluster.device != torch.device(given.device).type and not begun:
            given = replace(given, engine=cluster.settled(given.engine, given.open_model()))
        prepared = prepare_attack(replace(wanted, inputs=given), progress=progress)
        task = WorkerTask(
            model=prepared.model,
            source=prepared.source,
            attack=wanted.attack,
            aim=wanted.aim,
            enrolled=prepared.enrolled(progress),
            sample=prepared.orders[0],
            seed=given.seed,
            engine=prepared.identity.engine,
            out=output.out,
            place=os.getcwd(),
        )
        return attack_on_cluster(
            task, prepared.orders, prepared.identity, output, cluster, fresh=given.fresh, progress=progress
        )


def prepare_attack(wanted: AttackPlan, *, progress: Progress = silent) -> PreparedAttack:
    """Open network, faces and gallery, and check everything that can be wrong before an image is attacked.

    Raises:
        ValueError, OSError: As opening the network and the faces, or the folder cannot take the shard.
    """
    run, shard, aim = wanted.inputs.folder, wanted.shard, wanted.aim
    if shard is not None:
        check_place(run)
        shard.check_folder(run)
        if not begun_shards(run):
            _check_settled(wanted.inputs.engine)
        wanted = replace(wanted, inputs=replace(wanted.inputs, out=shard.folder(run)))
    given = wanted.inputs
    model = given.open_model()
    aim.check_model(model)
    if shard is not None and given.search is not None:
        shard.take_landmarks(run)
    source = given.open_faces(model, progress=progress)
    known = source if wanted.gallery is None else given.open_faces(model, wanted.gallery, progress=progress)
    orders = plan(source, aim, pairs=wanted.pairs, limit=wanted.limit)
    aim.check_people(orders, known.names)
    aim.check_guides(wanted.attack, orders)
    used = sorted({name for order in orders for name in (order.source, order.target) if name})
    identity = given.identity(
        "attack",
        model,
        given.used(source, used),
        attack=wanted.attack,
        others={"gallery": given.used(known)} if aim.needs_gallery else {},
        out=known_folder(run, shard),
        rules={
            **aim.describe(),
            **({} if wanted.gallery is None else {"selection": {"gallery": "GALLERY"}}),
            "images and targets (--pairs, --limit)": list_hash(orders),
        },
        images=len(orders),
    )
    part: Sequence[Order] = orders
    if shard is not None:
        part = shard.part(orders)
        shard.check(run, identity.config, identity.shown, fresh=given.fresh)
        if not given.fresh:
            take_back(run, shard)
        identity = replace(identity, config=shard.identity(identity.config))
    return PreparedAttack(wanted=wanted, model=model, source=source, known=known, orders=part, identity=identity)


def _check_settled(engine: Engine) -> None:
    """Insists on an engine for which the shards of a run, begun at the same time, choose the same."""
    for name, value, other in (("batch", engine.batch, 0), ("precision", engine.precision, "auto")):
        if value == other:
            raise ArgumentError(
                f"{name}: expected a fixed value for the first shard, got {other}; shards that start together would "
                "each measure their own"
            )
