"""The adversarial images of a detection study: made by the engine, or read from runs of ``fastadv attack``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadv.attacks import ClassifyAs, Goal, Misclassify, Recipe
from fastadv.attacks.feature_goals import GalleryClass
from fastadv.attacks.gallery import Gallery
from fastadv.attacks.spec import AttackSpec
from fastadv.core.errors import ArgumentError
from fastadv.core.progress import silent
from fastadv.data import Face, ManifestRow, read_manifest
from fastadv.data.run_files import check_images, image_file
from fastadv.models import FaceModel
from fastadv.recognition import Success, count_success, mean_of
from fastadv.runs import RunIdentity, describe, describe_engine, list_hash
from fastadv.runs.attack import met_before, source_name
from fastadv.runs.production import GoalOf, Order, produce
from fastadv.studies.detection.features import Features
from fastadv.studies.detection.setting import Clean, Setting, kind

_AIMED = ("impersonate", "classify-as", "match", "identify-as")


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackedImages:
    """The images that one attack made with one kind of goal, and that reach it as 8-bit images.

    Attributes:
        attack: Its label; of images that were read, with the folder.
        family: Its name in the catalogue: what tables are about.
        targeted: Whether it went for a class.
        features: The network's view of them, named as the images that they were made from; None where none succeeded.
        tried: How many were attacked: images that the network had classified rightly.
        counts: How many of these succeed, met the goal before, and succeed of the rest.
        met: The images that met the goal before the attack.
        l2: Mean L2 norm of the change, of those that succeed and did not meet the goal before; None of none.
        linf: Mean of the largest change of a pixel; likewise.
        rows: What the manifest says of the images of ``features``, in their order.
        folder: Where the images are.
        on_logits: Whether the verdict is that of the class head, else of the nearest class mean; None of images that
            were read, whose goal is not the study's.
    """

    attack: str
    family: str
    targeted: bool
    features: Features | None
    tried: int
    counts: Success
    met: frozenset[str]
    l2: float | None
    linf: float | None
    rows: tuple[ManifestRow, ...]
    folder: Path
    on_logits: bool | None = None

    @property
    def group(self) -> str:
        """What a detector's sampler balances: ``"bim targeted"``."""
        return f"{self.family} {kind(self.targeted)}"

    @property
    def made(self) -> int:
        """How many there are."""
        return 0 if self.features is None else len(self.features)

    def described(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {
            "attack": self.attack,
            "family": self.family,
            "kind": kind(self.targeted),
            "tried": self.tried,
            "made": self.made,
            **self.counts.rates(),
            "l2": self.l2,
            "linf": self.linf,
        }

    def part(self, names: Sequence[str]) -> Features | None:
        """Those made from the named images; None where there are none."""
        found = None if self.features is None else self.features.of(names)
        return None if found is None or not len(found) else found

    def made_from(self, names: Sequence[str]) -> tuple[ManifestRow, ...]:
        """The rows of the images made from the named ones, in the order of ``part``."""
        chosen = set(names)
        return tuple(row for row in self.rows if source_name(row) in chosen)


def make(
    setting: Setting,
    clean: Clean,
    spec: AttackSpec,
    *,
    targeted: bool,
    parts: Sequence[str],
    reaches: Callable[[Features], Tensor] | None = None,
) -> AttackedImages:
    """Attack the images that are set aside for it and rightly classified; what was made before is not made again.

    An attack on logits goes for the class (or away from the own one). One on embeddings is the kNN-guided attack, whose
    verdict is that of the nearest class mean: it moves to an image of the target, or untargeted to the mean of another
    class that is nearest at each evaluation.

    Args:
        setting: The study.
        clean: Its unchanged images.
        spec: The attack.
        targeted: Whether it goes for a class.
        parts: Whose images.
        reaches: Which images count, as of a `Task`.

    Raises:
        ImageError, AlignmentError: A face cannot be read.
        OSError: Something cannot be written.
    """
    names = sources(setting, clean, parts)
    if spec.on_logits:
        goal_of = each_of(class_goal(setting, names, targeted), names)
    else:
        goal_of = _guided(setting, clean, spec.recipe(), targeted)
    label = f"{spec.label}-{kind(targeted)}"
    task = Task(
        label=label,
        spec=spec,
        targeted=targeted,
        names=tuple(names),
        goal_of=goal_of,
        model=setting.model,
        reaches=reaches,
    )
    return carry_out(setting, task)


def read_cells(setting: Setting, folder: Path) -> tuple[tuple[AttackedImages, ...], int]:
    """The images of a run of ``fastadv attack`` whose originals are set aside in the study, by attack and kind.

    Images whose originals train the head or represent a class are left out: a detector has met them.

    Returns:
        The cells, and how many successful images were left out.

    Raises:
        ValueError: The folder holds no run, an image of it is gone or damaged, or none can be used.
    """
    everything = read_manifest(folder)
    check_images(folder, everything)
    rows = [row for row in everything if row.success and not met_before(row)]
    usable = [row for row in rows if setting.splits.part_of(source_name(row)) is not None]
    if not usable:
        raise ArgumentError(
            f"{folder}: expected successful adversarial images made from the {_count_aside(setting)} images that are "
            f"set aside, got {len(rows)} successful ones, none of them made from these"
        )
    cells = []
    for attack, targeted in dict.fromkeys((row.attack, row.goal in _AIMED) for row in usable):
        own = [row for row in usable if (row.attack, row.goal in _AIMED) == (attack, targeted)]
        first = {source_name(row): row for row in reversed(own)}  # of several made from one image the first counts
        alike = [r for r in reversed(everything) if (r.attack, r.goal in _AIMED) == (attack, targeted)]
        # of several made from one image the first that counts as an example, else the first
        tried = {source_name(r): r for r in alike if setting.splits.part_of(source_name(r)) is not None} | first
        label = f"{attack} of {folder}"
        cells.append(_cell(setting, label, attack, targeted, list(first.values()), folder, list(tried.values())))
    return tuple(cells), len(rows) - len(usable)


def made_and_read(
    setting: Setting, clean: Clean, attacks: Sequence[AttackSpec], runs: Sequence[str], *, parts: Sequence[str]
) -> tuple[tuple[AttackedImages, ...], tuple[str, ...]]:
    """The images of attacks, targeted and untargeted, and of runs; and a sentence for each run with others.

    Raises:
        ValueError: As ``read_cells``.
        ImageError, AlignmentError, OSError: A file cannot be read or written.
    """
    cells = [make(setting, clean, spec, targeted=aimed, parts=parts) for spec in attacks for aimed in (True, False)]
    notices: list[str] = []
    for run in runs:
        read, left_out = read_cells(setting, Path(run))
        cells += read
        if left_out:
            notices.append(f"{run}: {left_out} images were made from images that are not set aside, and left out")
    return tuple(cells), tuple(notices)


def failures(cells: Sequence[AttackedImages]) -> list[str]:
    """A sentence for each attack that never succeeded."""
    barren = [cell for cell in cells if not cell.made]
    return [f"{c.attack} {kind(c.targeted)} succeeded on none of {c.tried} images" for c in barren]


def _count_aside(setting: Setting) -> int:
    splits = setting.splits
    return sum(len(names) for aside in (splits.natural, splits.attacked) for names in aside.values())


def sources(setting: Setting, clean: Clean, parts: Sequence[str]) -> list[str]:
    """The images to attack: those of the parts that the network classifies rightly."""
    right = clean.sources.take(setting.right(clean.sources)).names
    wanted = {name for part in parts for name in setting.splits.attacked[part]}
    return [name for name in right if name in wanted]


def wanted(setting: Setting, names: Sequence[str], targeted: bool) -> Tensor:
    """The class that each image is to be given, or its own."""
    if not targeted:
        return setting.labels(names)
    return torch.tensor([setting.logit[setting.splits.targets[name]] for name in names], dtype=torch.int64)


def class_goal(setting: Setting, names: Sequence[str], targeted: bool) -> Goal:
    """The goal on logits of all the images."""
    labels = wanted(setting, names, targeted)
    return ClassifyAs(labels) if targeted else Misclassify(labels)


def each_of(everything: Goal, names: Sequence[str]) -> GoalOf:
    """The goal of each image, from that of all of them."""
    place = {name: k for k, name in enumerate(names)}
    return lambda order, face: everything.row(place[order.source])


def gallery_of(setting: Setting, clean: Clean) -> Gallery:
    """The class means that judge an attack on embeddings."""
    rest = clean.rest
    return Gallery.from_embeddings(rest.embeddings, setting.labels(rest.names)).to(setting.model.device)


def _guided(setting: Setting, clean: Clean, recipe: Recipe, targeted: bool) -> GoalOf:
    rest, gallery = clean.rest, gallery_of(setting, clean)
    place = {name: k for k, name in enumerate(rest.names)}
    setting = replace(setting, workers=None, progress=silent)  # of what workers are sent

    def goal_of(order: Order, face: Face) -> Goal:
        labels = wanted(setting, (order.source,), targeted)
        if not targeted:
            return GalleryClass(gallery=gallery, labels=labels, any_other=True)
        guide = setting.splits.guide(order.source)
        # a surrogate with networks of its own embeds the guide itself
        image = setting.source.load(guide).image if recipe.surrogate.needs_images else rest.embeddings[place[guide]]
        return GalleryClass(gallery=gallery, labels=labels, guides=image[None])

    return goal_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Images to make, with everything that they depend on.

    Attributes:
        label: Of the folder and of the progress.
        spec: The attack.
        targeted: Whether it goes for a class.
        names: The images.
        goal_of: The goal of each.
        model: The network that is attacked.
        key: What the goals depend on besides the study.
        goal: What the run's description says of a goal that is no class; None of a class.
        reaches: Which images count, ``(N,)`` bool; None: those that reach their goal.
    """

    label: str
    spec: AttackSpec
    targeted: bool
    names: tuple[str, ...]
    goal_of: GoalOf = field(repr=False)
    model: FaceModel = field(repr=False)
    key: str = ""
    goal: Mapping[str, Any] | None = None
    reaches: Callable[[Features], Tensor] | None = None


def carry_out(setting: Setting, task: Task) -> AttackedImages:
    """Make the images of a task that are not there yet, and tap those that count.

    Raises:
        ImageError, AlignmentError: A face cannot be read.
        OSError: Something cannot be written.
    """
    targets = setting.splits.targets
    orders = [Order(name=n, source=n, target=targets[n] if task.targeted else "") for n in task.names]
    engine, recipe = setting.engine, task.spec.recipe()
    config = {
        "command": "detect",
        "model": setting.model.name,
        "weights": setting.weights,
        "detector": task.key,
        "label": task.label,
        "attack": describe(recipe),
        "targeted": task.targeted,
        "engine": describe_engine(engine),
        "seed": setting.seed,
        "orders": list_hash(orders),
        "classes": list_hash(setting.classes),
        **({} if task.goal is None else {"goal": dict(task.goal)}),
    }
    identity = RunIdentity(config=config, engine=engine)
    place = setting.path / "attacks" / task.label.replace("/", "-")
    known = ("misclassify", "classify-as") if task.goal is None else ("evade", "impersonate")
    goal = known[task.targeted]
    with identity.work(place, workers=setting.workers, progress=setting.progress) as work:
        produce(orders, task.goal_of, setting.source, recipe, task.model, work, goal_name=goal, stage=task.label)
        work.into.finish([order.name for order in orders])
    # as written, with the hashes of the images: a study that goes on keys its features by the same rows
    written = {row.name: row for row in read_manifest(place)}
    rows = [written[name] for name in task.names]
    made = [row for row in rows if not met_before(row)]
    chosen = made if task.reaches else [row for row in made if row.success]
    return _cell(
        setting,
        task.spec.label,
        task.spec.name,
        task.targeted,
        chosen,
        place,
        rows,
        stage=task.label,
        reaches=task.reaches,
        on_logits=task.spec.on_logits,
    )


def _cell(
    setting: Setting,
    attack: str,
    family: str,
    targeted: bool,
    rows: Sequence[ManifestRow],
    folder: Path,
    tried: Sequence[ManifestRow],
    *,
    stage: str = "",
    reaches: Callable[[Features], Tensor] | None = None,
    on_logits: bool | None = None,
) -> AttackedImages:
    features = None
    if rows:
        files = [image_file(folder, row.name) for row in rows]
        stage = stage or f"{attack} {kind(targeted)}"
        features = setting.changed(stage, list_hash(rows), [source_name(row) for row in rows], files)
        if reaches is not None:
            counts = reaches(features)
            rows = [row for row, good in zip(rows, counts.tolist(), strict=True) if good]
            features = features.take(counts) if rows else None
    # what counts by `reaches` was measured on the images that did not meet the goal before
    names = {row.name for row in rows}
    hits = [row.success if reaches is None else row.name in names for row in tried]
    everything = np.ones(len(rows), bool)
    return AttackedImages(
        attack=attack,
        family=family,
        targeted=targeted,
        features=features,
        tried=len(tried),
        counts=count_success(hits, [met_before(row) for row in tried]),
        met=frozenset(source_name(row) for row in tried if met_before(row)),
        l2=mean_of([row.l2 for row in rows], everything),
        linf=mean_of([row.linf for row in rows], everything),
        rows=tuple(rows),
        folder=folder,
        on_logits=on_logits,
    )
