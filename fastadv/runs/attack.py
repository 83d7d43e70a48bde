"""``fastadv attack``: adversarial faces from a folder of identities."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fastadv.attacks import Evade, Goal, Impersonate, Recipe, check_recipe
from fastadv.core import text
from fastadv.core.errors import ArgumentError
from fastadv.data import Face, FaceSource, ManifestRow, Pair
from fastadv.data.dealt_pairs import by_identity
from fastadv.data.manifest import iterate_manifest
from fastadv.data.names import fault as fault_of
from fastadv.data.names import shown
from fastadv.data.pair_lists import read_pairs_of
from fastadv.engine import notices
from fastadv.engine.job import MET_AT_START
from fastadv.models import FaceModel
from fastadv.recognition import count_success, mean_of
from fastadv.runs.goals import Enrolled, GoalChoice
from fastadv.runs.production import NONE_KNOWN, GoalOf, Order, produce, produced
from fastadv.runs.work import Work


@dataclass(frozen=True, kw_only=True)
class AttackSummary:
    """What an attack run came to.

    Attributes:
        images: How many were made.
        success: Share that reach the goal as 8-bit images.
        met_before: Share whose clean image reached the goal already.
        met_before_images: How many these are.
        success_of_rest: Share of the others that reach the goal as 8-bit images; None where there are no others.
        rest_successes: How many these are: those that the norms are of.
        success_float: Share of all images that reached the goal before rounding; None where that was not measured.
        mean_ticks: Model evaluations an image, in the mean.
        mean_l2: Mean L2 norm of the change of the successes that did not meet the goal before; None of none.
        mean_linf: Mean of their largest change of a pixel; None of none.
        notices: What a reader must know: flags with counts and names.
    """

    images: int
    success: float
    met_before: float
    met_before_images: int
    success_of_rest: float | None
    rest_successes: int
    success_float: float | None
    mean_ticks: float
    mean_l2: float | None
    mean_linf: float | None
    notices: tuple[str, ...]


_NO_FLAGS = ("", ())  # of most images: they share one


def summarise(rows: Iterable[ManifestRow]) -> AttackSummary:
    """Shares and means of a manifest's rows, of which nothing else is kept.

    Raises:
        ValueError: There are no rows.
    """
    figures = array("d")
    flags: list[tuple[str, tuple[str, ...]]] = []
    for row in rows:
        unknown = row.success_float is None
        figures.extend((row.success, met_before(row), math.nan if unknown else row.success_float or 0.0))
        figures.extend((row.ticks, row.l2, row.linf))
        flags.append((row.name, tuple(filter(None, row.flags.split(";")))) if row.flags else _NO_FLAGS)
    success, met, before_rounding, ticks, l2, linf = np.array(figures).reshape(-1, 6).T
    n = len(success)
    if not n:
        raise ArgumentError("rows: expected at least one image, got none")
    hits, was_met = success > 0, met > 0
    found, counted = count_success(hits, was_met), hits & ~was_met
    return AttackSummary(
        images=n,
        success=found.successes / n,
        met_before=found.met_before_images / n,
        met_before_images=found.met_before_images,
        success_of_rest=found.success_of_rest,
        rest_successes=found.rest_successes,
        success_float=None if np.isnan(before_rounding).any() else float(before_rounding.sum()) / n,
        mean_ticks=float(ticks.sum()) / n,
        mean_l2=mean_of(l2, counted),
        mean_linf=mean_of(linf, counted),
        notices=notices(flags),
    )


def met_before(row: ManifestRow) -> bool:
    """Whether the image's clean version reached the goal already."""
    return MET_AT_START in row.flags.split(";")


def summary_lines(
    summary: AttackSummary, percent: Callable[[float | None], str] = text.percent
) -> tuple[tuple[str, str], ...]:
    """The name and value of each figure: a column of every table about attacks.

    Args:
        summary: Of a run, or of a part of it.
        percent: How a share is written.
    """
    rest = summary.images - summary.met_before_images
    of_rest = f" ({summary.rest_successes:,} of {rest:,})" if rest else ""
    return (
        ("images", f"{summary.images:,}"),
        ("success, 8-bit image", percent(summary.success)),
        ("met before", f"{percent(summary.met_before)} ({summary.met_before_images:,} of {summary.images:,})"),
        ("success of the rest", percent(summary.success_of_rest) + of_rest),
        ("success before rounding", percent(summary.success_float)),
        ("evaluations an image, mean", f"{summary.mean_ticks:.2f}"),
        ("L2, mean *", text.NONE if summary.mean_l2 is None else f"{summary.mean_l2:.3f}"),
        ("largest change, mean *", text.NONE if summary.mean_linf is None else f"{255 * summary.mean_linf:.2f}/255"),
    )


def summary_rows(
    columns: Iterable[AttackSummary], percent: Callable[[float | None], str] = text.percent
) -> tuple[tuple[str, ...], ...]:
    """The rows of a table with a column for each summary."""
    lines = zip(*(summary_lines(summary, percent) for summary in columns), strict=True)
    return tuple((line[0][0], *(value for _, value in line)) for line in lines)


NORMS_NOTE = "* of the successes that did not meet the goal before the attack"
"""What the starred lines of ``summary_lines`` are about."""


def next_identity(names: Sequence[str]) -> list[Order]:
    """For every image the first image of the next identity, around the circle; names in their own order.

    Raises:
        ValueError: There is one identity only.
    """
    first = {person: found[0] for person, found in by_identity(names).items()}
    identities = list(first)
    if len(identities) < 2:
        raise ArgumentError(
            f"data: expected at least two identities, so that each image has a target, got {len(identities)}"
        )
    after = dict(zip(identities, identities[1:] + identities[:1], strict=True))
    return [Order(name=n, source=n, target=first[after[n.rpartition("/")[0]]]) for n in names]


def plan(source: FaceSource, aim: GoalChoice, *, pairs: Path | None, limit: int | None) -> list[Order]:
    """What to make: every image of the folder, or the first image of every pair of a CSV file.

    Without pairs, the target of an image is the first image of the next identity, where the aim needs one.

    Raises:
        ValueError: A pair's image is missing, two orders have one name, or the limit is below 1.
        AlignmentError, ImageError: An image that cannot be used, as ``FaceSource.check``.
    """
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit: expected at least 1, got {limit}")
    if pairs is not None:
        listed = read_pairs_of(source, pairs)
        orders = [Order(name=pair_name(p.first, p.second), source=p.first, target=p.second) for p in listed]
    elif aim.needs_target:
        orders = next_identity(source.names)
    else:
        orders = [Order(name=n, source=n) for n in source.names]
    orders = check_unique(orders if limit is None else orders[:limit])
    source.check(name for order in orders for name in (order.source, order.target) if name)
    return orders


def pair_name(first: str, second: str) -> str:
    """The name of the image made from ``first`` for the pair (first, second), in the first one's folder."""
    return f"{first}__{second.replace('/', '+')}"


def source_name(row: ManifestRow) -> str:
    """The face that a row's image was made from: pairs carry their second image in the name."""
    suffix = f"__{row.target.replace('/', '+')}"
    return row.name.removesuffix(suffix) if row.target else row.name


def pair_orders(pairs: Iterable[Pair]) -> list[Order]:
    """The first image of every pair, with the second as its target.

    Raises:
        ValueError: As ``check_unique``.
    """
    return check_unique([Order(name=pair_name(p.first, p.second), source=p.first, target=p.second) for p in pairs])


def attack_pairs(
    pairs: Sequence[Pair],
    source: FaceSource,
    attack: Recipe,
    model: FaceModel,
    work: Work,
    *,
    target: Callable[[Order], Tensor],
    threshold: float,
    metric: str = "cosine",
    goal: Callable[[Goal], Goal] = lambda goal: goal,
    known: Mapping[str, Tensor] = NONE_KNOWN,
    stage: str,
) -> list[ManifestRow]:
    """Attack the first image of every pair, and finish the folder: pairs of two people to match, those of one not to.

    Args:
        pairs: What to attack.
        source: The faces.
        attack: How to move.
        model: The model to attack.
        target: What the goal of an order compares with, ``(1, ...)``: an image or an embedding.
        threshold: Of the verifier.
        metric: ``"cosine"`` or ``"euclidean"``.
        goal: What the attacker makes of the goal.
        known: See ``produce``.
        work: How images are made, and where they go.
        stage: What the progress is called, before the goal.

    Returns:
        The rows, in the order of the pairs.

    Raises:
        As ``produce`` and ``check_unique``.
    """
    orders = pair_orders(pairs)
    found: dict[str, ManifestRow] = {}
    for name, same in (("impersonate", False), ("evade", True)):

        def goal_of(order: Order, face: Face, same: bool = same) -> Goal:
            reference = target(order)
            if same:
                return goal(Evade(references=reference, threshold=threshold, metric=metric))
            return goal(Impersonate(reference, threshold=threshold, metric=metric))

        chosen = [o for o, p in zip(orders, pairs, strict=True) if p.same is same]
        rows = produce(
            chosen, goal_of, source, attack, model, work, goal_name=name, known=known, stage=f"{stage}: {name}"
        )
        found.update((row.name, row) for row in rows)
    if work.folder is not None:
        work.folder.finish([o.name for o in orders])
    return [found[o.name] for o in orders]


def check_unique(orders: list[Order]) -> list[Order]:
    """The orders, when no two have one name, none targets the image itself, and a file can have each name.

    Raises:
        ValueError: Some do, or a name is too long for a file.
    """
    seen: set[str] = set()
    for order in orders:
        fault = fault_of(order.name)
        if fault is not None:
            raise ArgumentError(f"pairs: expected names of images, got {shown(order.name)}: {fault}")
        if order.source == order.target:
            raise ArgumentError(f"pairs: expected two images each, got {order.source} with itself")
        if order.name in seen:
            raise ArgumentError(f"pairs: expected each one once, got {order.source} with {order.target} twice")
        seen.add(order.name)
    return orders


def attack_folder(
    source: FaceSource,
    model: FaceModel,
    attack: Recipe,
    aim: GoalChoice,
    work: Work,
    *,
    enrolled: Enrolled | None = None,
    orders: Sequence[Order],
) -> AttackSummary:
    """Attack every ordered face and finish the folder: PNGs, manifest and configuration.

    Targets are loaded as they are needed, so memory does not grow with the folder. An evasion without a target
    moves an image away from its own embedding.

    Args:
        source: The faces.
        model: The model to attack.
        attack: How to move.
        aim: What to reach.
        enrolled: The people, where the aim needs a gallery.
        work: How images are made, and where they go.
        orders: What to make.

    Raises:
        ValueError: As ``GoalChoice.goals``.
        As ``produce``.
    """
    goal_of, known = goals_and_known(source, model, attack, aim, enrolled, orders)
    for _ in produced(orders, goal_of, source, attack, model, work, goal_name=aim.goal, known=known):
        pass  # it is in the folder
    work.into.finish([order.name for order in orders])
    return summarise(iterate_manifest(work.into.path))


def goals_and_known(
    source: FaceSource,
    model: FaceModel,
    attack: Recipe,
    aim: GoalChoice,
    enrolled: Enrolled | None,
    orders: Iterable[Order],
) -> tuple[GoalOf, Mapping[str, Tensor]]:
    """The goal of each order, and what is computed of faces once for all goals; arguments as of ``attack_folder``.

    Raises:
        ValueError: As ``GoalChoice.goals``.
    """
    learned = aim.learns(source, model, check_recipe(attack), orders)
    ensemble = attack.surrogate.ensemble is not None
    goal_of = aim.goals(source, model, enrolled, ensemble=ensemble, learned=learned)
    return goal_of, NONE_KNOWN if learned is None else learned
