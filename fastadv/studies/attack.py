"""``fastadv attack``: from what a user asks for to a folder of adversarial faces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastadv.attacks import Recipe
from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.runs import list_hash
from fastadv.runs.attack import AttackSummary, attack_folder, plan
from fastadv.runs.enrolment import enrol
from fastadv.runs.goals import GoalChoice
from fastadv.runs.inputs import RunInputs


@dataclass(frozen=True, kw_only=True)
class AttackPlan:
    """An attack on a data set as ``fastadv attack`` is asked for it.

    Attributes:
        inputs: Network, faces and folder.
        attack: The attack.
        aim: Its goal.
        pairs: A list of sources and targets; None for the next identity of each image.
        gallery: Faces to enrol; None for the data itself.
        limit: So many images at most.

    Raises:
        ValueError: The attack has no such goal, or a gallery is given to one that takes none.
    """

    inputs: RunInputs
    attack: Recipe
    aim: GoalChoice
    pairs: Path | None = None
    gallery: Path | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        self.aim.check_attack(self.attack)
        if self.gallery is not None and not self.aim.needs_gallery:
            raise ArgumentError(
                f"gallery: expected it with --goal identify-as or misidentify only, got {self.gallery} with "
                f"{self.aim.goal}"
            )


def attack_as_planned(wanted: AttackPlan, *, progress: Progress = silent) -> AttackSummary:
    """Attack as planned, and write images and manifest into the folder.

    Raises:
        ValueError, OSError: As opening the network, the faces and the folder; else as ``attack_folder``.
    """
    given, aim, out = wanted.inputs, wanted.aim, wanted.inputs.folder
    model = given.open_model()
    aim.check_model(model)
    source = given.open_faces(model, progress=progress)
    known = source if wanted.gallery is None else given.open_faces(model, wanted.gallery, progress=progress)
    orders = plan(source, aim, pairs=wanted.pairs, limit=wanted.limit)
    aim.check_people(orders, known.names)
    aim.check_guides(wanted.attack, orders)
    used = sorted({name for order in orders for name in (order.source, order.target) if name})
    identity = given.identity(
        "attack",
        model,
        given.used(source, used),
        attack=wanted.attack,
        others={"gallery": given.used(known)} if aim.needs_gallery else {},
        rules={
            **aim.describe(),
            **({} if wanted.gallery is None else {"selection": {"gallery": "GALLERY"}}),
            "images and targets (--pairs, --limit)": list_hash(orders),
        },
    )
    with identity.work(out, fresh=given.fresh, progress=progress) as work:
        enrolled = None
        if aim.needs_gallery:
            enrolled = enrol(known, known.names, model, metric=aim.metric, progress=progress)
        return attack_folder(source, model, wanted.attack, aim, work, enrolled=enrolled, orders=orders)
