"""``fastadv identify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Option

from fastadv.cli.fields import Changed, takes_groups
from fastadv.cli.names import IdentifyGoal, Metric
from fastadv.cli.options import AttackOptions, InputOptions, MetricOf, OutputOptions, PrintOptions, RunOptions

if TYPE_CHECKING:
    from fastadv.studies import identify as identifying


@takes_groups
def identify(
    given: InputOptions,
    attack: Annotated[AttackOptions, Changed("attack", "Attack the faces of enrolled people.")],
    run: RunOptions,
    output: Annotated[
        OutputOptions,
        Changed(
            "out",
            "Write identification.json, its figure and the images to this folder; required with --attack.",
            default=None,
        ),
    ],
    printing: PrintOptions,
    enrol: Annotated[
        int, Option(help="Form each template from this many images; people without a further image are not enrolled.")
    ] = 2,
    neighbours: Annotated[int, Option(help="Identify a face by a vote of this many nearest enrolled images.")] = 3,
    limit: Annotated[int | None, Option(help="Use at most N faces of enrolled people, spread over the list.")] = None,
    goal: Annotated[
        IdentifyGoal | None,
        Option(
            help="Goal of the attack. identify-as: identified as the next enrolled person. misidentify: as any other "
            "person (default: identify-as)."
        ),
    ] = None,
    metric: MetricOf = Metric.cosine,
) -> None:
    """Identify faces in a gallery, clean and under attack.

    A person's template is the mean of their first --enrol images; their other images are identified. Faces of people
    who are not enrolled set the thresholds. A face is identified by the nearest template (rank 1) and by the nearest
    enrolled images; in the open set (TPIR at FPIR) only where the similarity reaches the threshold. Attacked faces are
    compared with the clean templates at the clean thresholds, as in a deployed system.

    Example: fastadv identify --data lfw/ --model mobilefacenet --weights FILE --attack knn-df --limit 500 --out run/
    """
    from fastadv.cli.show import attack_title, print_next, print_written, timed
    from fastadv.report.pages.curves import IDENTIFICATION, draw_identification
    from fastadv.runs.goals import GoalChoice
    from fastadv.studies import identify as identifying

    moves = attack.build_if_given(device=run.device, such_as="--goal, --eps", goal=goal)
    aim = None
    if moves is not None:
        aim = GoalChoice(goal="identify-as" if goal is None else goal.value, metric=metric.value)
        aim.check_attack(moves)
    plan = identifying.IdentifyPlan(
        inputs=run.inputs(given, output),
        enrol=enrol,
        limit=limit,
        neighbours=neighbours,
        attack=moves,
        aim=aim,
        metric=metric.value,
    )
    result, seconds = timed(identifying.identify_folder, plan, quiet=printing.without_bars)
    title = f"{given.model}, {result.clean.mated} faces of {result.clean.people} people" + (
        f", {attack_title(moves)}, {aim.goal}" if moves and aim else ""
    )
    if output.out is not None:
        draw_identification(result, output.out / IDENTIFICATION, title=title)
    if printing.ends({**identifying.describe(result), "seconds": round(seconds, 3)}):
        return
    _print(result, title, metric.value)
    print_written(output.out)
    if moves is None:
        print_next("identify", **given.again, attack="knn-df", limit=500, out="run")
    elif output.out is not None:
        print_next("report", output.out, data=given.data, landmarks=given.landmarks)


def _print(result: identifying.Identification, title: str, metric: str) -> None:
    from fastadv.cli.show import percent, print_attacks, print_line, print_notes, print_table
    from fastadv.report.pages.identify import figures
    from fastadv.studies import identify as identifying

    header: tuple[str, ...] = ("", "clean", "attacked")
    rows = [(name, percent(before), percent(after)) for name, before, after in figures(identifying.describe(result))]
    shown = [row if result.attacked else row[:2] for row in rows]
    print_table(title, shown, header if result.attacked else header[:2])
    drawn = [rate for rate in result.clean.open_set if rate.threshold is not None]
    if drawn:
        thresholds = ", ".join(f"FPIR {rate.fpir:g} {rate.threshold:.4f}" for rate in drawn)
        print_line(
            f"thresholds from {result.clean.unmated} faces of people who are not enrolled ({metric}): {thresholds}"
        )
    print_notes(result.clean.notes)
    print_attacks({result.aim or "": result.summary}, "the attack")
