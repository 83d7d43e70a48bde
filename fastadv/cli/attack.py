"""``fastadv attack``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from fastadv.attacks import CATALOG
from fastadv.cli.fields import Changed, Without, takes_groups
from fastadv.cli.options import (
    AttackName,
    AttackOptions,
    Goal,
    InputOptions,
    Metric,
    MetricOf,
    OutputOptions,
    RunOptions,
)
from fastadv.cli.show import print_attack, timed
from fastadv.runs.goals import GoalChoice
from fastadv.studies.attack import AttackPlan, attack_as_planned

_PAPERS = {"features": "match", "gallery": "identify-as"}  # what the paper of an attack wants, by its level


@dataclass(frozen=True, kw_only=True)
class GoalOptions:
    """What the attack is to reach, for which faces."""

    panel: ClassVar[str] = "Goal"

    threshold: Annotated[
        float | None,
        typer.Option(
            help="Threshold of the verifier, as measured by 'fastadv verify'; needed for evade, impersonate and match. "
            "With --layer: largest distance between the layer's features that counts as a match."
        ),
    ] = None
    goal: Annotated[
        Goal | None,
        typer.Option(
            help="Goal of the attack. evade: not verified as oneself. impersonate: verified as the target. match: the "
            "target's features. identify-as, misidentify: nearest to the target's template in a gallery, or to another "
            "person's than one's own. classify-as, misclassify: the target's class of the network's class head, or "
            "another class than before (default: impersonate; match for df; identify-as for knn-df)."
        ),
    ] = None
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Attack the first image of each line of this CSV file (first,second,same), with the second as target."
        ),
    ] = None
    layer: Annotated[
        str | None,
        typer.Option(help="Layer whose features --goal match compares, by its name (default: the embedding)."),
    ] = None
    gallery: Annotated[
        Path | None,
        typer.Option(
            help="Enrol these identities as templates for identify-as and misidentify (default: those of --data)."
        ),
    ] = None
    neighbours: Annotated[
        int | None,
        typer.Option(help="Number of nearest templates that vote for identify-as and misidentify (default: 1)."),
    ] = None
    metric: MetricOf = Metric.cosine
    limit: Annotated[int | None, typer.Option(help="Process at most N images.")] = None

    def choice(self, usual: str) -> GoalChoice:
        """The goal of every face; ``usual`` where none is given."""
        return GoalChoice(
            goal=usual if self.goal is None else self.goal.value,
            threshold=self.threshold,
            metric=self.metric.value,
            layer=self.layer,
            neighbours=self.neighbours,
        )


@takes_groups
def attack(
    name: Annotated[
        AttackName,
        typer.Argument(help="Run this attack. " + "; ".join(f"{k}: {e.what}" for k, e in CATALOG.items())),
    ],
    given: InputOptions,
    aim: GoalOptions,
    moves: Annotated[AttackOptions, Without("attack")],
    run: RunOptions,
    output: Annotated[
        OutputOptions,
        Changed("out", "Write images, manifest.parquet and run.json to this folder; continue an unfinished run."),
    ],
) -> None:
    """Generate adversarial faces from a data set.

    Without --pairs, the target of every image is the first image of the next identity; with --goal evade every image
    moves away from its own embedding, which needs an attack with a random start, such as pgd. The same command
    continues an interrupted run, which ends with the same bytes as one without interruption.

    Example: fastadv attack fim --data faces/ --model mobilefacenet --weights FILE --threshold 0.31 --out adversarial/
    """
    recipe = moves.of(name).build(device=run.device)
    plan = AttackPlan(
        inputs=run.inputs(given, output),
        attack=recipe,
        aim=aim.choice(_PAPERS.get(CATALOG[name.value].level, "impersonate")),
        pairs=aim.pairs,
        gallery=aim.gallery,
        limit=aim.limit,
    )
    summary, seconds = timed(attack_as_planned, plan, quiet=output.as_json)
    print_attack(summary, recipe, output.folder, seconds, as_json=output.as_json)
