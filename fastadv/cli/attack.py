"""``fastadv attack``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from typer import Option

from fastadv.cli.fields import Changed, Without, takes_groups
from fastadv.cli.names import ATTACKS, Goal, Metric
from fastadv.cli.options import AttackOptions, InputOptions, MetricOf, OutputOptions, PrintOptions, RunOptions

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


@takes_groups
def attack(
    name: Annotated[
        str, ATTACKS.argument("Run this attack, a name of 'fastadv attacks'.", metavar="NAME", panel="Attack")
    ],
    given: InputOptions,
    aim: GoalOptions,
    moves: Annotated[AttackOptions, Without("attack")],
    run: RunOptions,
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
    from fastadv.studies.attack import AttackPlan, attack_as_planned

    recipe = moves.of(name).build(device=run.device)
    plan = AttackPlan(
        inputs=run.inputs(given, output),
        attack=recipe,
        aim=aim.choice(_PAPERS.get(CATALOG[name].level, "impersonate")),
        pairs=aim.pairs,
        gallery=aim.gallery,
        limit=aim.limit,
    )
    summary, seconds = timed(attack_as_planned, plan, quiet=printing.without_bars)
    found = {**asdict(summary), "out": str(output.folder), "seconds": round(seconds, 3)}
    if printing.ends(found):
        return
    print_attack(summary, recipe, output.folder, seconds)
    print_next("report", output.folder, data=given.data, landmarks=given.landmarks)
