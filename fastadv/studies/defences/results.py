"""What a study of defences finds, as values and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.core.files import write_json
from fastadv.data import Pair
from fastadv.defences import Flag, Trial
from fastadv.recognition import AttackedReport, VerificationReport, count_success, evaluate, mean_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Guarded:
    """One defence on clean pairs.

    Attributes:
        label: The defence's.
        report: Of the defended verifier.
        scores: ``(P,)`` cosines of the pairs.
        images_per_second: That the defended model embeds.
        cost: Its time for an image over the bare model's, measured in turn.
        gradient_ratio: Median norm of its gradients over the bare model's.
    """

    label: str
    report: VerificationReport
    scores: NDArray[np.float64]
    images_per_second: float
    cost: float
    gradient_ratio: float


@dataclass(frozen=True, kw_only=True, eq=False)
class DefenceCell:
    """One attack under one threat model against one defence; the first image of every pair is attacked.

    Attributes:
        defence: The defence's label.
        threat: The threat model's name.
        attack: The attack's label.
        report: The defended verifier on the attacked pairs, at its thresholds from clean pairs.
        scores: ``(P,)`` cosines.
        hits: ``(P,)`` bool, pairs that the defended verifier gets wrong as the attacker wants, at its clean threshold
            of the equal error rate; with a detector, unseen by it.
        trial: What the signs of masked gradients are read from.
        linf: ``(P,)`` largest change of a pixel.
    """

    defence: str
    threat: str
    attack: str
    report: AttackedReport
    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    trial: Trial
    linf: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Defences:
    """A study's findings.

    Attributes:
        pairs: The pairs.
        guarded: Each defence on clean pairs, no defence first.
        cells: Each attack against each defence under each threat model.
        flags: By defence: what looks like masked gradients.
    """

    pairs: tuple[Pair, ...]
    guarded: tuple[Guarded, ...]
    cells: tuple[DefenceCell, ...]
    flags: dict[str, tuple[Flag, ...]]


def describe(study: Defences) -> dict[str, Any]:
    """The findings as plain JSON values."""
    return {
        "pairs": len(study.pairs),
        "defences": [
            {
                "defence": g.label,
                "clean": asdict(g.report),
                "images_per_second": g.images_per_second,
                "cost": g.cost,
                "gradient_ratio": g.gradient_ratio if np.isfinite(g.gradient_ratio) else None,
                "flags": [asdict(flag) for flag in study.flags[g.label]],
            }
            for g in study.guarded
        ],
        "cells": [_described(study, cell) for cell in study.cells],
    }


def _described(study: Defences, cell: DefenceCell) -> dict[str, Any]:
    same = np.array([p.same for p in study.pairs])
    return {
        "defence": cell.defence,
        "threat": cell.threat,
        "attack": cell.attack,
        "eps": cell.trial.eps,
        "family": cell.trial.family,
        "attacked": asdict(cell.report),
        "accuracy_refitted": _refitted(study, cell),
        **cell.trial.counts.rates(),
        "impersonation": _within(cell, ~same),
        "evasion": _within(cell, same),
        "l2": _quantiles(cell.trial.l2[cell.trial.gained]),
        "linf": _quantiles(cell.linf[cell.trial.gained]),
        "lengths": [round(float(v), 5) for v in cell.trial.l2],
    }


def _refitted(study: Defences, cell: DefenceCell) -> float | None:
    """The accuracy of a verifier that takes each fold's threshold from the other folds of the attacked pairs."""
    folds = np.array([p.fold for p in study.pairs])
    if len(set(folds.tolist())) < 2:
        return None
    return evaluate(cell.scores, np.array([p.same for p in study.pairs]), folds).accuracy


def _within(cell: DefenceCell, chosen: NDArray[np.bool_]) -> dict[str, float | int | None]:
    """Success on the chosen pairs, and of those that were not met before: below 5, below 1, and the mean length."""
    gained, rest, l2 = cell.trial.gained[chosen], ~cell.trial.before[chosen], cell.trial.l2[chosen]
    counts = count_success(cell.hits[chosen], cell.trial.before[chosen])
    return {
        **counts.rates(),  # type: ignore[dict-item]
        "below_5": float((gained & (l2 < 5))[rest].mean()) if rest.any() else None,
        "below_1": float((gained & (l2 < 1))[rest].mean()) if rest.any() else None,
        "mean_l2": mean_of(l2, gained),
    }


def _quantiles(values: NDArray[np.float64]) -> dict[str, float] | None:
    """Mean, quartiles and ends, or None of no values."""
    if not len(values):
        return None
    low, first, middle, third, high = (float(v) for v in np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
    mean = float(values.mean())
    return {"mean": mean, "min": low, "q1": first, "median": middle, "q3": third, "max": high}


def save(study: Defences, folder: Path) -> None:
    """Write ``defences.json`` into the folder; it is whole or absent.

    Raises:
        OSError: With the file's name.
    """
    write_json(folder / "defences.json", describe(study), strict=True)
