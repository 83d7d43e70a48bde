"""Studies of defences as parts of recipes: every pair's result, by the names that a paper's table has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv.attacks import CATALOG
from fastadv.attacks.spec import AttackSpec
from fastadv.core.estimates import Estimate, mean_or_none, share_of
from fastadv.core.progress import Progress
from fastadv.data import Pair, read_image, to_tensor, to_uint8
from fastadv.data.run_files import image_file
from fastadv.defences import MeanFilter, Noise2Clean, content_key
from fastadv.runs.attack import pair_name
from fastadv.studies.defences.black_box import BlackBox
from fastadv.studies.defences.folder import DefencePlan, defend_folder
from fastadv.studies.defences.kept import slug
from fastadv.studies.defences.plan import NONE, parse_defence, read_attack
from fastadv.studies.defences.results import DefenceCell, Defences
from fastadv.studies.papers.recipe import Cost, Setup, StudyPart
from fastadv.studies.papers.traces import write_pictures
from fastadv.studies.transfer.networks import parse_network
from fastadv.studies.verify import VerifyPlan, verify_folder

GOALS = ("anonymisation", "impersonation")
"""Pairs of one person that are to be refused, and pairs of two people that are to be accepted."""

_DENOISER = 0.4  # seconds of an image in the network of 30 layers, on two cores
Named = tuple[tuple[str, str], ...]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DefencesOnPairs(StudyPart):
    """``fastadv defend`` at the one threshold of the bare verifier: that of the equal error rate on many clean pairs.

    Attributes:
        attacks: By the names of the paper.
        defences: By the names of the paper; no defence, ``"none"``, is always there.
        threats: What attackers know.
        pairs: How many pairs are attacked; None: all.
        verified: How many the threshold is measured on; None: all.
        sweep: Cosines at which the minimal-norm attacks are run on the bare network, too.
        black_box: Whether the second network's confidences are measured.
        pictures: Whether images are kept: a pair, and what each attack and each filter makes of it.
    """

    attacks: Named
    defences: Named = ()
    threats: tuple[str, ...] = ("zero",)
    pairs: int | None
    verified: int | None
    sweep: tuple[float, ...] = ()
    black_box: bool = False
    pictures: bool = False

    def run(self, setup: Setup, folder: Path, progress: Progress) -> Mapping[str, Any]:
        """Measure the threshold, then the defences there."""
        clean = VerifyPlan(inputs=setup.inputs(None), pairs=setup.verification(self.verified))
        threshold = verify_folder(clean, progress=progress).threshold
        plan = DefencePlan(
            inputs=setup.inputs(folder),
            defences=[text for _, text in self.defences],
            attacks=[text for _, text in self.attacks],
            threats=self.threats,
            pairs=setup.verification(self.pairs),
            threshold=threshold,
            sweep=self.sweep,
            black_box=parse_network(setup.networks[1]).text if self.black_box else None,
        )
        study = defend_folder(plan, progress=progress)
        found = self._described(study, threshold)
        return {**found, "pictures": self._pictures(study, setup, folder) if self.pictures else []}

    def _described(self, study: Defences, threshold: float) -> dict[str, Any]:
        guards = {NONE: NONE, **{parse_defence(text).label: name for name, text in self.defences}}
        attacks = {spec.label: name for name, spec in self._specs()}
        cells: dict[str, Any] = {threat: {name: {} for name in guards.values()} for threat in self.threats}
        for cell in study.cells:
            cells[cell.threat][guards[cell.defence]][attacks[cell.attack]] = _of_pairs(cell)
        return {
            "threshold": threshold,
            "same": [pair.same for pair in study.pairs],
            "clean": {
                guards[g.label]: [
                    bool((score >= g.threshold) != pair.same) for score, pair in zip(g.scores, study.pairs, strict=True)
                ]
                for g in study.guarded
            },
            "cells": cells,
            "sweep": [{**asdict(cell), "attack": attacks[cell.attack]} for cell in study.sweep],
            "black_box": None if study.black_box is None else _of_black_box(study.black_box, guards, attacks),
        }

    def _specs(self) -> list[tuple[str, AttackSpec]]:
        return [(name, read_attack(text)) for name, text in self.attacks]

    def _pictures(self, study: Defences, setup: Setup, folder: Path) -> list[list[str]]:
        """Captions and files of one pair: of one person, where there is one whose attacks succeed most often."""
        bare = [cell for cell in study.cells if cell.defence == NONE and cell.threat == self.threats[0]]
        counts = sum(cell.trial.gained.astype(int) for cell in bare) + np.array([0.5 * p.same for p in study.pairs])
        pair: Pair = study.pairs[int(np.argmax(counts))]
        given = setup.inputs(None)
        source = given.open_faces(given.open_model())
        first, second = (source.load(name).image for name in (pair.first, pair.second))
        shown = [("second image, fixed", second), ("first image", first)]
        for name, spec in self._specs():
            made = folder / "made" / "bare" / slug(spec.label)
            image = to_tensor(read_image(image_file(made, pair_name(pair.first, pair.second))))
            change = image - first
            shown += [(name, image), (f"{name}: change, scaled", 0.5 + change / (2 * change.abs().max() + 1e-12))]
        noisy = shown[-2][1][None]  # by the last attack
        for label, defence in (("mean filter", MeanFilter(size=3)), ("Noise2Clean", Noise2Clean())):
            with torch.no_grad():
                shown.append((f"{self.attacks[-1][0]}: {label}", defence(noisy, content_key(noisy, 0))[0]))
        return write_pictures(folder, ((caption, to_uint8(image.clamp(0, 1))) for caption, image in shown))

    def cost(self, setup: Setup) -> Cost:
        """Every attack to its last step, before every defence that it is made anew for."""
        pairs = 6000 if self.pairs is None else self.pairs
        knowing = [threat for threat in self.threats if threat != "zero"]
        total = Cost(forwards=2 * (6000 if self.verified is None else self.verified))
        for _, spec in self._specs():
            times = len(self.sweep) + 1 + len(knowing) * len(self.defences)
            total += _attack_cost(spec, pairs * times, pairs * times)
        for _, text in self.defences:
            seen = pairs * (2 + len(self.attacks) * len(self.threats)) * (1 + self.black_box)
            total += Cost(forwards=seen, seconds=seen * _DENOISER * text.startswith("noise2clean"))
            inner = text.removeprefix("pair(").partition(")")
            if text.startswith("pair("):
                images = pairs * (1 + len(self.attacks)) * (1 if inner[2] else 2)
                total += _attack_cost(read_attack(inner[0]), images, 0)
        return total


def _attack_cost(spec: AttackSpec, images: int, written: int) -> Cost:
    """Of so many images; a search along one direction has one gradient, or none."""
    steps = spec.recipe().steps
    gradients = steps if spec.radius is not None or spec.name == "deepfool" else int(CATALOG[spec.name].gradient)
    return Cost(gradients=images * gradients, forwards=images * max(1, steps - gradients), images=written)


def _of_pairs(cell: DefenceCell) -> dict[str, list[Any]]:
    """What a cell says of each pair: wrong as the attacker wants, wrong before, lengths."""
    trial = cell.trial
    columns: dict[str, Any] = {"hits": cell.hits, "met": trial.before, "l2": trial.l2}
    columns |= {"generated": cell.generated, "defended": cell.defended}  # None of a copy only
    return {name: values.tolist() for name, values in columns.items()}


def _of_black_box(found: BlackBox, guards: Mapping[str, str], attacks: Mapping[str, str]) -> dict[str, Any]:
    """The confidences on each pair, with the names of the paper."""
    cells = [
        {
            "defence": guards[cell.defence],
            "attack": None if cell.attack is None else attacks[cell.attack],
            **{name: getattr(cell, name).tolist() for name in ("values", "clean", "counted")},
        }
        for cell in found.cells
    ]
    return {"network": found.network, "threshold": found.threshold, "cells": cells}


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """One attack on the pairs of one goal, from a part's results.

    Attributes:
        hits: ``(P,)`` bool, pairs that the defended verifier gets wrong.
        met: ``(P,)`` bool, those that it gets wrong without an attack.
        generated: ``(P,)`` bool, images that reach the goal on the network that they were generated on.
        l2: ``(P,)`` L2 norms of the perturbations.
        defended: ``(P,)`` L2 distances of the original from the defended attacked image.
    """

    hits: Flags
    met: Flags
    generated: Flags
    l2: Floats
    defended: Floats

    @property
    def gained(self) -> Flags:
        """Successes that the attack is the cause of."""
        return self.hits & ~self.met

    def success(self, below: float = np.inf) -> Estimate | None:
        """Share of the pairs that were right before; with a norm below a limit."""
        rest = int((~self.met).sum())
        return share_of(int((self.gained & (self.l2 < below)).sum()), rest) if rest else None

    def length(self) -> Estimate | None:
        """Mean norm of the successes."""
        return mean_or_none(self.l2[self.gained])

    def defended_length(self) -> Estimate | None:
        """Mean distance after the defence, of the images that succeeded where they were generated."""
        return mean_or_none(self.defended[self.generated])


def chosen(found: Mapping[str, Any], goal: str | None) -> Flags:
    """The pairs of a goal; None: all."""
    same = np.array(found["same"], bool)
    return np.ones_like(same) if goal is None else same if goal == GOALS[0] else ~same


def attacked(
    found: Mapping[str, Any], attack: str, goal: str | None = None, *, defence: str = NONE, threat: str = "zero"
) -> Attacked:
    """What a part found of an attack on the pairs of a goal, or on all."""
    cell, which = found["cells"][threat][defence][attack], chosen(found, goal)
    return Attacked(**{name: np.array(values)[which] for name, values in cell.items()})


def right_clean(found: Mapping[str, Any], defence: str = NONE, goal: str | None = None) -> Flags:
    """Which clean pairs the defended verifier decides rightly."""
    return ~np.array(found["clean"][defence], bool)[chosen(found, goal)]


def paired(first: Flags, second: Flags) -> Estimate | None:
    r"""Share of the first minus that of the second, on the same pairs; None of no pairs.

    With Wilson's limits :math:`l_k \le p_k \le u_k` and the correlation :math:`\phi` of both, the lower limit is
    :math:`p_1 - p_2 - \sqrt{x^2 - 2 \phi x y + y^2}`, :math:`x = p_1 - l_1`, :math:`y = u_2 - p_2`, and the upper one
    likewise: not of width 0 where no pair tells the two apart.

    Source:
        Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired
        data": the method that squares and adds Wilson's limits.
    """
    if not len(first):
        return None
    one, other = share_of(int(first.sum()), len(first)), share_of(int(second.sum()), len(second))
    constant = first.all() or second.all() or not (first.any() and second.any())
    phi = 0.0 if constant else float(np.corrcoef(first, second)[0, 1])

    def width(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    value = one.value - other.value
    low = value - width(one.value - one.low, other.high - other.value)
    return Estimate(value=value, low=low, high=value + width(one.high - one.value, other.value - other.low))
