"""What an attacker knows of a defence, as a value: which model, surrogate and goal that gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from fastadv.attacks import Goal, Recipe, check_recipe
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.fields import check_int, check_range
from fastadv.defences.defended import Defence
from fastadv.defences.evade_detector import EvadeDetector, WatchedModel, check_adapts
from fastadv.detection import Detector
from fastadv.models import FaceModel
from fastadv.surrogates import Ensemble


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """What an attacker runs: ``run(attacker.recipe, attacker.goal(goal), attacker.model, images)``.

    Goals must hold images, not embeddings: the attacker's model embeds them in its own way. The verdict of that run is
    the attacker's belief; what counts is the defended model, with seeds that the attacker does not know.

    Attributes:
        model: The model that is differentiated.
        recipe: How to move, and on what.
        goal: What the attacker makes of the goal.
    """

    model: FaceModel
    recipe: Recipe
    goal: Callable[[Goal], Goal]


class ThreatModel(Protocol):
    """What every threat model offers."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def knows_defence(self) -> bool:
        """Whether the attack depends on the defence; without it one attack serves against all of them."""

    @property
    def detector(self) -> Detector | None:
        """What has to be passed besides, or None."""

    @property
    def threshold(self) -> float:
        """Its logit at and above which an image is flagged."""

    def attacker(self, attack: Recipe, model: FaceModel, defence: Defence | None) -> Attacker:
        """The attacker of a model behind a defence."""


@dataclass(frozen=True, kw_only=True)
class ZeroKnowledge:
    """The attacker knows the bare model and not the defence.

    Source: Mehr and Schroeder, "Six Pixels to Kevin Bacon", zero-knowledge attacks.
    """

    name: ClassVar[str] = "zero"
    knows_defence: ClassVar[bool] = False
    detector: ClassVar[None] = None
    threshold: ClassVar[float] = math.inf

    def attacker(self, attack: Recipe, model: FaceModel, defence: Defence | None) -> Attacker:
        """The attack on the bare model, whatever the defence; the arguments are those of ``PerfectKnowledge``."""
        return Attacker(model=model, recipe=check_recipe(attack), goal=_same)


@dataclass(frozen=True, kw_only=True)
class _Knowing:
    """What the attackers that know the defence share: samples of its draws, with seeds of their own."""

    knows_defence: ClassVar[bool] = True
    kind: ClassVar[str]
    samples: int = 1
    seed: int = 1

    def __post_init__(self) -> None:
        check_int("samples", self.samples, 1, 1024)
        check_int("seed", self.seed, 0, (1 << 63) - 1)

    @property
    def name(self) -> str:
        """The kind, such as ``"perfect"``; ``"perfect:8"`` with 8 samples."""
        return self.kind if self.samples == 1 else f"{self.kind}:{self.samples}"

    def _sampled(self, recipe: Recipe, model: FaceModel, defence: Defence | None) -> tuple[FaceModel, Recipe]:
        """The defended model with the first sample's seed, and the attack on those of the others too."""
        if defence is None:
            return model, recipe
        first = defence.wrap(model, seed=self.seed)
        if self.samples == 1 or not defence.random:
            return first, recipe
        if recipe.surrogate.ensemble is not None:
            raise ArgumentError(
                f"samples: expected 1 for {recipe.name}, which is on an ensemble already, got {self.samples}"
            )
        others = tuple(defence.wrap(model, seed=self.seed + k) for k in range(1, self.samples))
        return first, replace(recipe, surrogate=replace(recipe.surrogate, ensemble=Ensemble(others=others)))


@dataclass(frozen=True, kw_only=True)
class PerfectKnowledge(_Knowing):
    r"""The attacker knows the defence and attacks through it, by the expectation over its draws.

    .. math:: g = \frac{1}{K} \sum_{k=1}^{K} \nabla_x J\big(F(T_{\omega_k}(x))\big)

    with fresh draws at every step, independent of the defender's: the attacker knows the distribution, not the seed. A
    defence without draws needs one sample. What has no gradient is passed straight through.

    Attributes:
        samples: ``K``, at least 1, of a random defence.
        seed: Of the attacker's own draws, in [0, 2**63).

    Raises:
        ValueError: A field is out of range.

    Source:
        Mehr and Schroeder, "Six Pixels to Kevin Bacon", perfect-knowledge attacks; Athalye et al. 2018, "Synthesizing
        robust adversarial examples", eq. 1 (expectation over transformation).
    """

    kind: ClassVar[str] = "perfect"
    detector: ClassVar[None] = None
    threshold: ClassVar[float] = math.inf

    def attacker(self, attack: Recipe, model: FaceModel, defence: Defence | None) -> Attacker:
        """The attack through the defence.

        Args:
            attack: How to move.
            model: The bare model.
            defence: What it is behind; None for nothing.

        Raises:
            ValueError: The attack is on an ensemble already, and more than one sample is wanted.
        """
        first, recipe = self._sampled(check_recipe(attack), model, defence)
        return Attacker(model=first, recipe=recipe, goal=_same)


@dataclass(frozen=True, kw_only=True)
class Adaptive(_Knowing):
    """The attacker knows the defence and the detector behind it, and has to pass both.

    The detector sees the layers of the defended images. The goal becomes an ``EvadeDetector``: reached where the goal
    is, and the detector's logit is below the threshold. Only for input defences: the detector needs the layers that it
    was fitted on.

    Attributes:
        detector: Fitted on the taps of the model.
        weight: Of its logit in the loss, at least 0.
        threshold: Its logit at and above which an image is flagged; infinite: only the loss knows of it.
        samples: See ``PerfectKnowledge``.
        seed: See ``PerfectKnowledge``.

    Raises:
        TypeError: ``detector`` is no ``Detector``.
        ValueError: A field is out of range.

    Source:
        Carlini and Wagner 2017, "Adversarial examples are not easily detected", section 2.3; Tramer et al. 2020, "On
        adaptive attacks to adversarial example defenses".
    """

    kind: ClassVar[str] = "adaptive"
    detector: Detector
    weight: float = 1.0
    threshold: float = math.inf

    def __post_init__(self) -> None:
        if not isinstance(self.detector, Detector):
            raise ArgumentTypeError(f"detector: expected a Detector, got {type(self.detector).__name__}")
        check_range("weight", self.weight, 0.0, math.inf)
        if math.isnan(self.threshold):
            raise ArgumentError(f"threshold: expected a logit, got {brief(self.threshold)}")
        super().__post_init__()

    def attacker(self, attack: Recipe, model: FaceModel, defence: Defence | None) -> Attacker:
        """The attack through the defence, against goal and detector.

        Args:
            attack: How to move.
            model: The bare model.
            defence: What it is behind; None for the detector alone.

        Raises:
            TypeError: The defence takes no watched model.
            ValueError: The attack follows no gradient of the goal's loss, or moves on other networks
                (:func:`fastadv.defences.evade_detector.check_adapts`), or the model lacks a layer of the detector.
        """
        recipe = check_recipe(attack)
        check_adapts(recipe)
        watched, recipe = self._sampled(recipe, WatchedModel(model, self.detector), defence)
        return Attacker(model=watched, recipe=recipe, goal=self._goal)

    def _goal(self, goal: Goal) -> Goal:
        return EvadeDetector(goal=goal, weight=self.weight, threshold=self.threshold)


def _same(goal: Goal) -> Goal:
    return goal
