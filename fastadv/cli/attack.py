"""``fastadv attack``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from typer import Option

from fastadv.cli.fields import Changed, Without, takes_groups
from fastadv.cli.names import ATTACKS, Goal, Metric
from fastadv.cli.options import AttackOptions, InputOptions, MetricOf, OutputOptions, PrintOptions, RunOptions
from fastadv.core.errors import ArgumentError

if TYPE_CHECKING:
    from fastadv.runs.goals import GoalChoice

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
        Option(
            help="evade (with a random start, such as pgd's), impersonate, match, identify-as, misidentify, "
            "classify-as, misclassify (default: by attack)."
        ),
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
class ProcessOptions:
    """Where a run is computed, and which part of it."""

    panel: ClassVar[str] = "Run"

    device: Annotated[
        list[str] | None,
        Option(help="Run on cpu, cuda or cuda:N; several: a process on each (default: cpu)."),
    ] = None
    workers: Annotated[
        int | None, Option(min=1, help="On a CPU: attack in N processes, on disjoint cores (default: 1).")
    ] = None
    shard: Annotated[
        str | None, Option(metavar="K/N", help="Attack every N-th image, beginning with the K-th; see 'fastadv merge'.")
    ] = None


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
        OutputOptions, Changed("out", "Write images, manifest and run.json to this folder, or continue its run.")
    ],
    printing: PrintOptions,
) -> None:
    """Generate adversarial faces from a data set.

    Example: fastadv attack fim --data faces/ --model synth-vgg --threshold 0.3 --out run/
    """
    from fastadv.attacks import CATALOG
    from fastadv.cli.show import print_attack, print_next, timed
    from fastadv.runs.sharding import Shard
    from fastadv.studies.attack import AttackPlan, attack_as_planned
    from fastadv.studies.workers import attack_in_processes, worker_devices

    devices = worker_devices(processes.device or ["cpu"], processes.workers)
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
    if len(devices) > 1:
        summary, seconds = timed(attack_in_processes, plan, devices, quiet=printing.without_bars)
    else:
        summary, seconds = timed(attack_as_planned, plan, quiet=printing.without_bars)
    folder = output.folder if shard is None else shard.folder(output.folder)
    if printing.ends({**asdict(summary), "out": str(folder), "seconds": round(seconds, 3)}):
        return
    print_attack(summary, recipe, folder, seconds)
    if shard is None:
        print_next("report", folder, data=given.data, landmarks=given.landmarks)
    else:
        print_next("status", output.folder)
