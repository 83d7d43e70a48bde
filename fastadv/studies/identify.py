"""``fastadv identify``: who of the enrolled people a face shows, clean and under attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.attacks import Gallery, Recipe, check_recipe
from fastadv.core.errors import ArgumentError
from fastadv.core.files import write_json
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource, IdentityFolder
from fastadv.data.dealt_pairs import by_identity
from fastadv.data.run_files import IMAGES
from fastadv.models import FaceModel
from fastadv.recognition import (
    UNKNOWN,
    AttackedIdentification,
    IdentificationReport,
    evaluate_identification,
    identification_under_attack,
    open_set_curve,
)
from fastadv.runs import Work, list_hash
from fastadv.runs.attack import AttackSummary, attack_folder, pair_name
from fastadv.runs.embedding import embed
from fastadv.runs.enrolment import enrolled_from
from fastadv.runs.goals import Enrolled, GoalChoice, identity_of
from fastadv.runs.inputs import RunInputs
from fastadv.runs.production import Order

JSON = "identification.json"
_LEFT_OUT = 5  # where everybody has images enough, every fifth person is not enrolled


@dataclass(frozen=True, kw_only=True)
class Roles:
    """What each image of a source is for.

    Attributes:
        enrolled: Images that make the templates.
        mated: Probes of enrolled people.
        unmated: Probes of people who are not enrolled.
    """

    enrolled: tuple[str, ...]
    mated: tuple[str, ...]
    unmated: tuple[str, ...]


def assign(names: Sequence[str], *, enrol: int, limit: int | None = None) -> Roles:
    """Enrol the first images of everybody who has more; the others' images are unmated probes.

    Where everybody has more, every fifth person is left out all the same, so that the open set is not empty.

    Args:
        names: ``identity/file``, in their own order.
        enrol: Images of a person that make the template.
        limit: Only so many mated probes, spread evenly over the list; None takes all.

    Raises:
        ValueError: A number is below 1, or fewer than two people can be enrolled.
    """
    for argument, value in (("enrol", enrol), ("limit", limit)):
        if value is not None and value < 1:
            raise ArgumentError(f"{argument}: expected at least 1, got {value}")
    own = by_identity(names)
    known = [person for person, images in own.items() if len(images) > enrol]
    if len(known) == len(own) and len(known) >= _LEFT_OUT:
        known = [person for k, person in enumerate(known) if k % _LEFT_OUT != _LEFT_OUT - 1]
    if len(known) < 2:
        raise ArgumentError(f"enrol: expected two or more people with more than {enrol} images, got {len(known)}")
    mated = [name for person in known for name in own[person][enrol:]]
    if limit is not None and limit < len(mated):
        mated = [mated[i * len(mated) // limit] for i in range(limit)]
    chosen = set(known)
    return Roles(
        enrolled=tuple(name for person in known for name in own[person][:enrol]),
        mated=tuple(mated),
        unmated=tuple(name for person, images in own.items() if person not in chosen for name in images),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Identification:
    """An identification of clean probes and, where an attack was given, of attacked ones.

    Attributes:
        clean: The report on clean probes.
        attacked: The mated probes under attack, at clean thresholds, or None.
        aim: What the attack wanted, or None.
        summary: The attacks, or None.
        neighbours: How many of the nearest enrolled images name a probe.
        metric: ``"cosine"`` or ``"euclidean"``.
        curves: FPIR and TPIR, clean and then attacked; () without unmated probes.
    """

    clean: IdentificationReport
    attacked: AttackedIdentification | None = None
    aim: str | None = None
    summary: AttackSummary | None = None
    neighbours: int
    metric: str
    curves: tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """The gallery, as templates and as images: what a probe is compared with."""

    enrolled: Enrolled
    images: Gallery
    neighbours: int
    cosine: bool

    def scores(self, embeddings: Tensor) -> np.ndarray:
        """The cosine with each person's template, or minus the distance to it, ``(P, T)``."""
        distances = self.enrolled.gallery.distances(embeddings).double().cpu().numpy()
        return np.asarray(1 - distances**2 / 2 if self.cosine else -distances)

    def named(self, embeddings: Tensor) -> np.ndarray:
        """Who the nearest enrolled images say, ``(P,)``."""
        return self.images.vote(self.images.distances(embeddings), self.neighbours).cpu().numpy()

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """Who the images show, ``(P,)``."""
        return np.array([int(self.enrolled.label(n)) if identity_of(n) in self.enrolled else UNKNOWN for n in names])


def identify(
    source: FaceSource,
    roles: Roles,
    model: FaceModel,
    *,
    metric: str = "cosine",
    neighbours: int = 3,
    attack: Recipe | None = None,
    aim: GoalChoice | None = None,
    work: Work | None = None,
) -> Identification:
    """Identify probes, clean and, with an attack, the mated ones again after it.

    A targeted attack goes for the next enrolled person around the circle; an untargeted one moves towards the person
    who is the most similar but oneself. The verdict uses templates and thresholds of the clean gallery, as a deployed
    system would.

    Args:
        source: The faces.
        roles: Who is enrolled, and who is a probe.
        model: The network.
        metric: ``"cosine"`` for unit templates, ``"euclidean"`` for means of unit embeddings as they are.
        neighbours: How many of the nearest enrolled images name a probe.
        attack: How to attack the mated probes, or None for clean figures only.
        aim: ``identify-as`` or ``misidentify``, with an attack.
        work: How the adversarial images are made, and where they go: into a folder, with an attack.

    Raises:
        ValueError: The metric is not known, ``neighbours`` is out of range, or an attack comes without aim or folder.
        ImageError, AlignmentError: A face cannot be read.
    """
    work = work or Work()
    if metric not in ("cosine", "euclidean"):
        raise ArgumentError(f"metric: expected one of cosine, euclidean, got {metric!r}")
    if not 1 <= neighbours <= len(roles.enrolled):
        raise ArgumentError(
            f"neighbours: expected 1 to {len(roles.enrolled)}, the number of enrolled images, got {neighbours}"
        )
    if attack is not None:
        check_recipe(attack)
    if attack is not None and (aim is None or not aim.needs_gallery or work.folder is None):
        raise ArgumentError(
            "attack: expected an aim (identify-as or misidentify) and a folder with it, got an attack alone"
        )
    names = (*roles.enrolled, *roles.mated, *roles.unmated)
    embeddings = embed(source, names, model, progress=work.progress)
    known = _known(embeddings, roles.enrolled, model, metric, neighbours)
    probes = (*roles.mated, *roles.unmated)
    rows = _rows(embeddings, probes, model)
    scores, labels = known.scores(rows), known.labels(probes)
    clean = evaluate_identification(scores, labels, named=known.named(rows))
    mated, best = len(roles.mated), scores[len(roles.mated) :].max(1)
    curves = [] if not len(best) else [open_set_curve(scores[:mated], labels[:mated], best)]
    found = Identification(clean=clean, neighbours=neighbours, metric=metric, curves=(*curves,))
    if attack is None or aim is None or work.folder is None:
        return found
    orders = _orders(roles, known, scores[:mated], aim)
    ready = replace(work, engine=work.engine.resolve(model))
    summary = attack_folder(source, model, attack, aim, ready, enrolled=known.enrolled, orders=orders)
    made = IdentityFolder(work.folder.path / IMAGES, size=model.input_size)
    changed = embed(made, [order.name for order in orders], model, progress=_renamed(work.progress))
    after = _rows(changed, [order.name for order in orders], model)
    scores_after = known.scores(after)
    if len(best):
        curves.append(open_set_curve(scores_after, labels[:mated], best))
    named = known.named(after)
    targets = known.labels([order.target for order in orders]) if aim.aimed else None
    return replace(
        found,
        attacked=identification_under_attack(clean, scores_after, labels[:mated], targets=targets, named=named),
        aim=aim.goal,
        summary=summary,
        curves=(*curves,),
    )


def _known(
    embeddings: Mapping[str, Tensor], names: Sequence[str], model: FaceModel, metric: str, neighbours: int
) -> _Known:
    enrolled = enrolled_from({name: embeddings[name] for name in names}, metric=metric, device=model.device)
    classes = torch.cat([enrolled.label(name) for name in names])
    images = Gallery(templates=_rows(embeddings, names, model), classes=classes)
    return _Known(enrolled=enrolled, images=images, neighbours=neighbours, cosine=metric == "cosine")


def _rows(embeddings: Mapping[str, Tensor], names: Sequence[str], model: FaceModel) -> Tensor:
    return F.normalize(torch.stack([embeddings[name] for name in names]), dim=1).to(model.device)


def _renamed(progress: Progress) -> Progress:
    """The second embedding is a stage of its own."""
    return lambda stage, done, total: progress(f"{stage} the attacked", done, total)


def _orders(roles: Roles, known: _Known, scores: np.ndarray, aim: GoalChoice) -> list[Order]:
    """An image to make for each mated probe; the guide is the target's first enrolled image."""
    guide: dict[str, str] = {}
    for name in roles.enrolled:
        guide.setdefault(identity_of(name), name)
    people = known.enrolled.people
    own = known.labels(roles.mated)
    if aim.aimed:
        chosen = (own + 1) % len(people)
    else:
        others = scores.copy()
        others[np.arange(len(own)), own] = -np.inf
        chosen = others.argmax(1)
    targets = [guide[people[k]] for k in chosen]
    return [Order(name=pair_name(n, t), source=n, target=t) for n, t in zip(roles.mated, targets, strict=True)]


@dataclass(frozen=True, kw_only=True)
class IdentifyPlan:
    """An identification as ``fastadv identify`` is asked for it.

    Attributes:
        inputs: Network, faces and folder.
        enrol: Images of a person that make the template.
        limit: So many faces of enrolled people are identified at most.
        neighbours: Enrolled images that vote.
        attack: On the faces of enrolled people, or None.
        aim: Its goal, or None.
        metric: ``"cosine"`` or ``"euclidean"``.
    """

    inputs: RunInputs
    enrol: int
    neighbours: int
    limit: int | None = None
    attack: Recipe | None = None
    aim: GoalChoice | None = None
    metric: str = "cosine"


def identify_folder(plan: IdentifyPlan, *, progress: Progress = silent) -> Identification:
    """Identify as planned; with a folder, write there the images of an attack and ``identification.json``.

    Raises:
        ValueError, OSError: As opening the network, the faces and the folder; else as ``assign`` and ``identify``.
    """
    given, moves = plan.inputs, plan.attack
    if moves is not None and given.out is None:
        raise ArgumentError(f"--out: expected a folder for the images of --attack {moves.name}, got none")
    model = given.open_model()
    source = given.open_faces(model, progress=progress)
    roles = assign(source.names, enrol=plan.enrol, limit=plan.limit)
    names = [*roles.enrolled, *roles.mated, *roles.unmated]
    source.check(names)

    def measured(work: Work) -> Identification:
        return identify(
            source, roles, model, metric=plan.metric, neighbours=plan.neighbours, attack=moves, aim=plan.aim, work=work
        )

    rules = {
        **({"metric": plan.metric} if plan.aim is None else plan.aim.describe()),
        "images by role (--enrol, --limit)": list_hash([roles]),
        "selection": {"enrol": plan.enrol, "neighbours": plan.neighbours, "limit": plan.limit},
    }
    return given.measured(
        measured,
        lambda: given.identity("identify", model, given.used(source, names), attack=moves, rules=rules),
        save,
        progress=progress,
    )


def describe(result: Identification) -> dict[str, Any]:
    """The figures as plain JSON values, without the curves."""
    parts = {name: getattr(result, name) for name in ("clean", "attacked", "summary")}
    described = {name: None if part is None else asdict(part) for name, part in parts.items()}
    return {**described, "aim": result.aim, "neighbours": result.neighbours, "metric": result.metric}


def save(result: Identification, folder: Path) -> None:
    """Write ``identification.json`` into the folder, whole or not at all.

    Raises:
        OSError: With the file's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON, describe(result), indent=2)
