"""``fastadv defend``: from what a user asks for to a folder with the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastadv.core.files import file_hash
from fastadv.core.progress import Progress, silent
from fastadv.detection import load_detector
from fastadv.models.identity import model_identity
from fastadv.runs import UsedFaces, list_hash
from fastadv.runs.embedding import names_of
from fastadv.runs.inputs import PairChoice, RunInputs, open_faces_of, open_named_model
from fastadv.studies.defences.black_box import check_black_box
from fastadv.studies.defences.measure import calibrated_on, defend
from fastadv.studies.defences.plan import Copy, files_of, parse_defence, parse_threat, read_attack
from fastadv.studies.defences.results import Defences, save
from fastadv.studies.defences.sweep import check_sweep


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
        threshold: A cosine at which all verifiers decide; None: from clean pairs.
        sweep: Cosines at which the minimal-norm attacks of ``attacks`` are run on the bare network, too.
        black_box: A second network whose confidences are measured, as ``open_named_model`` takes it; or None.
    """

    inputs: RunInputs
    defences: Sequence[str]
    attacks: Sequence[str] = ()
    threats: Sequence[str] = ("zero", "perfect")
    copies: Sequence[Path] = ()
    detector: Path | None = None
    false_alarm: float | None = None
    pairs: PairChoice = field(default_factory=PairChoice)
    threshold: float | None = None
    sweep: Sequence[float] = ()
    black_box: str | None = None


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
    check_sweep(plan.sweep, specs)
    model = given.open_model()
    black_box = None if plan.black_box is None else open_named_model(plan.black_box, device=given.device)
    if black_box is not None:
        check_black_box(model, black_box)
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
            # named only where they are given, so that studies made before there were any are continued
            **({} if plan.threshold is None else {"threshold": plan.threshold}),
            **({"sweep": list(plan.sweep)} if plan.sweep else {}),
            **({} if black_box is None else {"black box": model_identity(black_box)}),
        },
    )
    with identity.work(out, fresh=given.fresh, progress=progress) as work:
        study = defend(
            source,
            pairs,
            model,
            work,
            defences=planned,
            attacks=specs,
            threats=threats,
            copies=copies,
            threshold=plan.threshold,
            swept=plan.sweep,
            black_box=black_box,
        )
        save(study, out)
    return study
