"""An attack of your own: signed steps whose size falls along a cosine, run by the engine beside PGD."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

import fastadv as fa
from fastadv.attacks.attack import Evaluation, SlotAttack
from fastadv.attacks.state import SlotState


@dataclass(frozen=True, kw_only=True)
class CosineSteps(SlotAttack[SlotState]):
    slots = SlotState  # one row an image: trial, origin, active, ticks; a subclass adds fields
    budget: fa.Linf
    steps: int = 10
    margin: float = 0.0
    name: str = "cosine-steps"

    def tick(self, state: SlotState, evaluation: Evaluation) -> None:
        """One step of every active image; each may be at a step of its own."""
        size = self.budget.eps * (1 + torch.cos(math.pi * state.ticks / self.steps)) / 2
        moved = state.trial + (size * state.active)[:, None, None, None] * evaluation.gradient.sign()
        inside = moved.clamp(state.origin - self.budget.eps, state.origin + self.budget.eps).clamp(0, 1)
        state.trial.copy_(inside)
        state.ticks.add_(state.active)
        state.active.logical_and_(state.ticks < self.steps)


model = fa.load("synth-mobile")
faces = fa.data.render_faces([*range(16)] * 2, [0] * 16 + [1] * 16, seed=2).images  # two images of each person
goal = fa.Evade(references=faces[16:], threshold=0.46)
for attack in (fa.Recipe(CosineSteps(budget=fa.Linf(3 / 255))), fa.attacks.pgd(eps=3 / 255, steps=10)):
    print(f"{attack.name}: {fa.run(attack, goal, model, faces[:16])}")
