"""``fastadv defend``: defences against attackers who know of them, and who do not, on pairs of faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.attacks import Evade, Impersonate, fim
from fastadv.attacks.change import level_notes
from fastadv.attacks.spec import ITERATIVE, AttackSpec
from fastadv.core.errors import ArgumentError
from fastadv.core.notices import notify
from fastadv.core.progress import Progress
from fastadv.data import FaceSource, Pair, read_image, to_tensor
from fastadv.defences import (
    Defence,
    PairAttackAsDefence,
    SelectiveDropout,
    ThreatModel,
    Trial,
    ZeroKnowledge,
    gradient_ratio,
    suspicions,
)
from fastadv.defences.compose import Wraps
from fastadv.engine import run
from fastadv.models import FaceModel, prepare
from fastadv.recognition import evaluate, under_attack
from fastadv.runs import UsedFaces, describe
from fastadv.runs.embedding import embed, folds_of, names_of, pair_scores
from fastadv.runs.work import Work
from fastadv.studies.defences.black_box import BlackBox, check_black_box, confidences
from fastadv.studies.defences.generated import gained, generated
from fastadv.studies.defences.kept import Arrays, kept, slug
from fastadv.studies.defences.plan import Copy, Planned, with_none
from fastadv.studies.defences.results import DefenceCell, Defences, Floats, Guarded
from fastadv.studies.defences.shown import Shown, seconds
from fastadv.studies.defences.sweep import check_sweep, sweep

_PROBED = 16  # images that gradients and time are measured on
_CALIBRATION = 32  # images that switched-off filters are found on
Guard = Defence | PairAttackAsDefence | None


def defend(
    source: FaceSource,
    pairs: Sequence[Pair],
    model: FaceModel,
    work: Work,
    *,
    defences: Sequence[Planned],
    attacks: Sequence[AttackSpec],
    threats: Sequence[ThreatModel],
    copies: Sequence[Copy] = (),
    threshold: float | None = None,
    swept: Sequence[float] = (),
    black_box: FaceModel | None = None,
) -> Defences:
    """Evaluate every defence against every attack under every threat model.

    Both images of a pair pass the defence. The first image of every pair is attacked: pairs of different people to be
    accepted, pairs of one person to be refused, at the threshold of the verifier that the attacker knows. The defended
    verifier, whose draws the attacker does not know, then decides at its own thresholds from clean pairs. An attack
    that does not know the defence is made once for all. What was finished before a kill is not done again.

    A ``PairAttackAsDefence`` flips decisions at the bare verifier's threshold, and is decided there. It is evaluated
    against attackers that do not know it: one who does leaves the images as they are, which is its clean figure.

    Args:
        source: The faces.
        pairs: What to compare, with folds.
        model: The bare verifier, in evaluation mode.
        defences: What to evaluate; no defence is always there.
        attacks: How attackers move.
        threats: What they know.
        work: How images are made; its folder holds images, scores and rows.
        copies: Attacked copies of the faces, such as those of ``fastadv talfw``; shown to every defence as they are.
        threshold: A cosine at which all verifiers decide, and attackers attack; None: from clean pairs.
        swept: Cosines of a ``sweep`` on the bare verifier.
        black_box: A second network, whose ``confidences`` are measured.

    Raises:
        ValueError: Something is given twice or missing, an attack and a threat model do not go together, a threshold is
            no cosine, or the black box takes other images.
        TypeError: A threat model and a defence do not go together.
        ImageError, AlignmentError: A face cannot be read.
        OSError: Something cannot be written.
    """
    labels = [a.label for a in attacks] + [c.label for c in copies]
    for name, listed in (("attack", labels), ("threat", [t.name for t in threats])):
        if not listed or len(set(listed)) != len(listed):
            raise ArgumentError(f"{name}: expected at least one, and each one once, got {', '.join(listed) or 'none'}")
    for name, told in (
        ("attack", [(a.label, describe(a.recipe())) for a in attacks]),
        ("defence", [(d.label, d.defence) for d in defences]),
    ):
        for k, (label, value) in enumerate(told):
            earlier = next((other for other, same in told[:k] if same == value and other != label), None)
            if earlier is not None:
                raise ArgumentError(f"{name}: expected each one once, got {label}, which is {earlier} in other words")
    for note in level_notes(each.recipe().budget for each in attacks):
        notify(note)
    check_sweep(swept, attacks)
    if threshold is not None:
        Evade(threshold=threshold)  # checks it
    if black_box is not None:
        check_black_box(model, black_box)
    paired = [plan.label for plan in defences if isinstance(plan.defence, PairAttackAsDefence)]
    if paired and attacks and all(threat.knows_defence for threat in threats):
        raise ArgumentError(
            f"threat: expected zero with {paired[0]}, whose white-box attacker leaves images as they are, got "
            f"{', '.join(threat.name for threat in threats)}"
        )
    study = _DefenceStudy(source, pairs, model, work, threshold)
    planned = [(plan.label, study.resolve(plan)) for plan in with_none(defences)]
    guarded, cells = [], []
    for label, defence in planned:
        guarded.append(study.clean(label, defence))
        for threat in threats:
            if isinstance(defence, PairAttackAsDefence) and threat.knows_defence:
                continue
            for spec in attacks:
                cells.append(study.cell(guarded[0], guarded[-1], defence, threat, spec))
        cells += [study.copied(guarded[-1], defence, copy) for copy in copies]
    flags = {
        g.label: suspicions([c.trial for c in cells if c.defence == g.label], gradient_ratio=g.gradient_ratio)
        for g in guarded
    }
    return Defences(
        pairs=tuple(pairs),
        guarded=tuple(guarded),
        cells=tuple(cells),
        flags=flags,
        sweep=sweep(source, pairs, model, work, attacks=attacks, thresholds=swept),
        black_box=None if black_box is None else study.confidences(black_box, planned, attacks),
    )


def calibrated_on(source: FaceSource, names: Sequence[str], planned: Sequence[Planned]) -> dict[str, UsedFaces]:
    """The faces outside of the pairs that a defence is fitted on, by their role; {} where none is."""
    if not any(isinstance(plan.defence, SelectiveDropout) for plan in planned):
        return {}
    return {"calibration": UsedFaces(source=source, names=_outside(source, names))}


def _outside(source: FaceSource, names: Sequence[str]) -> list[str]:
    used = set(names)
    return [name for name in source.names if name not in used][:_CALIBRATION]


class _DefenceStudy:
    """The pairs, the bare model, and what is on disk."""

    def __init__(
        self, source: FaceSource, pairs: Sequence[Pair], model: FaceModel, work: Work, threshold: float | None
    ) -> None:
        self._source, self._pairs, self._model, self._work = source, pairs, model, work
        self._given, self._limit = threshold, 0.0  # the latter of the bare verifier, which is measured first
        self._shown = Shown(source, pairs, model, work)
        self._names = names_of(pairs)
        self._same = np.array([p.same for p in pairs])
        self._embedded: dict[str, Tensor] = {}

    def resolve(self, plan: Planned) -> Guard:
        """The defence: an attack in the study's precision, filters found by FIM on faces outside of the pairs."""
        if not isinstance(plan.defence, SelectiveDropout):
            return None if plan.defence is None else plan.defence.run_in(self._work.engine.precision)
        free = _outside(self._source, self._names)
        if not free:
            raise ArgumentError(
                f"data: expected faces outside of the pairs, to calibrate the defence {plan.label!r} on, got none"
            )
        clean = torch.stack([self._source.load(n).image for n in free])
        shifted = clean.roll(1, 0)
        made = run(
            fim(),
            Impersonate(shifted, threshold=1.0),
            self._model,
            clean,
            seed=self._work.seed,
            engine=self._work.engine,
        )
        return plan.defence.fit(self._model, clean, made.images)

    def clean(self, label: str, defence: Guard) -> Guarded:
        """The defence on clean pairs; measured once."""
        given = self._given
        ratio: float | None = None
        if isinstance(defence, PairAttackAsDefence):
            given = self._limit
            scores, times = self._flipped_clean(label, defence)
        else:
            scores, times, ratio = self._embedded_clean(label, defence)
        report = evaluate(scores, self._same, folds_of(self._pairs, given), metric="cosine", threshold=given)
        limit = report.eer_threshold if given is None else given
        if defence is None:
            self._limit = limit
        return Guarded(
            label=label,
            report=report,
            threshold=limit,
            scores=scores,
            images_per_second=1 / float(times[0]),
            cost=1.0 if defence is None else float(times[0] / times[1]),
            gradient_ratio=ratio,
        )

    def _embedded_clean(self, label: str, defence: Defence | None) -> tuple[Floats, Floats, float]:
        """Scores; seconds for an image, and without the defence; ratio of the gradients."""
        probe = self._shown.probe(_PROBED)

        def measure() -> Arrays:
            model = self._model if defence is None else defence.wrap(self._model, seed=self._shown.secret)
            rows = embed(self._source, self._names, model, progress=_staged(self._work.progress, label))
            ready, bare = (prepare(each, precision="fp32") for each in (model, self._model))
            return {
                "rows": torch.stack([rows[n] for n in self._names]).numpy(),
                "seconds": np.array(seconds(ready, self._model, probe[0])),
                "ratio": np.array(gradient_ratio(ready, bare, *probe)),
            }

        names = ("rows", "seconds", "ratio")
        held = kept(self._work.into, Path("clean", slug(label)), names, len(self._names), measure)
        self._embedded = dict(zip(self._names, torch.from_numpy(held["rows"]), strict=True))
        return pair_scores(self._pairs, self._embedded), held["seconds"], float(held["ratio"])

    def _flipped_clean(self, label: str, defence: PairAttackAsDefence) -> tuple[Floats, Floats]:
        """As ``_embedded_clean``, of pairs, whose images have no gradient of their own."""

        def compared(images: Tensor) -> Tensor:
            half = len(images) // 2
            made = defence.attacked(self._model, images[:half], images[half : 2 * half], threshold=self._limit)
            return self._model(torch.cat(made))

        def measure() -> Arrays:
            found = self._shown.flipped(defence, self._limit, self._shown.loader("first"), label)
            times = seconds(compared, self._model, self._shown.probe(_PROBED)[0])
            return {"scores": found["scores"], "seconds": np.array(times)}

        place = Path("clean", slug(label))
        held = kept(self._work.into, place, ("scores", "seconds"), len(self._pairs), measure)
        return held["scores"], held["seconds"]

    def cell(self, bare: Guarded, own: Guarded, defence: Guard, threat: ThreatModel, spec: AttackSpec) -> DefenceCell:
        """One attack, made where it is not yet, and shown to the defended verifier."""
        knows = threat.knows_defence and defence is not None
        known = own if knows else bare
        behind = None if not knows or isinstance(defence, PairAttackAsDefence) else defence
        attacker = threat.attacker(spec.recipe(), self._model, behind)
        own_way = Path(slug(threat.name), slug(spec.label), slug(own.label))
        # who does not know of a defence, or of a detector, makes one set of images for all
        place = own_way if knows or threat.detector is not None else Path("bare", slug(spec.label))
        captured = behind is None or not behind.on_host
        made = (self._source, self._pairs, attacker, self._work, place)
        rows, images = generated(*made, threshold=known.threshold, captured=captured)
        stage = f"{own.label}: {spec.label} ({threat.name})"

        def shown() -> Arrays:
            def first(k: int) -> Tensor:
                return to_tensor(read_image(images[k]))

            if isinstance(defence, PairAttackAsDefence):
                return self._shown.flipped(defence, self._limit, first, stage)
            return self._shown.embedded(defence, threat, first, self._embedded, stage)

        names = ("scores", "flagged", "defended")
        held = kept(self._work.into, Path("scores") / own_way, names, len(rows), shown)
        flags = [row.flags.split(";") for row in rows]
        trial = Trial(
            attack=spec.label_without_eps,
            family=spec.family,
            eps=spec.radius,
            threat=threat.name,
            white_box=threat.knows_defence,
            hits=self._wrong(own, held["scores"]) & ~held["flagged"],
            l2=np.array([row.l2 for row in rows]),
            zero=float(np.mean(["zero_gradient" in f for f in flags])),
            nonfinite=float(np.mean(["nonfinite_gradient" in f for f in flags])),
            watched=threat.detector is not None,
            met=self._wrong(own, own.scores) & ~self._clean_flags(own, defence, threat),
        )
        cell = self._cell(own, spec.label, trial, held["scores"], np.array([row.linf for row in rows]))
        return replace(cell, defended=held["defended"], generated=gained(rows))

    def copied(self, own: Guarded, defence: Guard, copy: Copy) -> DefenceCell:
        """A copy of the faces that was attacked elsewhere, shown to the defended verifier: both images of each pair."""

        def measure() -> Arrays:
            stage = f"{own.label}: {copy.label}"
            if isinstance(defence, PairAttackAsDefence):
                first, second = (self._shown.loader(side, copy.source) for side in ("first", "second"))
                scores = self._shown.flipped(defence, self._limit, first, stage, second)["scores"]
            else:
                model = self._model if defence is None else defence.wrap(self._model, seed=self._shown.secret)
                rows = embed(copy.source, self._names, model, progress=_staged(self._work.progress, stage))
                scores = pair_scores(self._pairs, rows)
            change = {n: copy.source.load(n).image - self._source.load(n).image for n in self._names}
            sizes = {n: (float(c.norm()), float(c.abs().max())) for n, c in change.items()}
            if defence is None and not any(largest for _, largest in sizes.values()):
                notify(f"copy: {copy.label} is equal to the data on all {len(self._names)} images of the pairs")
            pairs = np.array([np.maximum(sizes[p.first], sizes[p.second]) for p in self._pairs])
            return {"scores": scores, "l2": pairs[:, 0], "linf": pairs[:, 1]}

        place = Path("scores", "copies", slug(copy.label), slug(own.label))
        held = kept(self._work.into, place, ("scores", "l2", "linf"), len(self._pairs), measure)
        scores = held["scores"]
        trial = Trial(
            attack=copy.label,
            family=ITERATIVE,
            eps=None,
            threat="copy",
            white_box=False,
            hits=self._wrong(own, scores),
            l2=held["l2"],
            met=self._wrong(own, own.scores),
        )
        return self._cell(own, copy.label, trial, scores, held["linf"])

    def _cell(self, own: Guarded, attack: str, trial: Trial, scores: Floats, linf: Floats) -> DefenceCell:
        folds = folds_of(self._pairs, own.threshold) if own.report.fold_thresholds else None
        return DefenceCell(
            defence=own.label,
            threat=trial.threat,
            attack=attack,
            report=under_attack(own.report, scores, self._same, folds),
            scores=scores,
            hits=trial.hits,
            trial=trial,
            linf=linf,
        )

    def _clean_flags(self, own: Guarded, defence: Guard, threat: ThreatModel) -> NDArray[np.bool_]:
        """Which clean first images the detector flags, where the threat model has one; measured once."""
        if threat.detector is None or isinstance(defence, PairAttackAsDefence):
            return np.zeros(len(self._pairs), bool)
        stage = f"{own.label}: clean ({threat.name})"
        held = kept(
            self._work.into,
            Path("scores", slug(threat.name), "clean", slug(own.label)),
            ("scores", "flagged"),
            len(self._pairs),
            lambda: self._shown.embedded(defence, threat, self._shown.loader("first"), self._embedded, stage),
        )
        return np.asarray(held["flagged"], bool)

    def _wrong(self, own: Guarded, scores: Floats) -> NDArray[np.bool_]:
        return np.where(self._same, scores < own.threshold, scores >= own.threshold)

    def confidences(
        self, black_box: FaceModel, planned: Sequence[tuple[str, Guard]], attacks: Sequence[AttackSpec]
    ) -> BlackBox:
        """What a second network says of the images that were generated on the bare one, behind input defences."""
        made = []
        for spec in attacks:
            attacker = ZeroKnowledge().attacker(spec.recipe(), self._model, None)
            where = (self._source, self._pairs, attacker, self._work, Path("bare", slug(spec.label)))
            made.append((spec.label, *generated(*where, threshold=self._limit)))
        return confidences(
            self._source,
            self._pairs,
            black_box,
            self._work,
            secret=self._shown.secret,
            defences=[(label, defence) for label, defence in planned if defence is None or isinstance(defence, Wraps)],
            attacks=made,
        )


def _staged(progress: Progress, label: str) -> Progress:
    return lambda stage, done, total: progress(f"{label}: {stage}", done, total)
