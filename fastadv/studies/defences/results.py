"""What a study of defences finds, as values and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.core.files import write_json
from fastadv.core.numbers import finite
from fastadv.data import Pair
from fastadv.defences import Flag, Trial
from fastadv.recognition import AttackedReport, VerificationReport, count_success, evaluate, mean_of
from fastadv.studies.defences.black_box import BlackBox
from fastadv.studies.defences.sweep import SweepCell

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Guarded:
    """One defence on clean pairs.

    Attributes:
        label: The defence's.
        report: Of the defended verifier.
        threshold: The cosine at which pairs are right or wrong: a given one; of attacked pairs the bare verifier's;
            else that of the equal error rate.
        scores: ``(P,)`` cosines of the pairs.
        images_per_second: That the defended model embeds.
        cost: Its time for an image over the bare model's, measured in turn.
        gradient_ratio: Median norm of its gradients over the bare model's; None of a defence of pairs.
    """

    label: str
    report: VerificationReport
    threshold: float
    scores: Floats
    images_per_second: float
    cost: float
    gradient_ratio: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class DefenceCell:
    """One attack under one threat model against one defence; the first image of every pair is attacked.

    Attributes:
        defence: The defence's label.
        threat: The threat model's name.
        attack: The attack's label.
        report: The defended verifier on the attacked pairs, at its thresholds from clean pairs.
        scores: ``(P,)`` cosines.
        hits: ``(P,)`` bool, pairs that the defended verifier gets wrong as the attacker wants, at the threshold of its
            ``Guarded``; with a detector, unseen by it.
        trial: What the signs of masked gradients are read from.
        linf: ``(P,)`` largest change of a pixel.
        defended: ``(P,)`` L2 distance of the original from the *defended* attacked image; None of a copy.
        generated: ``(P,)`` bool, pairs whose image reaches the goal on the network that it was generated on, and whose
            clean one does not; None of a copy.
    """

    defence: str
    threat: str
    attack: str
    report: AttackedReport
    scores: Floats
    hits: NDArray[np.bool_]
    trial: Trial
    linf: Floats
    defended: Floats | None = None
    generated: NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Defences:
    """A study's findings.

    Attributes:
        pairs: The pairs.
        guarded: Each defence on clean pairs, no defence first.
        cells: Each attack against each defence under each threat model.
        flags: By defence: what looks like masked gradients.
        sweep: Minimal-norm attacks on the bare verifier at other thresholds.
        black_box: A second network's confidences, or None.
    """

    pairs: tuple[Pair, ...]
    guarded: tuple[Guarded, ...]
    cells: tuple[DefenceCell, ...]
    flags: dict[str, tuple[Flag, ...]]
    sweep: tuple[SweepCell, ...] = ()
    black_box: BlackBox | None = None


def describe(study: Defences) -> dict[str, Any]:
    """The findings as plain JSON values."""
    return {
        "pairs": len(study.pairs),
        "defences": [
            {
                "defence": g.label,
                "clean": asdict(g.report),
                "threshold": g.threshold,
                "images_per_second": g.images_per_second,
                "cost": g.cost,
                "gradient_ratio": finite(g.gradient_ratio),
                "flags": [asdict(flag) for flag in study.flags[g.label]],
            }
            for g in study.guarded
        ],
        "cells": [_described(study, cell) for cell in study.cells],
        "sweep": [asdict(cell) for cell in study.sweep],
        "black_box": None if study.black_box is None else _black_box(study, study.black_box),
    }


def _black_box(study: Defences, found: BlackBox) -> dict[str, Any]:
    same = np.array([p.same for p in study.pairs])
    cells = []
    for cell in found.cells:
        means = {
            goal: {
                "images": int((chosen & cell.counted).sum()),
                "confidence": mean_of(cell.values, chosen & cell.counted),
                "confidence_clean": mean_of(cell.clean, chosen & cell.counted),
            }
            for goal, chosen in (("impersonation", ~same), ("evasion", same))
        }
        cells.append({"defence": cell.defence, "attack": cell.attack, **means})
    return {"network": found.network, "threshold": found.threshold, "cells": cells}


def _described(study: Defences, cell: DefenceCell) -> dict[str, Any]:
    same = np.array([p.same for p in study.pairs])
    clean = next(g for g in study.guarded if g.label == cell.defence).report
    return {
        "defence": cell.defence,
        "threat": cell.threat,
        "attack": cell.attack,
        "eps": cell.trial.eps,
        "family": cell.trial.family,
        "accuracy_clean": clean.accuracy,
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
    """Success on the chosen pairs; of those that were not met before: below 5, below 1, and the mean length.

    And, of the images that succeed where they were generated, the mean distance from the original once defended.
    """
    gained, rest, l2 = cell.trial.gained[chosen], ~cell.trial.before[chosen], cell.trial.l2[chosen]
    counts = count_success(cell.hits[chosen], cell.trial.before[chosen])
    return {
        **counts.rates(),  # type: ignore[dict-item]
        "below_5": float((gained & (l2 < 5))[rest].mean()) if rest.any() else None,
        "below_1": float((gained & (l2 < 1))[rest].mean()) if rest.any() else None,
        "mean_l2": mean_of(l2, gained),
        **_defended(cell, chosen),
    }


def _defended(cell: DefenceCell, chosen: NDArray[np.bool_]) -> dict[str, float | int | None]:
    if cell.defended is None or cell.generated is None:
        return {"generated": None, "mean_l2_defended": None}
    counted = chosen & cell.generated
    return {"generated": int(counted.sum()), "mean_l2_defended": mean_of(cell.defended, counted)}


def _quantiles(values: Floats) -> dict[str, float] | None:
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
