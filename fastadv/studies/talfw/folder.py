"""``fastadv talfw``: from what a user asks for to a folder with the copy."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastadv.attacks import Recipe
from fastadv.core.progress import Progress, silent
from fastadv.data.stored import ImageFormat
from fastadv.runs import list_hash
from fastadv.runs.embedding import names_of
from fastadv.runs.inputs import PairChoice, RunInputs
from fastadv.studies.talfw.files import reader
from fastadv.studies.talfw.measure import TalfwSummary, build, check_threshold, choose_targets, claim, plan


@dataclass(frozen=True, kw_only=True)
class TalfwPlan:
    """A transferable copy as ``fastadv talfw`` is asked for it.

    Attributes:
        inputs: Network, faces and folder.
        attack: The attack.
        pairs: Which pairs.
        targets: As ``choose_targets``.
        threshold: Of the verifier; None: measured on the pairs.
        stored: How images are written.
        grey: Whether they are written in grey.
    """

    inputs: RunInputs
    attack: Recipe
    pairs: PairChoice = field(default_factory=PairChoice)
    targets: str | None = None
    threshold: float | None = None
    stored: ImageFormat
    grey: bool = False


def build_folder(wanted: TalfwPlan, *, progress: Progress = silent) -> tuple[TalfwSummary, tuple[str, ...]]:
    """Make the copy, and name the options of ``fastadv verify`` that read it.

    Raises:
        ValueError, OSError: As opening the network, the faces, the pairs and the folder; else as ``build``.
    """
    given, out = wanted.inputs, wanted.inputs.folder
    aimed_at = choose_targets(wanted.targets, wanted.attack)
    model = given.open_model()
    crops = claim(out)
    source = given.open_faces(model, out=crops, progress=progress)
    pairs = wanted.pairs.open(source, verified=False)
    check_threshold(wanted.threshold, pairs)
    aims = plan(source, pairs, targets=aimed_at)
    identity = given.identity(
        "talfw",
        model,
        given.used(source, names_of(pairs)),
        attack=wanted.attack,
        out=crops,
        rules={
            "targets": aimed_at,
            "threshold": wanted.threshold,
            "pairs in order": list_hash(pairs),
            "images to change": list_hash(aims),
            "images": {"format": wanted.stored.name, "quality": wanted.stored.quality, "grey": wanted.grey},
        },
    )
    with identity.work(crops, fresh=given.fresh, progress=progress) as work:
        summary = build(
            aims,
            pairs,
            source,
            model,
            wanted.attack,
            work,
            out=out,
            threshold=wanted.threshold,
            stored=wanted.stored,
            grey=wanted.grey,
        )
    return summary, reader(source, out)
