"""``fastadv detect explain``: what made the score of an image file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastadv.core.errors import ArgumentError
from fastadv.data.alignment import center_crop
from fastadv.data.images import read_image, to_tensor
from fastadv.detection import Explanation, Guard, LayerTap, explain


@dataclass(frozen=True, kw_only=True)
class ExplainedImage:
    """The verdict on an image, and what made it.

    Attributes:
        name: Of the file.
        explanation: Of the score.
        p_value: As of ``ScoredFace``.
        flagged: Whether the guard flags it.
    """

    name: str
    explanation: Explanation
    p_value: float | None
    flagged: bool

    @property
    def leading(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """The two columns with the largest contributions, each with what it gives to every layer."""
        why = self.explanation
        return tuple((why.columns[k], tuple(why.contributions[:, k].tolist())) for k in why.leading())

    def described(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        why = self.explanation
        layers = zip(why.layers, why.by_layer, why.others, strict=True)
        return {
            "name": self.name,
            "score": why.score,
            "p_value": self.p_value,
            "flagged": self.flagged,
            "baseline": why.baseline,
            "remainder": why.remainder,
            "own": why.own,
            "layers": [{"layer": n, "contribution": c, "nearest_other": near} for n, c, near in layers],
            "leading": [{"name": n, "contribution": sum(by), "by_layer": list(by)} for n, by in self.leading],
        }


def explain_image(path: Path, guard: Guard, *, claimed: str | None = None) -> ExplainedImage:
    """Judge an aligned face, and share its score out among layers and columns.

    Args:
        path: The file; of an image of another size the middle is taken, as the service does.
        guard: Its network and its detector.
        claimed: The class that it claims to show, as the guard takes it.

    Raises:
        ValueError: The score is no finite number, or as the guard.
        ImageError: The file is no usable image.
    """
    face = to_tensor(center_crop(read_image(path), guard.model.input_size)[0])[None]
    verdict = guard(face, [claimed])
    if not math.isfinite(float(verdict.scores)):
        raise ArgumentError(f"image: expected one with a finite score, got {float(verdict.scores)} for {path}")
    own = torch.tensor([guard.place(claimed)])
    if claimed is None:
        chosen = None if verdict.logits is None else guard.detector.trajectory.own_of(verdict.logits.argmax(1))
        own = own if chosen is None else chosen
    with torch.no_grad():
        values = LayerTap(model=guard.model, layers=guard.detector.layers)(face.to(guard.model.device)).values
    p_values = verdict.p_values
    return ExplainedImage(
        name=path.name,
        explanation=explain(guard.detector, values, own if guard.detector.trajectory.relative else None),
        p_value=None if p_values is None else float(p_values),
        flagged=bool(verdict.flagged),
    )
