"""``fastadv talfw``: an adversarial copy of a set of pairs, in its own layout, for verifiers that nobody has seen."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.attacks import Evade, Goal, Impersonate, Recipe, check_recipe
from fastadv.core.errors import UNREADABLE, ArgumentError
from fastadv.core.fields import check_one_of
from fastadv.core.files import is_temporary, write_json
from fastadv.data import Face, FaceSource, IdentityFolder, ManifestRow, Pair, to_uint8
from fastadv.data.cover import cover
from fastadv.data.names import several
from fastadv.data.stored import ImageFormat, is_grey
from fastadv.defences.grey import Grey, in_grey
from fastadv.models import FaceModel
from fastadv.recognition import evaluate
from fastadv.runs.attack import AttackSummary, summarise
from fastadv.runs.embedding import embed, names_of, pair_scores
from fastadv.runs.goals import check_goal
from fastadv.runs.production import Order, produce
from fastadv.runs.work import Work
from fastadv.studies.talfw import files

TARGETS = ("all", "one")
CROPS = "crops"
SUMMARY = "talfw.json"


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What the attack on one image wants.

    Attributes:
        name: The image that is changed.
        goal: ``"impersonate"``: be taken for the partners; ``"evade"``: not be taken for them.
        partners: Images that it forms pairs with.
    """

    name: str
    goal: str
    partners: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TalfwSummary:
    """What became of a set of pairs.

    Attributes:
        pairs: How many there are.
        images: How many images they have.
        changed: How many of these were attacked: every pair has one.
        both: Pairs of which both images were.
        threshold: The verifier's cosine threshold, by which the attacks' goals were judged.
        kept: Share of the crops' changes that is there when the written images are aligned again.
        linf: Largest change of a value in the written images as they are decoded, in units of [0, 1] images.
        l2: Mean L2 norm of the change of a written image; likewise.
        impersonation: The attacks on the crops whose images go towards others, or None.
        evasion: The attacks on the crops whose images go away from others only, or None.
        impersonation_written: Share of the former whose written image, decoded and aligned again, reaches the goal;
            None where there are none.
        evasion_written: Likewise of the latter.
        grey: How many of the attacked images are grey pictures.
        stored: How the images are written: ``"png"``, or ``"jpeg, quality 95"``.
    """

    pairs: int
    images: int
    changed: int
    both: int
    threshold: float
    kept: float
    linf: float
    l2: float
    impersonation: AttackSummary | None
    evasion: AttackSummary | None
    impersonation_written: float | None
    evasion_written: float | None
    grey: int
    stored: str


def plan(source: FaceSource, pairs: Sequence[Pair], *, targets: str = "all") -> list[Aim]:
    """Choose the images to change (``data.cover``) and what each of them is to do.

    The paper is silent on images that lie in several pairs. **Choice**: an image goes towards its partners of other
    identities; only one that has none goes away from those of its own, since the way to another face leads away from
    its own too. With the targets ``"all"`` these are all such partners; with ``"one"``, for surrogates that compare
    with an image, the first of them that stays as it is, or the first. In LFW's pairs ``"one"`` leaves 1,085 of the
    3,000 negative ones without an attack of their own.

    Raises:
        ValueError: The targets are not known, there are no pairs, the source has no image files of its own, or an
            image or its landmarks are missing.
        PairError: A pair of an image with itself.
    """
    check_one_of("targets", targets, TARGETS)
    if not isinstance(source, IdentityFolder):
        raise ArgumentError(f"data: expected a folder of image files, got {type(source).__name__}; unpack it first")
    if source.size is None:
        raise ArgumentError("data: expected a source of aligned crops, got one of whole files (size=None)")
    if not pairs:
        raise ArgumentError("pairs: expected at least one, got none")
    names = names_of(pairs)
    missing = [name for name in names if name not in source]
    if missing:
        raise ArgumentError(f"pairs: expected images that are there, got {several(missing)}")
    _check_landmarks(source, names)
    chosen = dict.fromkeys(cover(pairs))
    others: dict[str, dict[str, None]] = {name: {} for name in chosen}
    own: dict[str, dict[str, None]] = {name: {} for name in chosen}
    for pair in pairs:
        for name, partner in ((pair.first, pair.second), (pair.second, pair.first)):
            if name in chosen:
                (own if pair.same else others)[name][partner] = None
    aims = []
    for name in chosen:
        partners = list(others[name] or own[name])
        if targets == "one":
            partners = sorted(partners, key=lambda partner: partner in chosen)[:1]
        aims.append(Aim(name=name, goal="impersonate" if others[name] else "evade", partners=tuple(partners)))
    return aims


def _check_landmarks(source: FaceSource, names: Sequence[str]) -> None:
    """Refuse names without landmarks, and those that a line of landmarks cannot hold."""
    if source.landmarks is None:
        return
    without = [name for name in names if name not in source.landmarks]
    if without:
        raise ArgumentError(f"landmarks: expected a line for every image of the pairs, got none for {several(without)}")
    spaced = [name for name in names if name.split() != [name] or name.startswith("#")]
    if spaced:
        raise ArgumentError(
            f"data: expected names without white space or a leading '#', for landmarks.txt, got {several(spaced)}"
        )


def choose_targets(targets: str | None, attack: Recipe) -> str:
    """What ``plan`` and ``build`` are given: as it is, or where it is None, all that the attack can.

    Raises:
        ValueError: The targets are not known, or all are wanted of an attack that embeds its reference itself.
    """
    check_recipe(attack)
    if targets is None:
        return "one" if attack.surrogate.needs_images else "all"
    check_one_of("targets", targets, TARGETS)
    if targets == "all" and attack.surrogate.needs_images:
        raise ArgumentError(f"targets: expected one for {attack.name}, which compares with a single image, got all")
    return targets


def check_threshold(threshold: float | None, pairs: Sequence[Pair]) -> None:
    """Refuse a threshold that no goal could be given, or that cannot be measured, before anything is read or written.

    Raises:
        ValueError: It is no cosine, or it is None and the pairs are of one class only.
    """
    if threshold is not None:
        Evade(threshold=threshold)
    elif len({pair.same for pair in pairs}) < 2:
        raise ArgumentError(
            "threshold: expected a number for pairs of one class only, from which it cannot be measured, got none"
        )


def claim(out: Path) -> Path:
    """The folder of the crops below ``out``, once it is sure that ``out`` is new, empty or of an earlier call.

    Raises:
        ValueError: ``out`` holds something else; nothing was written.
    """
    if out.exists() and not out.is_dir():
        raise ArgumentError(f"out: expected a folder, got the file {out}")
    crops = out / CROPS
    held = sorted(name for name in os.listdir(out) if not is_temporary(name)) if out.is_dir() else []
    if held and held != [CROPS] and not (crops / "run.json").is_file():
        raise ArgumentError(
            f"out: expected a new or empty folder, or one of talfw, got {out}, which holds {several(held)}"
        )
    return crops


def build(
    aims: Sequence[Aim],
    pairs: Sequence[Pair],
    source: FaceSource,
    model: FaceModel,
    attack: Recipe,
    work: Work,
    *,
    out: Path,
    threshold: float | None = None,
    stored: ImageFormat | None = None,
    grey: bool = False,
) -> TalfwSummary:
    """Attack the chosen images and write the set of pairs that they make.

    The folder of the work gets the adversarial crops and their manifest. Below ``out`` come ``images/``, changed and
    unchanged ones in one format and each in the mode of its source, so that no ending or coding gives a changed image
    away, the landmarks of the originals, and the pairs: only the images of the pairs. A grey picture stays grey: of the
    change of its crop the mean of the channels is written, which ``grey`` makes the whole of it.

    Everything is a function of the arguments, and the summary is written last, so a killed call goes on where it was
    and ends with the same bytes.

    The reference of an image's goal is ``u``, the mean direction of its partners' embeddings, measured once: the
    gradient of ``cos(F(x), u)`` has the direction of the sum over its pairs. A surrogate that embeds its reference
    itself gets the first partner's image.

    Args:
        aims: As ``plan`` made them.
        pairs: The pairs that they are for.
        source: The faces: a folder of files.
        model: The model to attack.
        attack: How to move.
        out: The new data set.
        work: How images are made; its folder is the crops' run, at ``claim(out)``.
        threshold: The verifier's cosine threshold; None takes that of the clean pairs' equal error rate. It decides
            what the manifest calls a success, not how an image moves.
        stored: How images are written; None: as PNG, which keeps every pixel.
        grey: Attack grey pictures by one change for all channels: through the mean of the channels.

    Raises:
        ValueError: A file changed since it was attacked, or the threshold is as ``check_threshold`` says.
        ImageError, AlignmentError: A face cannot be read.
        OSError: A file cannot be written.
    """
    check_threshold(threshold, pairs)
    check_goal(attack, "impersonate")
    stored, folder, progress = stored or ImageFormat(), work.into, work.progress
    if (out / SUMMARY).is_file() and folder.finished and files.intact(out):
        held = _read_summary(out / SUMMARY)
        if held is not None:
            return held
    (out / SUMMARY).unlink(missing_ok=True)
    everybody = names_of(pairs)
    embeddings = embed(source, everybody, model, progress=progress)
    if threshold is None:
        threshold = _measured_threshold(pairs, embeddings)
    goals = _Goals(
        partners={aim.name: aim.partners for aim in aims},
        source=source,
        embeddings=None if attack.surrogate.needs_images else embeddings,
        threshold=threshold,
    )
    greys = {aim.name for aim in aims if is_grey(to_uint8(source.load(aim.name).image))}
    ways = [("", attack, model, {aim.name for aim in aims} - (greys if grey else set()))]
    if grey and greys:
        ways.append((", grey", in_grey(attack), Grey().wrap(model), greys))
    made: dict[str, AttackSummary | None] = {}
    for kind, goal_of in (("impersonate", goals.impersonate), ("evade", goals.evade)):
        rows: dict[str, ManifestRow] = {}
        for label, way, network, names in ways:
            orders = [_order(aim) for aim in aims if aim.goal == kind and aim.name in names]
            stage = f"{attack.name}: {kind}{label}"
            known = embeddings if network is model else {}
            found = produce(orders, goal_of, source, way, network, work, goal_name=kind, known=known, stage=stage)
            rows.update((row.name, row) for row in found)
        made[kind] = summarise([rows[aim.name] for aim in aims if aim.goal == kind]) if rows else None
    folder.finish([aim.name for aim in aims])
    written = files.write_images(everybody, source, folder, out, stored, progress)
    files.write_landmarks(everybody, source, out, stored)
    files.write_pairs(pairs, source, out)
    files.write_checksums(out)
    read = embed(files.open_written(source, out), [aim.name for aim in aims], model, progress=progress)
    summary = TalfwSummary(
        pairs=len(pairs),
        images=len(everybody),
        changed=len(aims),
        both=sum(pair.first in read and pair.second in read for pair in pairs),
        threshold=threshold,
        kept=sum(w.returned for w in written) / (sum(w.given for w in written) or 1.0),
        linf=max(w.linf for w in written),
        l2=sum(w.l2 for w in written) / len(written),
        impersonation=made["impersonate"],
        evasion=made["evade"],
        impersonation_written=_reached("impersonate", aims, read, embeddings, threshold, attack.surrogate.needs_images),
        evasion_written=_reached("evade", aims, read, embeddings, threshold, attack.surrogate.needs_images),
        grey=len(greys),
        stored=stored.name if stored.name == "png" else f"{stored.name}, quality {stored.quality}",
    )
    write_json(out / SUMMARY, asdict(summary), indent=2)
    return summary


def _measured_threshold(pairs: Sequence[Pair], embeddings: Mapping[str, Tensor]) -> float:
    same = np.array([pair.same for pair in pairs])
    return float(evaluate(pair_scores(pairs, embeddings), same, None, metric="cosine").eer_threshold)


def _order(aim: Aim) -> Order:
    return Order(name=aim.name, source=aim.name, target=";".join(aim.partners))


@dataclass(frozen=True, kw_only=True)
class _Goals:
    """The goals of the aims: the reference is a direction where there are embeddings, else the partner's image."""

    partners: Mapping[str, Sequence[str]]
    source: FaceSource
    embeddings: Mapping[str, Tensor] | None
    threshold: float

    def impersonate(self, order: Order, face: Face) -> Goal:
        return Impersonate(self._reference(order), threshold=self.threshold)

    def evade(self, order: Order, face: Face) -> Goal:
        return Evade(references=self._reference(order), threshold=self.threshold)

    def _reference(self, order: Order) -> Tensor:
        partners = self.partners[order.name]
        if self.embeddings is None:
            return self.source.load(partners[0]).image[None]
        return _direction(partners, self.embeddings)[None]


def _direction(partners: Sequence[str], embeddings: Mapping[str, Tensor]) -> Tensor:
    """The mean direction of some images' embeddings."""
    return F.normalize(torch.stack([embeddings[name] for name in partners]).sum(0), dim=0)


def _reached(
    goal: str,
    aims: Sequence[Aim],
    read: Mapping[str, Tensor],
    embeddings: Mapping[str, Tensor],
    threshold: float,
    one: bool,
) -> float | None:
    """The share of the written images that reach their goal, by the references that the attack had."""
    reached = []
    for aim in aims:
        if aim.goal == goal:
            reference = _direction(aim.partners[:1] if one else aim.partners, embeddings)
            reached.append((float(read[aim.name] @ reference) >= threshold) is (goal == "impersonate"))
    return sum(reached) / len(reached) if reached else None


def _read_summary(path: Path) -> TalfwSummary | None:
    """A finished call's summary, or None where it is damaged or of a version with other figures: it is made again."""
    try:
        values = json.loads(path.read_bytes())
        for kind in ("impersonation", "evasion"):
            if values[kind] is not None:
                values[kind] = AttackSummary(**{**values[kind], "notices": tuple(values[kind]["notices"])})
        return TalfwSummary(**values)
    except UNREADABLE:
        return None
