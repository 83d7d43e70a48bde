"""The attacks that are compared: settings for all, and the engine's runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bench.engine import ALPHA, EPS, THRESHOLD
from bench.optimisation import EPS as DF_EPS
from bench.optimisation import OUR_EVALUATIONS, SCIPY_EVALUATIONS
from bench.peers.calls import Given, Setting
from fastadv import attacks
from fastadv.attacks import APGD, Attack, ClassifyAs, Goal, Impersonate, Linf, Misclassify, Recipe
from fastadv.attacks.budget import Box
from fastadv.attacks.carlini_wagner import CarliniWagner
from fastadv.attacks.deepfool import DeepFool
from fastadv.attacks.feature_goals import MatchFeatures
from fastadv.attacks.lbfgs_penalty import LBFGS
from fastadv.attacks.lbfgsb import LBFGSB


class _Unrounded(Box):
    """The pixel range, with the float image as the result."""

    def round8(self, x: Tensor, origin: Tensor) -> Tensor:
        return x


class InFloat:
    """A minimal-norm attack whose results are not rounded: to compare float images too, as the peers give them."""

    budget = _Unrounded()

    def __init__(self, attack: Attack[Any]) -> None:
        self._attack = attack

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attack, name)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One attack, for everyone.

    Attributes:
        name: Of the attack, in ``ATTACKS`` of the peers.
        setting: What the peers are told.
        ours: The engine's runs by what sets them apart; the empty name is the plain comparison.
        seconds: A run takes no further images after so many seconds.
        chunk: Images of a round.
        goal: ``"misclassify"``, ``"classify-as"``, ``"impersonate"`` or ``"match"``.
        minimal: Whether the smallest change is looked for.
        skip: Peers that are left out.
        settings: What sets it apart from another task of the same attack, for its rows.
    """

    name: str
    setting: Setting
    ours: Mapping[str, Recipe]
    seconds: float
    chunk: int
    goal: str = "misclassify"
    minimal: bool = False
    skip: tuple[str, ...] = field(default=())
    settings: str = ""

    @property
    def title(self) -> str:
        """The attack in the rows of the table."""
        return f"{self.name}, {self.settings}" if self.settings else self.name

    @property
    def output(self) -> str:
        """What the network hands out."""
        return "embedding" if self.goal in ("impersonate", "match") else "logits"

    @property
    def by_length(self) -> bool:
        """Whether the norm that counts is L2."""
        return self.minimal or self.goal == "match"

    def goal_for(self, given: Given) -> Goal:
        """The engine's goal for these images."""
        if self.goal == "misclassify":
            return Misclassify(given.label)
        if self.goal == "classify-as":
            return ClassifyAs(given.wanted)
        return (
            Impersonate(given.target, threshold=THRESHOLD)
            if self.goal == "impersonate"
            else MatchFeatures(given.target)
        )

    def precise(self, recipe: Recipe, precision: str) -> Recipe:
        """The attack in a precision: with rounded gradients DF takes more evaluations for the same distance."""
        attack = recipe.attack
        if isinstance(attack, LBFGSB) and attack.evaluations == OUR_EVALUATIONS["fp32"]:
            return Recipe(replace(attack, evaluations=OUR_EVALUATIONS[precision]))
        return recipe


def _with_stop(recipe: Recipe) -> dict[str, Recipe]:
    attack: Any = recipe.attack
    stops = {label: replace(attack, stop_at_success=stop) for label, stop in (("", False), ("stop at success", True))}
    return {label: replace(recipe, attack=attack) for label, attack in stops.items()}


def _ball(attack: Any) -> Setting:
    return Setting(steps=attack.steps, eps=attack.budget.eps, step_size=getattr(attack, "step_size", 0.0))


def _in_ball(name: str, recipe: Recipe, seconds: float, goal: str = "misclassify", skip: tuple[str, ...] = ()) -> Task:
    ours = _with_stop(recipe) if recipe.steps > 1 else {"": recipe}
    return Task(name=name, setting=_ball(recipe.attack), ours=ours, seconds=seconds, chunk=32, goal=goal, skip=skip)


def tasks(quick: bool) -> list[Task]:
    """Those on MobileFaceNet."""
    forty, twenty = (3, 2) if quick else (40, 20)
    dfanet = attacks.dfanet_fim(eps=EPS, steps=twenty)
    return [
        _in_ball("fgsm", attacks.fgsm(eps=EPS), 10),
        _in_ball("pgd", attacks.pgd(eps=EPS, steps=forty), 150),
        _in_ball("mi-fgsm", attacks.mi_fgsm(eps=EPS, steps=twenty), 70, skip=("compiled loop",)),
        replace(  # the two fastest at 20 steps
            _in_ball("mi-fgsm", attacks.mi_fgsm(eps=EPS, steps=forty), 50, skip=("compiled loop", "foolbox", "ART")),
            settings="40 steps",
        ),
        _in_ball("apgd", Recipe(APGD(budget=Linf(EPS), steps=forty)), 60),
        _in_ball("fim", attacks.fim(eps=EPS, steps=twenty), 70, goal="impersonate", skip=("compiled loop",)),
        _in_ball("dfanet-fim", dfanet, 100, goal="impersonate", skip=("compiled loop",)),
        *_minimal(quick),
        Task(
            name="df",
            setting=Setting(steps=SCIPY_EVALUATIONS // 20 if quick else SCIPY_EVALUATIONS, eps=DF_EPS),
            ours={
                "": Recipe(
                    LBFGSB(budget=Linf(DF_EPS), evaluations=3 if quick else OUR_EVALUATIONS["fp32"], tolerance=0.0)
                )
            },
            seconds=30,
            chunk=16,
            goal="match",
        ),
    ]


def _minimal(quick: bool) -> list[Task]:
    searches, steps, few = (2, 10, 10) if quick else (5, 40, 60)
    lbfgs = LBFGS(searches=2, steps_each=2) if quick else LBFGS()
    return [
        Task(
            name="cw-l2",
            setting=Setting(steps=steps, searches=searches),
            ours={
                "": Recipe(CarliniWagner(search_steps=searches, inner_steps=steps)),
                f"1 x {few}": Recipe(CarliniWagner(search_steps=1, inner_steps=few)),
            },
            seconds=40,
            chunk=16,
            minimal=True,
        ),
        Task(
            name="deepfool",
            setting=Setting(steps=3 if quick else 50),
            ours=deepfools(),
            seconds=15,
            chunk=16,
            minimal=True,
        ),
        Task(
            name="l-bfgs",
            setting=Setting(steps=lbfgs.steps_each, searches=lbfgs.searches),
            ours={"": Recipe(lbfgs)},
            seconds=40,
            chunk=16,
            goal="classify-as",
            minimal=True,
        ),
    ]


def deepfools() -> dict[str, Recipe]:
    """As published, and the forms that are faster at a smaller norm."""
    back = DeepFool(candidates=1, returns=1)
    return {
        "": Recipe(DeepFool()),
        "1 candidate, 1 return": Recipe(back),
        "1 candidate, 1 return, overshoot 0.1": Recipe(replace(back, overshoot=0.1)),
    }


def few_classes() -> list[Task]:
    """DeepFool where the gradients of all classes are affordable."""
    return [
        Task(name="deepfool", setting=Setting(steps=50), ours=deepfools(), seconds=15, chunk=16, minimal=True,
             skip=("torchattacks", "ART"))
    ]  # fmt: skip


def large_network(quick: bool) -> list[Task]:
    """On a large network of random weights: a fixed number of steps, and no success to compare."""
    steps = 2 if quick else 10
    chosen = {
        "pgd": (attacks.pgd(eps=EPS, steps=steps), "misclassify"),
        "fim": (attacks.fim(eps=EPS, steps=steps, step_size=ALPHA), "impersonate"),
    }
    return [
        Task(
            name=name,
            setting=_ball(recipe.attack),
            ours={"": recipe},
            seconds=30,
            chunk=8,
            goal=goal,
            skip=("compiled loop",),
        )
        for name, (recipe, goal) in chosen.items()
    ]


def best_precisions(device: str) -> tuple[str, ...]:
    """The engine's default, and bf16 where the machine computes in it."""
    if device.startswith("cuda"):
        return ("", "bf16") if torch.cuda.is_bf16_supported() else ("",)
    return ("", "bf16") if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ("",)
