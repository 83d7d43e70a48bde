"""``fastadv attack``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from typer import Option

from fastadv.cli.fields import Changed, Without, takes_groups
from fastadv.cli.names import ATTACKS, Goal, Metric
from fastadv.cli.options import (
    AttackOptions,
    ClusterOptions,
    InputOptions,
    MetricOf,
    OutputOptions,
    PrintOptions,
    RunOptions,
)
from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress
from fastadv.core.remote import is_remote

if TYPE_CHECKING:
    from fastadv.distributed import Cluster
    from fastadv.runs.attack import AttackSummary
    from fastadv.runs.goals import GoalChoice
    from fastadv.studies.attack import AttackPlan

_PAPERS = {"features": "match", "gallery": "identify-as"}  # what the paper of an attack wants, by its level


@dataclass(frozen=True, kw_only=True)
class GoalOptions:
    """What the attack is to reach, for which faces."""

    panel: ClassVar[str] = "Goal"

    threshold: Annotated[
        float | None, Option(help="Similarity threshold, from 'fastadv verify'; with --layer: a distance.")
    ] = None
    goal: Annotated[
        Goal | None,
        Option(help="What to reach: a goal of 'fastadv attacks' (default: by attack)."),
    ] = None
    pairs: Annotated[Path | None, Option(help="Attack these pairs, target second (default: the next identity).")] = None
    layer: Annotated[str | None, Option(help="With --goal match: compare this layer (default: the embedding).")] = None
    gallery: Annotated[
        Path | None, Option(help="With identify-as, misidentify: enrol these faces (default: --data).")
    ] = None
    neighbours: Annotated[
        int | None, Option(help="With identify-as, misidentify: number of voting templates (default: 1).")
    ] = None
    max_distance: Annotated[
        float | None, Option(help="Attack P(same person), 0 at this distance (default: the distance).")
    ] = None
    metric: MetricOf = Metric.cosine
    limit: Annotated[int | None, Option(help="Process at most N images.")] = None

    def choice(self, usual: str) -> GoalChoice:
        """The goal of every face; ``usual`` where none is given."""
        from fastadv.runs.goals import GoalChoice

        return GoalChoice(
            goal=usual if self.goal is None else self.goal.value,
            threshold=self.threshold,
            metric=self.metric.value,
            layer=self.layer,
            neighbours=self.neighbours,
            max_distance=self.max_distance,
        )


@dataclass(frozen=True, kw_only=True)
class ProcessOptions(ClusterOptions):
    """Where a run is computed, and which part of it."""

    panel: ClassVar[str] = "Run"

    device: Annotated[
        list[str] | None,
        Option(help="Run on cpu, cuda or cuda:N; several: a process on each (default: cpu)."),
    ] = None
    workers: Annotated[
        int | None, Option(min=1, help="Attack in N processes: of a CPU, or with --ray (default: 1).")
    ] = None
    shard: Annotated[
        str | None, Option(metavar="K/N", help="Attack every N-th image, beginning with the K-th; see 'fastadv merge'.")
    ] = None

    @property
    def cluster(self) -> Cluster | None:
        """The Ray cluster; None without one.

        Raises:
            ArgumentError: An option that does not go with one, or without one.
        """
        if self.ray is None:
            return replace(self, workers=None).on("cpu")  # without a cluster they are processes of this machine
        if self.shard is not None:
            raise ArgumentError(f"shard: expected none with --ray, which divides the images itself, got {self.shard}")
        devices = self.device or ["cpu"]
        if len(devices) > 1:
            raise ArgumentError(f"device: expected one with --ray, got {', '.join(devices)}; use --gpus-per-worker")
        return self.on(devices[0])

    @property
    def devices(self) -> tuple[str, ...]:
        """The device of each process of this machine, one with a cluster; as ``worker_devices``."""
        from fastadv.studies.workers import worker_devices

        return worker_devices(self.device or ["cpu"], self.workers if self.ray is None else None)


@takes_groups
def attack(
    name: Annotated[
        str, ATTACKS.argument("Run this attack, a name of 'fastadv attacks'.", metavar="NAME", panel="Attack")
    ],
    given: InputOptions,
    aim: GoalOptions,
    moves: Annotated[AttackOptions, Without("attack")],
    run: Annotated[RunOptions, Without("device")],
    processes: ProcessOptions,
    output: Annotated[
        OutputOptions, Changed("out", "Write the run to this folder (with --ray also a URL), or continue it.")
    ],
    printing: PrintOptions,
) -> None:
    """Generate adversarial faces from a data set.

    Example: fastadv attack fim --data faces/ --model synth-vgg --threshold 0.3 --out run/
    """
    from fastadv.attacks import CATALOG
    from fastadv.cli.show import attack_title, print_next, print_summary, timed
    from fastadv.runs.sharding import Shard
    from fastadv.studies.attack import AttackPlan

    cluster, devices = processes.cluster, processes.devices
    shard = None if processes.shard is None else Shard.parse(processes.shard)
    if shard is not None and len(devices) > 1:
        raise ArgumentError(f"shard: expected one process with it, got {len(devices)}; give each a shard of its own")
    run = replace(run, device=devices[0])
    recipe = moves.of(name).build(device=run.device)
    plan = AttackPlan(
        inputs=run.inputs(given, output),
        attack=recipe,
        aim=aim.choice(_PAPERS.get(CATALOG[name].level, "impersonate")),
        pairs=aim.pairs,
        gallery=aim.gallery,
        limit=aim.limit,
        shard=shard,
    )
    summary, seconds = timed(_attack, plan, devices, cluster, quiet=printing.without_bars)
    folder = output.folder if shard is None else shard.folder(output.folder)
    if printing.ends({**asdict(summary), "out": str(folder), "seconds": round(seconds, 3)}):
        return
    print_summary(summary, attack_title(recipe), folder, seconds)
    if shard is not None:
        print_next("status", output.folder)
    elif not is_remote(folder):
        print_next("report", folder, data=given.data, landmarks=given.landmarks)


def _attack(plan: AttackPlan, devices: Sequence[str], cluster: Cluster | None, *, progress: Progress) -> AttackSummary:
    """Attack in this process, in several, or on Ray."""
    from fastadv.studies.attack import attack_as_planned, attack_on_ray
    from fastadv.studies.workers import attack_in_processes

    if cluster is not None:
        return attack_on_ray(plan, cluster, progress=progress)
    if len(devices) > 1:
        return attack_in_processes(plan, devices, progress=progress)
    return attack_as_planned(plan, progress=progress)
