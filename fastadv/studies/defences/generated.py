"""The attacked images of a study's pairs, in a folder of their own below the study's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastadv.data import FaceSource, ManifestRow, Pair, RunFolder
from fastadv.defences import Attacker
from fastadv.runs import list_hash
from fastadv.runs.attack import attack_pairs, met_before, pair_orders
from fastadv.runs.work import Work


def generated(
    source: FaceSource,
    pairs: Sequence[Pair],
    attacker: Attacker,
    work: Work,
    place: Path,
    *,
    threshold: float,
    captured: bool = True,
) -> tuple[list[ManifestRow], list[Path]]:
    """Attack the first image of every pair where that is not yet done.

    Args:
        source: The faces.
        pairs: Those of two people to be accepted, those of one to be refused.
        attacker: The model that is differentiated, the attack, and what becomes of the goal.
        work: How images are made; its folder is the study's.
        place: Of the images, below the folder ``made``.
        threshold: The cosine of the goals.
        captured: Whether the engine may capture its steps.

    Returns:
        The rows and the files, in the order of the pairs.

    Raises:
        As ``attack_pairs``, and as opening the folder.
    """
    engine = work.engine if captured else replace(work.engine, capture=False)
    config = {"made": str(place), "pairs": list_hash(pair_orders(pairs))}
    with RunFolder.open(work.into.path / "made" / place, config) as into:
        rows = attack_pairs(
            pairs,
            source,
            attacker.recipe,
            attacker.model,
            replace(work, folder=into, engine=engine),
            target=lambda order: source.load(order.target).image[None],
            threshold=threshold,
            goal=attacker.goal,
            stage="/".join(place.parts),
        )
        return rows, [into.image_path(row.name) for row in rows]


def gained(rows: Sequence[ManifestRow]) -> NDArray[np.bool_]:
    """``(P,)`` bool: the images that reach the goal on the network they were generated on, and did not before."""
    return np.array([row.success and not met_before(row) for row in rows], bool)
