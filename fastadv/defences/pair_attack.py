"""Attack as defence on pairs: the images are attacked to flip the verifier's decision before they are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from fastadv.attacks import Evade, Goal, Impersonate, Recipe, check_recipe
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_one_of, check_seed
from fastadv.defences.key import content_ids
from fastadv.engine import Engine, Job, stream_jobs
from fastadv.models import FaceModel, fixed_batches, prepare

SIDES = ("both", "gallery", "query")
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class PairAttackAsDefence:
    r"""Attack the images of a pair to flip the verifier's own decision on it, then compare the attacked ones.

    .. math:: (q, g) \mapsto (A_q(q), A_g(g)), \qquad A \text{ ascends } \begin{cases}
              \lVert F(x') - F(o) \rVert_2 & \cos(F(q), F(g)) \ge t \\ -\lVert F(x') - F(o) \rVert_2 & \text{else}
              \end{cases}

    with o the other image of the pair as it came, and t the verifier's threshold, at which the attacked pair is
    decided, too. No label is used. **The verifier's decision is inverted**: right where an attack had inverted it
    before, and wrong where the pair was clean. An attacker who knows this defence leaves the images as they are.

    With both images moved, those of a refused pair go to each other's place, and may end as far apart as they were: one
    image alone flips more pairs.

    A pair's result depends on its images, the threshold and the seed only. It is no defence of single images: there is
    no ``wrap``.

    Attributes:
        attack: FGSM, PGD, C&W or any other that moves towards and away from an embedding.
        side: Which images are attacked: ``"both"``, ``"gallery"`` (the second one: "PGD vs PGD" of the source, where
            the query was attacked before) or ``"query"``.
        engine: How the attack is run.

    Raises:
        ValueError: ``side`` is none of these.
        TypeError: ``attack`` is no ``Recipe``.

    Source:
        "Adversarial attack as a defence", 2021, tables 2 to 4.
    """

    attack: Recipe
    side: str = "both"
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self) -> None:
        check_recipe(self.attack)
        check_one_of("side", self.side, SIDES)

    @property
    def name(self) -> str:
        """``"pair(pgd)"``, ``"pair(pgd):query"``."""
        return f"pair({self.attack.name}){'' if self.side == 'both' else f':{self.side}'}"

    def run_in(self, precision: str | None) -> PairAttackAsDefence:
        """The defence that attacks in a precision."""
        return replace(self, engine=replace(self.engine, precision=precision))

    def attacked(
        self, model: FaceModel, queries: Tensor, gallery: Tensor, *, threshold: float, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The images that are compared in place of the given ones.

        Args:
            model: The bare verifier, in evaluation mode.
            queries: ``(N, 3, H, W)`` float32 in [0, 1]: the first image of each pair.
            gallery: ``(N, 3, H, W)``: the second ones.
            threshold: The verifier's, a cosine in [-1, 1]; a pair at or above it is accepted.
            seed: The defender's secret in [0, 2**64), of attacks that start at random.

        Returns:
            Queries and gallery, ``(N, 3, H, W)`` float32 each, on the device of the given ones: attacked ones on the
            8-bit grid.

        Raises:
            ValueError: Not one image of the gallery for each query, or as :func:`fastadv.stream_jobs`.
        """
        check_seed(seed)
        given = (queries.detach().float(), gallery.detach().float())
        if given[0].shape != given[1].shape:
            raise ArgumentError(
                f"gallery: expected one image for each query, shape {tuple(queries.shape)}, got {tuple(gallery.shape)}"
            )
        made = (given[0].clone(), given[1].clone())
        if not len(queries):
            return made
        judge = prepare(model, precision="fp32")
        first, second = (fixed_batches(judge, each.to(judge.device), _BATCH) for each in given)
        accepted = (first * second).sum(1) >= threshold
        engine = replace(self.engine, capture=False)
        for decision in (True, False):  # a run has goals of one kind
            jobs = self._jobs(given, (accepted == decision).nonzero().flatten().tolist(), decision, threshold)
            for result in stream_jobs(self.attack, jobs, model, seed=seed, engine=engine):
                side, _, place = result.name.partition(":")
                made[int(side)][int(place)] = result.image.to(queries.device)
        return made

    def _jobs(self, given: tuple[Tensor, Tensor], places: list[int], accepted: bool, threshold: float) -> Iterator[Job]:
        for side in (0, 1):
            if self.side == SIDES[1 + side]:  # the other one alone
                continue
            ids = content_ids(given[side]).tolist()
            for k in places:
                other = given[1 - side][k : k + 1]
                goal: Goal = Impersonate(other, threshold=threshold)
                if accepted:
                    goal = Evade(references=other, threshold=threshold)
                yield Job(name=f"{side}:{k}", id=ids[k], image=given[side][k], goal=goal)
