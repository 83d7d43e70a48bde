"""``fastadv verify``."""

from __future__ import annotations

from typing import Annotated

from fastadv.cli.fields import Changed, takes_groups
from fastadv.cli.names import Metric
from fastadv.cli.options import (
    AttackOptions,
    Decided,
    InputOptions,
    MetricOf,
    OutputOptions,
    PairOptions,
    PrintOptions,
    RunOptions,
)


@takes_groups
def verify(
    given: InputOptions,
    pairs: PairOptions,
    attack: Annotated[AttackOptions, Changed("attack", "Attack the first image of every pair.")],
    run: RunOptions,
    output: Annotated[
        OutputOptions, Changed("out", "Write verification.json, roc.svg and the images to this folder.", default=None)
    ],
    printing: PrintOptions,
    metric: MetricOf = Metric.cosine,
    threshold: Decided = None,
) -> None:
    """Verify pairs of faces, clean and under attack.

    Pairs of different people are attacked to match (impersonation), pairs of one person not to match (evasion). Each
    pair is then decided at its fold's threshold from clean pairs, as a deployed verifier would, or at --threshold.

    Example: fastadv verify --data lfw/ --model mobilefacenet --weights FILE --attack fim --eps 8/255 --out run/
    """
    from fastadv.cli.show import attack_title, print_next, print_verification, print_written, timed
    from fastadv.report.pages.curves import ROC, draw_verification
    from fastadv.runs.goals import check_goal
    from fastadv.studies import verify as verifying

    moves = attack.build_if_given(device=run.device, such_as="--eps, --steps")
    if moves is not None:
        check_goal(moves, "impersonate")
    plan = verifying.VerifyPlan(
        inputs=run.inputs(given, output),
        pairs=pairs.choice(),
        attack=moves,
        metric=metric.value,
        threshold=threshold,
    )
    result, seconds = timed(verifying.verify_folder, plan, quiet=printing.without_bars)
    title = f"{given.model}, {len(result.scores)} pairs{f', {attack_title(moves)}' if moves else ''}"
    if output.out is not None:
        draw_verification(result, output.out / ROC, title=title)
    if printing.ends({**verifying.describe(result), "seconds": round(seconds, 3)}):
        return
    print_verification(result, title, threshold)
    print_written(output.out)
    if moves is not None and output.out is not None:
        print_next("report", output.out, data=given.data, landmarks=given.landmarks)
    elif moves is None:
        at = round(result.threshold, 4)
        unusual = None if metric is Metric.cosine else metric.value
        print_next("attack", "fim", **given.again, threshold=at, metric=unusual, out="run")
