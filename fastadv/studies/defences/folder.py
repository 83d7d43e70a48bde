"""``fastadv defend``: from what a user asks for to a folder with the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastadv.core.files import file_hash
from fastadv.core.progress import Progress, silent
from fastadv.detection import load_detector
from fastadv.runs import UsedFaces, list_hash
from fastadv.runs.embedding import names_of
from fastadv.runs.inputs import PairChoice, RunInputs, open_faces_of
from fastadv.studies.defences.measure import calibrated_on, defend
from fastadv.studies.defences.plan import Copy, files_of, parse_defence, parse_threat, read_attack
from fastadv.studies.defences.results import Defences, save


@dataclass(frozen=True, kw_only=True)
class DefencePlan:
    """A study of defences as ``fastadv defend`` is asked for it.

    Attributes:
        inputs: Network, faces and folder.
        defences: Their texts (``parse_defence``).
        attacks: Their texts (``read_attack``).
        threats: Their texts (``parse_threat``).
        copies: Folders of attacked copies of the faces.
        detector: The file of the detector that an adaptive attacker evades, or None.
        false_alarm: The rate at which its threshold is taken; None: 1 %, or the equal error rate where the detector
            was not calibrated for 1 %.
        pairs: Which pairs.
    """

    inputs: RunInputs
    defences: Sequence[str]
    attacks: Sequence[str] = ()
    threats: Sequence[str] = ("zero", "perfect")
    copies: Sequence[Path] = ()
    detector: Path | None = None
    false_alarm: float | None = None
    pairs: PairChoice = field(default_factory=PairChoice)


def defend_folder(plan: DefencePlan, *, progress: Progress = silent) -> Defences:
    """Measure the defences as planned, and write ``defences.json`` and the images into the folder.

    Raises:
        ValueError, OSError: As reading the texts and opening the network, the faces, the pairs and the folder; else as
            ``defend``.
    """
    given, out = plan.inputs, plan.inputs.folder
    planned = [parse_defence(text) for text in plan.defences]
    specs = [read_attack(text) for text in plan.attacks]
    known = None if plan.detector is None else load_detector(plan.detector, device=given.device)
    rate = plan.false_alarm
    if rate is None and known is not None and known.thresholds is not None:
        rate = known.thresholds.usual_rate
    threats = [parse_threat(text, detector=known, false_alarm=rate) for text in plan.threats]
    model = given.open_model()
    source = given.open_faces(model, progress=progress)
    pairs = plan.pairs.open(source)
    names = names_of(pairs)
    copies = [Copy(label=path.name, source=open_faces_of(model, path)) for path in plan.copies]
    for each in copies:
        each.source.check(names)
    identity = given.identity(
        "defend",
        model,
        given.used(source, names),
        attacks={spec.label: spec.recipe() for spec in specs},
        others={
            **{f"copy {each.label}": UsedFaces(source=each.source, names=names) for each in copies},
            **calibrated_on(source, names, planned),
        },
        rules={
            "defences": list(plan.defences),
            "files": files_of(planned),
            "threats": list(plan.threats),
            "detector": None if plan.detector is None else {"file": file_hash(plan.detector), "false_alarm": rate},
            "pairs": list_hash(pairs),
            "selection": plan.pairs.described(),
        },
    )
    with identity.work(out, fresh=given.fresh, progress=progress) as work:
        study = defend(source, pairs, model, work, defences=planned, attacks=specs, threats=threats, copies=copies)
        save(study, out)
    return study
