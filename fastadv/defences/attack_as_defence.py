"""Attack as defence: both images of a pair are attacked, each by itself, before they are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastadv.attacks import Evade, Recipe, check_recipe
from fastadv.core.errors import UnavailableError
from fastadv.core.fields import check_range, check_seed
from fastadv.defences.defended import SameNetwork, Traits
from fastadv.defences.key import content_key
from fastadv.defences.straight_through import straight_through
from fastadv.engine import Engine, Job, stream_jobs
from fastadv.models import FaceModel
from fastadv.ops import philox
from fastadv.surrogates import StepKey

START_LAYER = 4002
"""The Philox layer of the random start that is the defence's own."""


@dataclass(frozen=True, kw_only=True)
class AttackAsDefence(Traits):
    r"""Attack every image before it is embedded: away from its own embedding, with no knowledge of what it is.

    .. math:: F'(x) = F(A(x)), \qquad A \text{ ascends } \lVert F(x') - F(x) \rVert_2
              \text{ from } x + u,\; u \sim U[-s, s]

    Both images of a pair pass the same step, so both are moved alike. Of a query that is *known* to be attacked, the
    attack that was made on it is that step: it is taken as it is, and only the gallery's image is attacked ("PGD vs
    PGD" of the source). The source attacks to flip the verifier's decision on the pair, as
    :class:`fastadv.defences.PairAttackAsDefence` does; here an image is attacked away from itself, so that it has an
    embedding without a pair. The gradient of that distance is zero at the image: an attack without a random start of
    its own (C&W, one-step FGSM) needs ``start``; with neither it does not move. An image's draws hang on its pixels and
    the seed, so one image has one embedding.

    Attributes:
        attack: FGSM, PGD, C&W or any other, on the model that is defended.
        start: ``s``, the half width of the noise that is added first, pixels in [0, 1]; a ball of the attack is about
            the noisy image.
        threshold: The cosine below which the image is lost, in [-1, 1]: where an attack that looks for the smallest
            perturbation, or stops at success, is done. -1 is never reached.
        known: Whether who compares knows of an attack on the query: see above. It changes nothing here, where images
            come one by one; a verifier reads it.
        engine: How the attack is run; of images that are embedded one by one too, so that a result has the same bits.

    Raises:
        ValueError: A field is out of range.
        TypeError: ``attack`` is no ``Recipe``.

    Source:
        "Adversarial attack as a defence", 2021: PGD against PGD, C&W against C&W, FGSM failing.
    """

    random: ClassVar[bool] = True  # in its start
    on_host: ClassVar[bool] = True
    attack: Recipe
    start: float = 0.0
    threshold: float = -1.0
    known: bool = False
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self) -> None:
        check_recipe(self.attack)
        check_range("start", self.start, 0.0, 1.0)
        check_range("threshold", self.threshold, -1.0, 1.0)

    @property
    def name(self) -> str:
        """``"attack(pgd)"``, or ``"known(pgd)"``."""
        return f"{'known' if self.known else 'attack'}({self.attack.name})"

    @property
    def takes_attacked(self) -> bool:  # type: ignore[override]
        """Whether it is known of queries that they are attacked."""
        return self.known

    def run_in(self, precision: str | None) -> AttackAsDefence:
        """The defence that attacks in a precision."""
        return replace(self, engine=replace(self.engine, precision=precision))

    def wrap(self, model: FaceModel, *, seed: int = 0) -> FaceModel:
        """The model whose images are attacked first, a ``FaceModel`` for every caller.

        The gradient is that of the bare model at the attacked image (straight through): what one who knows the
        defence can have at the price of one attack a step.

        Args:
            model: A plain ``FaceModel`` in evaluation mode, on the device where it stays.
            seed: The defender's secret in [0, 2**64).

        Raises:
            TypeError: ``model`` is no plain ``FaceModel``.
            ValueError: The seed is out of range.
        """
        return AttackedModel(model, self, seed=seed)

    def attacked(self, model: FaceModel, images: Tensor, *, seed: int = 0) -> Tensor:
        """The images that are embedded in place of the given ones.

        Args:
            model: The bare model.
            images: ``(N, 3, H, W)`` float32 in [0, 1].
            seed: The defender's secret.

        Returns:
            ``(N, 3, H, W)`` float32 on the 8-bit grid, on the device of the images.

        Raises:
            ValueError: As :func:`fastadv.stream_jobs`.
        """
        check_seed(seed)
        if not len(images):
            return images.clone()
        clean = images.detach().float()
        key = content_key(clean, seed)
        first = clean
        if self.start:
            drawn = philox.uniform(seed, key.ids, key.ticks, START_LAYER, tuple(clean.shape[1:]))
            first = (clean + (2 * drawn - 1) * self.start).clamp(0, 1)
        made = torch.empty_like(clean)
        jobs, engine = self._jobs(clean, first, key), replace(self.engine, capture=False)
        for result in stream_jobs(self.attack, jobs, model, seed=seed, engine=engine):
            made[int(result.name)] = result.image.to(made.device)
        return made

    def _jobs(self, clean: Tensor, first: Tensor, key: StepKey) -> Iterator[Job]:
        for k, number in enumerate(key.ids.tolist()):
            goal = Evade(references=clean[k : k + 1], threshold=float(self.threshold))
            yield Job(name=str(k), id=number, image=first[k], goal=goal)


class AttackedModel(SameNetwork):
    """A model under attack by its owner; made by :meth:`AttackAsDefence.wrap`.

    Args:
        model: A plain ``FaceModel`` in evaluation mode.
        defence: How images are attacked.
        seed: The defender's secret.
    """

    def __init__(self, model: FaceModel, defence: AttackAsDefence, *, seed: int = 0) -> None:
        check_seed(seed)
        super().__init__(model, f"{getattr(model, 'name', '')}+{defence.name}")
        self.defence, self.seed = defence, seed
        self._bare = _Kept(model=model)

    def seen(self, images: Tensor) -> Tensor:
        """The attacked images ``(N, 3, H, W)``: what the network gets."""
        return self.defence.attacked(self._bare.model, images.clamp(0, 1), seed=self.seed).to(images.dtype)

    def features(self, images: Tensor) -> Tensor:
        """The raw features ``(N, D)`` of the attacked images; see ``FaceModel.features``.

        Raises:
            RuntimeError: A CUDA graph is being captured.
        """
        self._check(images)
        if images.is_cuda and torch.cuda.is_current_stream_capturing():
            raise UnavailableError(
                f"capture: expected False with {self.defence.name}, which cannot be captured, got a CUDA "
                "graph; use Engine(capture=False)"
            )
        return super().features(straight_through(self.seen(images), images))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept:
    """The bare model: no submodule, and the same one in every prepared copy, whose weights may be rounded."""

    model: FaceModel

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return self
