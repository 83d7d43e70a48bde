"""Success of adaptive attacks against steps and radius, and whether the attack is as strong as it seems.

Source:
    Tramèr et al. 2020, "On adaptive attacks to adversarial example defenses"; Carlini et al. 2019, "On evaluating
    adversarial robustness", section 4.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fastadv.attacks import CATALOG
from fastadv.attacks.options import options_of
from fastadv.attacks.spec import AttackSpec
from fastadv.core.errors import ArgumentError
from fastadv.core.statistics import wilson
from fastadv.data import ManifestRow, read_manifest
from fastadv.data.run_files import RUN, Description, check_images, image_file
from fastadv.detection import Detector
from fastadv.runs import describe, list_hash
from fastadv.runs.attack import met_before, source_name
from fastadv.studies.detection.adaptive import make_adaptive, threshold_of
from fastadv.studies.detection.adaptive_goals import CLASS, VERIFIER, AdaptiveGoal
from fastadv.studies.detection.setting import Setting, kind

STEPS, EPS, MORE, TRANSFER = "steps", "eps", "ten times the steps", "transfer"

_WORDS = {CLASS: "reach a class", VERIFIER: "pass a verifier"}
_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the radius
_MORE = 10
_MARGIN = "0.02"  # beyond both borders, for the rounding to 8 bits
_RISES, _SUFFICES = 0.05, 0.95  # of a share, in ``masking_notes``


@dataclass(frozen=True, kw_only=True)
class AdaptivePoint:
    """What attackers who know a detector reach within so many steps and such a radius.

    Attributes:
        attack: Its label as it was given.
        goal: What it is to reach besides: ``"class"`` or ``"verifier"``.
        targeted: Whether it has a target.
        varied: ``"steps"`` and ``"eps"``, the two curves; ``"ten times the steps"``, of the attack as it is given; or
            ``"transfer"``, images that were made to evade another detector.
        detector: The one to evade.
        made_for: The one that the images were made to evade: another one with ``"transfer"``.
        steps: The most that its runs took.
        eps: The largest radius of its runs.
        images: Attacked images that did not meet the goal before.
        fooled: How many of them reach the goal.
        hidden: How many reach it and are not flagged at a false-alarm rate of 5 %: the attack's successes.
    """

    attack: str
    goal: str
    targeted: bool
    varied: str
    detector: str
    made_for: str
    steps: int
    eps: float
    images: int
    fooled: int
    hidden: int

    def described(self) -> dict[str, Any]:
        """The counts with their shares: of successes, and of flagged images among those that reach the goal.

        Intervals are Wilson's, for independent images: too narrow for several of a person.
        """
        flagged = self.fooled - self.hidden
        return {
            **asdict(self),
            "success": self.hidden / self.images if self.images else None,
            "success_interval": wilson(self.hidden, self.images) if self.images else None,
            "flagged": flagged / self.fooled if self.fooled else None,
            "flagged_interval": wilson(flagged, self.fooled) if self.fooled else None,
        }


def adaptive_points(
    goal: AdaptiveGoal,
    detectors: Mapping[str, Detector],
    pairs: Sequence[tuple[str, str | None]],
    attacks: Sequence[AttackSpec],
    weights: Sequence[float],
    transfer_from: Sequence[str] = (),
) -> tuple[AdaptivePoint, ...]:
    """Curves of every attack that has steps and a radius, targeted and not, and two checks.

    An image is attacked with the margin loss and then with every weight, until one run succeeds, and each run but those
    for a transfer stops at success: the best result of an image counts. What fewer steps or a smaller radius has
    reached counts for more, too.

    Args:
        goal: What they are to reach besides.
        detectors: By name; calibrated.
        pairs: Those to evade, each with one whose images are tried on it too; None: there is none.
        attacks: Those that can adapt (``check_adapts``).
        weights: Of the detector's logit in the attacker's loss.
        transfer_from: Folders of evaluated studies of other networks on the same faces, whose images are tried too.

    Raises:
        ValueError: Such a folder has no images of an attack, or others than of this study's faces.
        ImageError, AlignmentError, OSError: A file cannot be read or written.
    """
    points: list[AdaptivePoint] = []
    names = tuple(goal.sources())
    for (name, other), spec, targeted in itertools.product(pairs, attacks, (True, False)):
        if not has_curves(spec):
            continue
        about = _Attack(
            goal=goal,
            detectors=detectors,
            name=name,
            given=spec,
            names=names,
            weights=tuple(weights),
            targeted=targeted,
        )
        points += about.curves()
        if other is not None:
            points.append(about.transfer(other))
        points += [about.transfer_of(Path(study)) for study in transfer_from]
    return tuple(points)


def has_curves(spec: AttackSpec) -> bool:
    """Whether an attack has steps and a radius."""
    return spec.radius is not None and bool(CATALOG[spec.name].steps)


def runs_to_transfer(
    setting: Setting, study: Path, spec: AttackSpec, targeted: bool, goal: str = CLASS
) -> list[tuple[Path, list[ManifestRow]]]:
    """The runs of an attack in another study's folder whose images were made to evade a detector, with their images.

    Raises:
        ValueError: There are none, or they are of other faces than this study's, or of other targets.
        RunFolderError, ManifestError: A run is damaged.
    """
    steps, eps = _usual(spec)
    recipe = replace(spec, steps=steps, eps=eps).recipe()
    wanted = {"attack": json.loads(json.dumps(describe(recipe))), "targeted": targeted}
    runs, targets = [], setting.splits.targets
    for file in sorted((study / "attacks").glob(f"*/{RUN}")):
        config, folder = Description.read(file.parent).config, file.parent
        own = (config.get("goal") or {}).get("name", CLASS)  # a run to reach a class says nothing of it
        if not config.get("detector") or own != goal or wanted != {name: config.get(name) for name in wanted}:
            continue
        rows = read_manifest(folder)
        if any(row.target != (targets.get(source_name(row)) if targeted else "") for row in rows) or not all(
            source_name(row) in targets for row in rows
        ):
            raise ArgumentError(
                "transfer_from: expected a study of the same faces, split and seed, got other images or targets in "
                f"{folder}"
            )
        runs.append((folder, [row for row in rows if not met_before(row)]))
    if not runs:
        raise ArgumentError(
            f"transfer_from: expected a study with images of {spec.label}, {kind(targeted)}, made to evade a detector, "
            f"got none in {study} that are to {_WORDS[goal]}; evaluate it with --adaptive {spec.label} --adaptive-goal "
            f"{goal} first"
        )
    return runs


def _usual(spec: AttackSpec) -> tuple[int, float]:
    """Steps and radius of an attack as it is given."""
    assert spec.radius is not None
    return spec.steps or spec.recipe().steps, spec.radius


def _stopping(spec: AttackSpec) -> AttackSpec:
    """The attack with an end at success, where it has one and nothing is said of it."""
    known, given = options_of(spec.recipe()), {name for name, _ in spec.settings}
    more = {"stop_at_success": "true", "margin": _MARGIN}
    if given & set(more) or not set(more) <= set(known):
        return spec
    return replace(spec, settings=(*spec.settings, *more.items()))


@dataclass
class _Reached:
    """What has been reached so far, by the names of images."""

    fooled: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)
    met: set[str] = field(default_factory=set)

    def copy(self) -> _Reached:
        return _Reached(fooled=set(self.fooled), hidden=set(self.hidden), met=set(self.met))

    def add(self, other: _Reached) -> None:
        for own, more in ((self.fooled, other.fooled), (self.hidden, other.hidden), (self.met, other.met)):
            own |= more


@dataclass(frozen=True, kw_only=True, eq=False)
class _Attack:
    """One attack, targeted or untargeted."""

    goal: AdaptiveGoal
    detectors: Mapping[str, Detector]
    name: str
    given: AttackSpec
    names: tuple[str, ...]
    weights: tuple[float, ...]
    targeted: bool

    def curves(self) -> Iterator[AdaptivePoint]:
        steps, eps = _usual(self.given)
        reached = _Reached()
        for count in sorted({1, max(1, round(steps / 10)), max(1, round(steps / 3)), steps}):
            self._attack(reached, self.name, count, eps)
            yield self._point(reached, STEPS, self.name, count, eps)
        usual = reached.copy()
        self._attack(reached, self.name, _MORE * steps, eps)
        yield self._point(reached, MORE, self.name, _MORE * steps, eps)
        reached = _Reached()
        most = 1.0 if self.given.recipe().budget.norm == "linf" else math.inf
        for radius in sorted({min(most, factor * eps) for factor in _FACTORS}):
            if radius >= eps:
                reached.add(usual)
            self._attack(reached, self.name, steps, radius)
            yield self._point(reached, EPS, self.name, steps, radius)

    def transfer(self, other: str) -> AdaptivePoint:
        """What is made to evade another detector, as this one sees it; the runs do not end where that one is evaded."""
        steps, eps = _usual(self.given)
        reached = _Reached()
        self._attack(reached, other, steps, eps, spec=self.given)
        return self._point(reached, TRANSFER, other, steps, eps)

    def transfer_of(self, study: Path) -> AdaptivePoint:
        """What was made on another network to evade its detectors, by runs that do not end where these are evaded."""
        steps, eps = _usual(self.given)
        reached, known = _Reached(), set(self.names)
        tried: set[str] = set()
        for folder, rows in runs_to_transfer(self.goal.setting, study, self.given, self.targeted, self.goal.name):
            check_images(folder, rows)
            own = [row for row in rows if source_name(row) in known]
            tried.update(map(source_name, own))
            if own:
                self._look(reached, f"{study.name}-{folder.name}", folder, own)
        return self._point(reached, TRANSFER, str(study), steps, eps, images=len(tried))

    def _look(self, reached: _Reached, stage: str, folder: Path, rows: Sequence[ManifestRow]) -> None:
        """Which images of a run reach the goal on this network, and pass its detector."""
        goal, judge = self.goal, self.detectors[self.name]
        files = [image_file(folder, row.name) for row in rows]
        seen = goal.setting.changed(stage, list_hash(rows), [source_name(row) for row in rows], files)
        found = seen.take(goal.reaches(seen, targeted=self.targeted, on_logits=self.given.on_logits))
        if len(found):
            reached.fooled.update(found.names)
            below = goal.scores(judge, found, targeted=self.targeted) < threshold_of(judge)
            reached.hidden.update(found.take(below).names)

    def _attack(
        self, reached: _Reached, made_for: str, steps: int, eps: float, *, spec: AttackSpec | None = None
    ) -> None:
        """Attack what has not succeeded yet, with one loss after the other."""
        judge = self.detectors[self.name]
        line = threshold_of(judge)
        spec = replace(spec or _stopping(self.given), steps=steps, eps=eps)
        for weight, by_shortfall in ((1.0, True), *((weight, False) for weight in self.weights)):
            left = [n for n in self.names if n not in reached.hidden and n not in reached.met]
            if not left:
                return
            cell = make_adaptive(
                self.goal,
                spec,
                self.detectors[made_for],
                made_for,
                weight=weight,
                targeted=self.targeted,
                by_shortfall=by_shortfall,
                images=left,
            )
            reached.met |= cell.met
            if cell.features is not None:
                below = (self.goal.scores(judge, cell.features, targeted=self.targeted) < line).tolist()
                reached.fooled.update(cell.features.names)
                reached.hidden.update(n for n, good in zip(cell.features.names, below, strict=True) if good)

    def _point(
        self, reached: _Reached, varied: str, made_for: str, steps: int, eps: float, *, images: int | None = None
    ) -> AdaptivePoint:
        return AdaptivePoint(
            attack=self.given.label,
            goal=self.goal.name,
            targeted=self.targeted,
            varied=varied,
            detector=self.name,
            made_for=made_for,
            steps=steps,
            eps=eps,
            images=len(self.names) - len(reached.met) if images is None else images,
            fooled=len(reached.fooled),
            hidden=len(reached.hidden),
        )


def masking_notes(points: Sequence[AdaptivePoint]) -> tuple[str, ...]:
    """A sentence for each sign that an attack is weaker than it could be, so that its figures flatter the detector."""
    notes = []
    for key in dict.fromkeys((p.attack, p.targeted, p.detector) for p in points):
        own = [p for p in points if (p.attack, p.targeted, p.detector) == key and p.images]
        by_kind = {varied: [p for p in own if p.varied == varied] for varied in (STEPS, EPS, MORE, TRANSFER)}
        if not by_kind[STEPS]:
            continue
        usual, title = by_kind[STEPS][-1], f"{key[0]} {kind(key[1])} on {key[2]}"
        for more in by_kind[MORE]:
            if more.hidden - usual.hidden > _RISES * usual.images:
                notes.append(
                    f"{title}: not converged: {usual.hidden} of {usual.images} images evade the detector within "
                    f"{usual.steps} steps, {more.hidden} within {more.steps}"
                )
        for far in by_kind[EPS][-1:]:
            if far.hidden < _SUFFICES * far.images:
                notes.append(
                    f"{title}: {far.hidden} of {far.images} images evade the detector at the largest radius, "
                    f"{far.eps:.3g}, where nearly all should; the attack may be too weak"
                )
        for lent in by_kind[TRANSFER]:
            if lent.hidden * usual.images > usual.hidden * lent.images:  # shares: of other images, where studies differ
                notes.append(
                    f"{title}: sign of gradient masking: {lent.hidden} of {lent.images} images made to evade "
                    f"{lent.made_for} evade the detector, {usual.hidden} of those made to evade it"
                )
    return tuple(notes)
