"""``fastadv transfer``: from what a user asks for to a folder with the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastadv.attacks.spec import AttackSpec
from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource, Pair
from fastadv.data.run_files import RUN
from fastadv.distributed.cluster import Cluster, connected
from fastadv.runs import RunIdentity, list_hash
from fastadv.runs.embedding import names_of
from fastadv.runs.inputs import PairChoice, RunInputs
from fastadv.studies.transfer import plan as planning
from fastadv.studies.transfer import results, untargeted
from fastadv.studies.transfer.measure import transfer
from fastadv.studies.transfer.networks import open_networks


@dataclass(frozen=True, kw_only=True)
class TransferPlan:
    """A study of transferability as ``fastadv transfer`` is asked for it.

    Attributes:
        inputs: Faces and folder, without a network.
        networks: Texts (``networks.parse_network``); at least two of one template.
        methods: Texts (``parse_method``, ``parse_untargeted``).
        surrogates: Names of networks, ensembles with "+"; None for each network.
        untargeted: Whether half of the images are attacked untargeted and ROC curves compared.
        eps: Radius, pixels in [0, 1].
        steps: Of the iterative methods that do not say their own.
        at: Further numbers of steps.
        pairs: How many pairs are attacked.
        images: How many sources, and as many targets.
        far: Of every network's thresholds; the largest decides which pairs are negative, and is part of the run. The
            others, like ``sets``, are evaluated from what is measured, so that a finished study takes further ones.
        verification: The pairs that the thresholds come from.
        size: Side of the crops in pixels; None: the networks' own (``networks.on_one_crop``).
        sets: Texts (``parse_sets``).
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
    far: Sequence[float]
    verification: PairChoice
    size: int | None = None
    sets: Sequence[str] = ()


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


def transfer_folder(
    plan: TransferPlan, *, cluster: Cluster | None = None, progress: Progress = silent
) -> TransferFound:
    """Measure as planned, and write images and figures into the folder.

    Args:
        plan: The study.
        cluster: Workers that attack; all of them see the faces. Else this process does.
        progress: Told of every stage.

    Raises:
        MissingPackageError: Ray is not installed.
        ClusterError: There is no such cluster, or its workers die again and again.
        ValueError, OSError: As reading the texts and opening the networks, the faces, the pairs and the folder; else as
            ``transfer`` and ``untargeted.untargeted``.
    """
    with connected(cluster):
        return _measured(plan, cluster, progress)


def _measured(plan: TransferPlan, cluster: Cluster | None, progress: Progress) -> TransferFound:
    study, given = _Opened(plan, progress), plan.inputs
    identity = study.identity(cluster)
    with identity.work(given.folder, fresh=given.fresh, workers=cluster, progress=progress) as work:
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
        parse = planning.parse_untargeted if plan.untargeted else planning.parse_method
        self.kinds: list[planning.Method] = [parse(m) for m in plan.methods]
        self.specs = [kind for kind in self.kinds if isinstance(kind, AttackSpec)]
        if plan.untargeted and (plan.surrogates is None or len(plan.surrogates) != 1 or plan.at is not None):
            raise ArgumentError(
                f"untargeted: expected one --surrogate and no --at, got {len(plan.surrogates or ())} surrogates"
                f"{'' if plan.at is None else ' and --at'}"
            )
        self.models = open_networks(plan.networks, size=plan.size, device=plan.inputs.device)
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
            sets=planning.parse_sets(plan.sets),
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

    def identity(self, cluster: Cluster | None) -> RunIdentity:
        """Everything that an output depends on; the workers of a cluster may make the open choices of the engine."""
        plan, given = self.plan, self.plan.inputs
        engine = given.engine
        if cluster is not None and (given.fresh or not (given.folder / RUN).is_file()):
            engine = cluster.engine(engine, next(iter(self.models.values())))
        rules: dict[str, Any] = {}
        if not plan.untargeted:
            rules = {"at": list(plan.at or ()), "pairs": plan.pairs, "images": plan.images, "far": max(plan.far)}
        elif universal := {kind.label: kind.steps for kind in self.kinds if isinstance(kind, planning.Universal)}:
            rules = {"universal steps": universal}
        return RunIdentity.of(
            "transfer",
            models=self.models,
            attacks={spec.label: spec.recipe(eps=plan.eps, steps=plan.steps) for spec in self.specs},
            engine=engine,
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
                **rules,
            },
            fresh=given.fresh,
        )
