"""``fastadv attack``: adversarial faces from a folder of identities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastadv.attacks import Attack, Recipe
from fastadv.core.errors import ArgumentError
from fastadv.data import FaceSource, ManifestRow, RunFolder, read_pairs_csv
from fastadv.engine import Engine, notices
from fastadv.models import FaceModel
from fastadv.workflows.aims import Aim, Enrolled
from fastadv.workflows.inputs import Progress, silent
from fastadv.workflows.production import Order, produce


@dataclass(frozen=True, kw_only=True)
class AttackSummary:
    """What an attack run came to.

    Attributes:
        images: How many were made.
        success: Share that reach the goal as 8-bit images.
        success_float: Share that did before rounding.
        mean_ticks: Model evaluations an image, in the mean.
        mean_l2: Mean L2 norm of the change.
        mean_linf: Mean of the largest change of a pixel.
        notices: What a reader must know: flags with counts and names.
    """

    images: int
    success: float
    success_float: float
    mean_ticks: float
    mean_l2: float
    mean_linf: float
    notices: tuple[str, ...]


def summarise(rows: Sequence[ManifestRow]) -> AttackSummary:
    """Shares and means of a manifest's rows.

    Raises:
        ValueError: There are no rows.
    """
    n = len(rows)
    if not n:
        raise ArgumentError("rows must hold at least one image, got none")
    return AttackSummary(
        images=n,
        success=sum(r.success for r in rows) / n,
        success_float=sum(r.success_float for r in rows) / n,
        mean_ticks=sum(r.ticks for r in rows) / n,
        mean_l2=sum(r.l2 for r in rows) / n,
        mean_linf=sum(r.linf for r in rows) / n,
        notices=notices((r.name, tuple(filter(None, r.flags.split(";")))) for r in rows),
    )


def next_identity(names: Sequence[str]) -> list[Order]:
    """For every image the first image of the next identity, around the circle; names in their own order.

    Raises:
        ValueError: There is one identity only.
    """
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(name.rpartition("/")[0], name)
    identities = list(first)
    if len(identities) < 2:
        raise ArgumentError(f"a target for each image needs at least two identities, got {len(identities)}")
    after = dict(zip(identities, identities[1:] + identities[:1], strict=True))
    return [Order(name=n, source=n, target=first[after[n.rpartition("/")[0]]]) for n in names]


def plan(source: FaceSource, aim: Aim, *, pairs: Path | None, limit: int | None) -> list[Order]:
    """What to make: every image of the folder, or the first image of every pair of a CSV file.

    Without pairs, the target of an image is the first image of the next identity, where the aim needs one.

    Raises:
        ValueError: A pair's image is missing, two orders have one name, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit must be at least 1, got {limit}")
    if pairs is not None:
        listed = read_pairs_csv(pairs)
        missing = sorted({n for p in listed for n in (p.first, p.second) if n not in source})
        if missing:
            raise ArgumentError(
                f"{pairs}: {len(missing)} images of the pairs are missing, first {', '.join(missing[:5])}"
            )
        orders = [Order(name=pair_name(p.first, p.second), source=p.first, target=p.second) for p in listed]
    elif aim.needs_target:
        orders = next_identity(source.names)
    else:
        orders = [Order(name=n, source=n) for n in source.names]
    return check_unique(orders if limit is None else orders[:limit])


def pair_name(first: str, second: str) -> str:
    """The name of the image made from ``first`` for the pair (first, second), in the first one's folder."""
    return f"{first}__{second.replace('/', '+')}"


def check_unique(orders: list[Order]) -> list[Order]:
    """The orders, when no two have one name, and none goes for the image itself.

    Raises:
        ValueError: Some do.
    """
    seen: set[str] = set()
    for order in orders:
        if order.source == order.target:
            raise ArgumentError(f"pairs: expected two images each, got {order.source} with itself")
        if order.name in seen:
            raise ArgumentError(f"pairs must be different, got {order.source} with {order.target} twice")
        seen.add(order.name)
    return orders


def attack_folder(
    source: FaceSource,
    model: FaceModel,
    attack: Attack[Any] | Recipe,
    aim: Aim,
    *,
    enrolled: Enrolled | None = None,
    folder: RunFolder,
    orders: Sequence[Order],
    seed: int = 0,
    engine: Engine,
    progress: Progress = silent,
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
        folder: Where images and rows go.
        orders: What to make.
        seed: Of every random number.
        engine: How to run.
        progress: Told after every image.

    Raises:
        ValueError: As ``Aim.goals``.
        As ``produce``.
    """
    rows = produce(
        orders,
        aim.goals(source, model, enrolled),
        source,
        attack,
        model,
        goal_name=aim.goal,
        seed=seed,
        engine=engine,
        folder=folder,
        progress=progress,
    )
    folder.finish([order.name for order in orders])
    return summarise(rows)
