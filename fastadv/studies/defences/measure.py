"""``fastadv defend``: defences against attackers who know of them, and who do not, on pairs of faces."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.attacks import Impersonate, fim
from fastadv.attacks.change import level_note
from fastadv.attacks.spec import ITERATIVE, AttackSpec
from fastadv.core.errors import ArgumentError
from fastadv.core.notices import notify
from fastadv.core.progress import Progress
from fastadv.data import FaceSource, ManifestRow, Pair, RunFolder, read_image, to_tensor
from fastadv.defences import Attacker, Defence, SelectiveDropout, ThreatModel, Trial, gradient_ratio, suspicions
from fastadv.defences.evade_detector import WatchedModel
from fastadv.engine import run
from fastadv.models import FaceModel, fixed_batches, prepare
from fastadv.recognition import cosine_scores, evaluate, under_attack
from fastadv.runs import UsedFaces, describe, list_hash
from fastadv.runs.attack import attack_pairs, pair_orders
from fastadv.runs.embedding import embed, names_of, pair_scores
from fastadv.runs.work import Work
from fastadv.studies.defences.kept import Arrays, kept, slug
from fastadv.studies.defences.plan import Copy, Planned, with_none
from fastadv.studies.defences.results import DefenceCell, Defences, Guarded

_BATCH = 32
_TURNS = 3  # of a measurement of time
_PROBED = 16  # images that gradients and time are measured on
_CALIBRATION = 32  # images that switched-off filters are found on
_DEFENDER = 1 << 63  # away from the seeds of attackers


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
) -> Defences:
    """Evaluate every defence against every attack under every threat model.

    Both images of a pair pass the defence. The first image of every pair is attacked: pairs of different people to be
    accepted, pairs of one person to be refused, at the threshold of the verifier that the attacker knows. The defended
    verifier, whose draws the attacker does not know, then decides at its own thresholds from clean pairs. An attack
    that does not know the defence is made once for all. What was finished before a kill is not done again.

    Args:
        source: The faces.
        pairs: What to compare, with folds.
        model: The bare verifier, in evaluation mode.
        defences: What to evaluate; no defence is always there.
        attacks: How attackers move.
        threats: What they know.
        work: How images are made; its folder holds images, scores and rows.
        copies: Attacked copies of the faces, such as those of ``fastadv talfw``; shown to every defence as they are.

    Raises:
        ValueError: Something is given twice or missing, or an attack and a threat model do not go together.
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
    for note in dict.fromkeys(level_note(each.recipe().budget) for each in attacks):
        if note is not None:
            notify(note)
    study = _DefenceStudy(source, pairs, model, work)
    planned = with_none(defences)
    guarded, cells = [], []
    for plan in planned:
        defence = study.resolve(plan)
        guarded.append(study.clean(plan.label, defence))
        for threat in threats:
            for spec in attacks:
                cells.append(study.cell(guarded[0], guarded[-1], defence, threat, spec))
        cells += [study.copied(guarded[-1], defence, copy) for copy in copies]
    flags = {
        g.label: suspicions([c.trial for c in cells if c.defence == g.label], gradient_ratio=g.gradient_ratio)
        for g in guarded
    }
    return Defences(pairs=tuple(pairs), guarded=tuple(guarded), cells=tuple(cells), flags=flags)


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

    def __init__(self, source: FaceSource, pairs: Sequence[Pair], model: FaceModel, work: Work) -> None:
        self._source, self._pairs, self._model, self._work = source, pairs, model, work
        self._names = names_of(pairs)
        self._orders = pair_orders(pairs)
        self._same = np.array([p.same for p in pairs])
        folds = np.array([p.fold for p in pairs])
        self._folds = folds if len(set(folds.tolist())) > 1 else None
        self._embedded: dict[str, Tensor] = {}

    @property
    def _secret(self) -> int:
        return (self._work.seed + _DEFENDER) % (1 << 64)

    def resolve(self, plan: Planned) -> Defence | None:
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

    def clean(self, label: str, defence: Defence | None) -> Guarded:
        """The defence on clean pairs; measured once."""

        def measure() -> Arrays:
            model = self._model if defence is None else defence.wrap(self._model, seed=self._secret)
            rows = embed(self._source, self._names, model, progress=_staged(self._work.progress, label))
            return {
                "rows": torch.stack([rows[n] for n in self._names]).numpy(),
                "seconds": np.array(self._seconds(model)),
                "ratio": np.array(self._ratio(model)),
            }

        names = ("rows", "seconds", "ratio")
        held = kept(self._work.into, Path("clean", slug(label)), names, len(self._names), measure)
        self._embedded = dict(zip(self._names, torch.from_numpy(held["rows"]), strict=True))
        scores = pair_scores(self._pairs, self._embedded)
        return Guarded(
            label=label,
            report=evaluate(scores, self._same, self._folds, metric="cosine"),
            scores=scores,
            images_per_second=1 / float(held["seconds"][0]),
            cost=1.0 if defence is None else float(held["seconds"][0] / held["seconds"][1]),
            gradient_ratio=float(held["ratio"]),
        )

    def _probe(self) -> tuple[Tensor, Tensor]:
        chosen = self._pairs[:_PROBED]
        return tuple(torch.stack([self._source.load(getattr(p, k)).image for p in chosen]) for k in ("first", "second"))  # type: ignore[return-value]

    def _seconds(self, model: FaceModel) -> tuple[float, float]:
        """For an image by the model and by the bare one, in turn, so that a drift of the machine meets both."""
        images = self._probe()[0].to(model.device).contiguous(memory_format=torch.channels_last)
        ready = [prepare(each, precision="fp32") for each in (model, self._model)]
        times: list[list[float]] = [[], []]
        with torch.no_grad():
            for _ in range(_TURNS + 1):
                for each, spent in zip(ready, times, strict=True):
                    begin = time.perf_counter()
                    each(images).sum().item()
                    spent.append(time.perf_counter() - begin)
        own, bare = (statistics.median(spent[1:]) / len(images) for spent in times)  # the first ones warm up
        return own, bare

    def _ratio(self, model: FaceModel) -> float:
        return gradient_ratio(prepare(model, precision="fp32"), prepare(self._model, precision="fp32"), *self._probe())

    def cell(
        self, bare: Guarded, own: Guarded, defence: Defence | None, threat: ThreatModel, spec: AttackSpec
    ) -> DefenceCell:
        """One attack, made where it is not yet, and shown to the defended verifier."""
        knows = threat.knows_defence and defence is not None
        known = own if knows else bare
        hosted = defence is not None and knows and defence.on_host
        attacker = threat.attacker(spec.recipe(), self._model, defence if knows else None)
        own_way = Path(slug(threat.name), slug(spec.label), slug(own.label))
        # who does not know of a defence, or of a detector, makes one set of images for all
        place = own_way if knows or threat.detector is not None else Path("bare", slug(spec.label))
        rows, images = self._made(attacker, place, known.report.eer_threshold, hosted)
        stage = f"{own.label}: {spec.label} ({threat.name})"
        held = kept(
            self._work.into,
            Path("scores") / own_way,
            ("scores", "flagged"),
            len(rows),
            lambda: self._shown(defence, threat, len(images), lambda k: to_tensor(read_image(images[k])), stage),
        )
        scores = held["scores"]
        hits = self._wrong(own, scores) & ~held["flagged"]
        met = self._wrong(own, own.scores) & ~self._clean_flags(own, defence, threat)
        flags = [row.flags.split(";") for row in rows]
        trial = Trial(
            attack=spec.label_without_eps,
            family=spec.family,
            eps=spec.radius,
            threat=threat.name,
            white_box=threat.knows_defence,
            hits=hits,
            l2=np.array([row.l2 for row in rows]),
            zero=float(np.mean(["zero_gradient" in f for f in flags])),
            nonfinite=float(np.mean(["nonfinite_gradient" in f for f in flags])),
            watched=threat.detector is not None,
            met=met,
        )
        return self._cell(own, spec.label, trial, scores, np.array([row.linf for row in rows]))

    def copied(self, own: Guarded, defence: Defence | None, copy: Copy) -> DefenceCell:
        """A copy of the faces that was attacked elsewhere, shown to the defended verifier: both images of each pair."""

        def measure() -> Arrays:
            model = self._model if defence is None else defence.wrap(self._model, seed=self._secret)
            stage = _staged(self._work.progress, f"{own.label}: {copy.label}")
            rows = embed(copy.source, self._names, model, progress=stage)
            change = {n: copy.source.load(n).image - self._source.load(n).image for n in self._names}
            sizes = {n: (float(c.norm()), float(c.abs().max())) for n, c in change.items()}
            if defence is None and not any(largest for _, largest in sizes.values()):
                notify(f"copy: {copy.label} is equal to the data on all {len(self._names)} images of the pairs")
            pairs = np.array([np.maximum(sizes[p.first], sizes[p.second]) for p in self._pairs])
            return {"scores": pair_scores(self._pairs, rows), "l2": pairs[:, 0], "linf": pairs[:, 1]}

        place = Path("scores", "copies", slug(copy.label), slug(own.label))
        held = kept(self._work.into, place, ("scores", "l2", "linf"), len(self._pairs), measure)
        scores = held["scores"]
        hits = self._wrong(own, scores)
        trial = Trial(
            attack=copy.label,
            family=ITERATIVE,
            eps=None,
            threat="copy",
            white_box=False,
            hits=hits,
            l2=held["l2"],
            met=self._wrong(own, own.scores),
        )
        return self._cell(own, copy.label, trial, scores, held["linf"])

    def _cell(
        self, own: Guarded, attack: str, trial: Trial, scores: NDArray[np.float64], linf: NDArray[np.float64]
    ) -> DefenceCell:
        return DefenceCell(
            defence=own.label,
            threat=trial.threat,
            attack=attack,
            report=under_attack(own.report, scores, self._same, self._folds if own.report.fold_thresholds else None),
            scores=scores,
            hits=trial.hits,
            trial=trial,
            linf=linf,
        )

    def _clean_flags(self, own: Guarded, defence: Defence | None, threat: ThreatModel) -> NDArray[np.bool_]:
        """Which clean first images the detector flags, where the threat model has one; measured once."""
        if threat.detector is None:
            return np.zeros(len(self._pairs), bool)
        firsts = [pair.first for pair in self._pairs]
        stage = f"{own.label}: clean ({threat.name})"
        held = kept(
            self._work.into,
            Path("scores", slug(threat.name), "clean", slug(own.label)),
            ("scores", "flagged"),
            len(firsts),
            lambda: self._shown(defence, threat, len(firsts), lambda k: self._source.load(firsts[k]).image, stage),
        )
        return np.asarray(held["flagged"], bool)

    def _wrong(self, own: Guarded, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        limit = own.report.eer_threshold
        return np.where(self._same, scores < limit, scores >= limit)

    def _made(
        self, attacker: Attacker, place: Path, threshold: float, hosted: bool
    ) -> tuple[list[ManifestRow], list[Path]]:
        """The attacked images of all pairs: their rows and files."""
        engine = replace(self._work.engine, capture=False) if hosted else self._work.engine

        config = {"made": str(place), "pairs": list_hash(self._orders)}
        with RunFolder.open(self._work.into.path / "made" / place, config) as into:
            work = replace(self._work, folder=into, engine=engine)
            rows = attack_pairs(
                self._pairs,
                self._source,
                attacker.recipe,
                attacker.model,
                work,
                target=lambda order: self._source.load(order.target).image[None],
                threshold=threshold,
                goal=attacker.goal,
                stage="/".join(place.parts),
            )
            return rows, [into.image_path(row.name) for row in rows]

    def _shown(
        self, defence: Defence | None, threat: ThreatModel, count: int, image: Callable[[int], Tensor], stage: str
    ) -> dict[str, NDArray[Any]]:
        """What the defended verifier, and the detector where there is one, say of an image in each pair's first place.

        An image with a score that is no number is flagged.
        """
        watched = threat.detector is not None
        model = self._model if threat.detector is None else WatchedModel(self._model, threat.detector)
        # a query that is known to be attacked is not attacked again
        bare = defence is None or defence.takes_attacked
        judge = prepare(model if bare else defence.wrap(model, seed=self._secret), precision="fp32")  # type: ignore[union-attr]
        found = []
        for begin in range(0, count, _BATCH):
            batch = torch.stack([image(k) for k in range(begin, min(begin + _BATCH, count))])
            batch = batch.to(judge.device).contiguous(memory_format=torch.channels_last)
            found.append(fixed_batches(judge, batch, _BATCH).cpu())
            self._work.progress(stage, min(begin + _BATCH, count), count)
        rows = torch.cat(found)
        second = torch.stack([self._embedded[p.second] for p in self._pairs])
        flagged = np.zeros(len(rows), bool)
        if watched:
            flagged = ~(rows[:, -1] < threat.threshold).numpy()
        return {"scores": cosine_scores(rows[:, :-1] if watched else rows, second), "flagged": flagged}


def _staged(progress: Progress, label: str) -> Progress:
    return lambda stage, done, total: progress(f"{label}: {stage}", done, total)
