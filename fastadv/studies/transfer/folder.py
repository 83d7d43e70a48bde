"""``fastadv transfer``: from what a user asks for to a folder with the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastadv.attacks.spec import AttackSpec
from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource, Pair
from fastadv.models import FaceModel
from fastadv.runs import RunIdentity, list_hash
from fastadv.runs.embedding import names_of
from fastadv.runs.inputs import PairChoice, RunInputs, network_name, open_named_model
from fastadv.studies.transfer import plan as planning
from fastadv.studies.transfer import results, untargeted
from fastadv.studies.transfer.measure import transfer


@dataclass(frozen=True, kw_only=True)
class TransferPlan:
    """A study of transferability as ``fastadv transfer`` is asked for it.

    Attributes:
        inputs: Faces and folder, without a network.
        networks: Texts, ``NAME`` or ``NAME=WEIGHTS``; at least two of one input size and template.
        methods: Texts (``parse_method``).
        surrogates: Names of networks, ensembles with "+"; None for each network.
        untargeted: Whether half of the images are attacked untargeted and ROC curves compared.
        eps: Radius, pixels in [0, 1].
        steps: Of the iterative methods that do not say their own.
        at: Further numbers of steps.
        pairs: How many pairs are attacked.
        images: How many sources, and as many targets.
        far: Of every network's threshold.
        verification: The pairs that the thresholds come from.
    """

    inputs: RunInputs
    networks: Sequence[str]
    methods: Sequence[str]
    surrogates: Sequence[str] | None = None
    untargeted: bool = False
    eps: float
    steps: int
    at: Sequence[int] | None = None
    pairs: int
    images: int
    far: float
    verification: PairChoice


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferFound:
    """What a study found; one of the two.

    Attributes:
        source: The faces.
        targeted: The matrix of hit rates.
        untargeted: The ROC curves.
    """

    source: FaceSource
    targeted: results.Transfer | None = None
    untargeted: untargeted.Untargeted | None = None

    def described(self) -> dict[str, Any]:
        """The findings as plain JSON values."""
        if self.untargeted is not None:
            return untargeted.describe(self.untargeted)
        assert self.targeted is not None
        return results.describe(self.targeted)


def transfer_folder(plan: TransferPlan, *, progress: Progress = silent) -> TransferFound:
    """Measure as planned, and write images and figures into the folder.

    Raises:
        ValueError, OSError: As reading the texts and opening the networks, the faces, the pairs and the folder; else as
            ``transfer`` and ``untargeted.untargeted``.
    """
    study, given = _Opened(plan, progress), plan.inputs
    identity = study.identity()
    with identity.work(given.folder, fresh=given.fresh, progress=progress) as work:
        if plan.untargeted:
            compared = untargeted.untargeted(
                study.source,
                study.listed,
                study.models,
                surrogate=study.surrogates[0],
                methods=study.kinds,
                eps=plan.eps,
                steps=plan.steps,
                work=work,
            )
            untargeted.save(compared, work.into)
            return TransferFound(source=study.source, untargeted=compared)
        verifiers = {
            name: planning.calibrate(study.source, study.listed, model, far=plan.far, progress=progress)
            for name, model in study.models.items()
        }
        found = transfer(study.source, verifiers, study.settings, work)
        results.save(found, work.into)
    return TransferFound(source=study.source, targeted=found)


class _Opened:
    """A plan with its networks, faces and pairs; refused where it could not be finished."""

    def __init__(self, plan: TransferPlan, progress: Progress) -> None:
        self.plan = plan
        self.kinds = [
            m if plan.untargeted and m == planning.UNIVERSAL else planning.parse_method(m) for m in plan.methods
        ]
        self.specs = [kind for kind in self.kinds if isinstance(kind, AttackSpec)]
        if plan.untargeted and (plan.surrogates is None or len(plan.surrogates) != 1 or plan.at is not None):
            raise ArgumentError(
                f"untargeted: expected one --surrogate and no --at, got {len(plan.surrogates or ())} surrogates"
                f"{'' if plan.at is None else ' and --at'}"
            )
        self.models = _open_networks(plan.networks, plan.inputs.device)
        self.surrogates = list(plan.surrogates or self.models)
        self.source = plan.inputs.open_faces(next(iter(self.models.values())), progress=progress)
        self.listed: tuple[Pair, ...] = plan.verification.open(self.source)
        self.used = set(names_of(self.listed))
        self.settings = planning.TransferSettings(
            surrogates=self.surrogates,
            methods=self.specs,
            eps=plan.eps,
            steps=plan.steps,
            at=tuple(plan.at or ()),
            pairs=plan.pairs,
            images=plan.images,
        )
        self._check()

    def _check(self) -> None:
        plan = self.plan
        if plan.untargeted:
            untargeted.check_plan(
                self.models, surrogate=self.surrogates[0], methods=self.kinds, eps=plan.eps, steps=plan.steps
            )
            return
        planning.check_plan(self.models, self.settings)
        for names in planning.draw_images(self.source, plan.images, seed=plan.inputs.seed):
            self.used.update(names)
        planning.check_far(plan.far, self.listed)

    def identity(self) -> RunIdentity:
        """Everything that an output depends on."""
        plan, given = self.plan, self.plan.inputs
        targeted = {"at": list(plan.at or ()), "pairs": plan.pairs, "images": plan.images, "far": plan.far}
        return RunIdentity.of(
            "transfer",
            models=self.models,
            attacks={spec.label: spec.recipe(eps=plan.eps, steps=plan.steps) for spec in self.specs},
            engine=given.engine,
            seed=given.seed,
            faces=given.used(self.source, sorted(self.used)),
            out=given.folder,
            rules={
                "untargeted": plan.untargeted,
                "surrogates": self.surrogates,
                "methods": list(plan.methods),
                "eps": plan.eps,
                "steps": plan.steps,
                "verification": list_hash(self.listed),
                **({} if plan.untargeted else targeted),
            },
        )


def _open_networks(texts: Sequence[str], device: str) -> Mapping[str, FaceModel]:
    models: dict[str, FaceModel] = {}
    for text in texts:
        name = network_name(text)
        if name in models:
            raise ArgumentError(f"network: expected each one once, got {name!r} twice")
        models[name] = open_named_model(text, device=device)
    if len(models) < 2 or len({(m.input_size, m.template) for m in models.values()}) > 1:
        got = ", ".join(f"{n} {m.input_size}" for n, m in models.items())
        raise ArgumentError(f"network: expected two or more of one input size and template, got {got}")
    return models
