"""Draws docs/attack.png: two synthetic faces, the change that makes one pass for the other, and the similarities.

python docs/draw_attack.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import fastadv as fa
from fastadv.report.page import amplified
from fastadv.report.roc import save_figure
from fastadv.report.svg import COLOURS, INK, MUTED, drawing, new_figure

FACTOR = 15
PEOPLE = ("s0-000003/0000", "s0-000007/0000")


def pixels(image: torch.Tensor) -> np.ndarray:
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def main() -> None:
    faces = fa.data.SyntheticFaces(identities=20, per_identity=2, seed=0)
    model = fa.load("synth-mobile")
    source, target = (faces.load(name).image[None] for name in PEOPLE)
    goal = fa.Impersonate(target, threshold=0.6)
    made = fa.attack("fim", model, source, goal=goal, eps=8 / 255, steps=20)
    before, after = float(made.score_before[0]), float(made.score_after[0])
    shown = (
        (pixels(source[0]), "source"),
        (pixels(target[0]), "target"),
        (amplified(pixels(source[0]), pixels(made.images[0]), FACTOR), f"change × {FACTOR}"),
        (pixels(made.images[0]), "adversarial"),
    )
    with drawing():
        figure, axes = new_figure(9.6, 2.7, ncols=5, width_ratios=[1, 1, 1, 1, 1.25])
        figure.set_facecolor("white")
        for axis, (image, title) in zip(axes, shown, strict=False):
            axis.imshow(image)
            axis.set_title(title, fontsize=10, color=INK)
            axis.set_axis_off()
        bars = axes[4]
        bars.barh([1, 0], [before, after], color=[COLOURS[5], COLOURS[1]], height=0.55)
        bars.axvline(goal.threshold, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        bars.set_yticks([1, 0], ["source", "adversarial"])
        bars.set_xlim(min(0.0, before) - 0.05, 1)
        bars.set_title("cosine similarity to the target", fontsize=10, color=INK)
        bars.set_xlabel(f"threshold {goal.threshold:g} (dashed)", color=MUTED)
        for y, value in ((1, before), (0, after)):
            bars.text(max(value, 0) + 0.02, y, f"{value:.2f}", va="center", color=INK)
        save_figure(figure, Path(__file__).with_name("attack.png"))
    print(f"similarity {before:.3f} -> {after:.3f}, L-infinity {float(made.linf[0]) * 255:.0f}/255")


if __name__ == "__main__":
    main()
