"""Carlini and Wagner's margin inside a ball: signed steps that end where the goal is reached."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.sign_gradient import SignGradient


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerBall(SignGradient):
    """Ascend ``-g(x')`` in a ball, with ``g = max_{i != t} p_i - p_t`` of the softmax p, until the goal is reached.

    Of a class y to avoid, g is ``p_y - max_{i != y} p_i``; of a goal on embeddings it is the goal's shortfall, such as
    ``P(same) - 1/2`` of ``PairClassifier``. g is flat beyond the margin (the k of the paper), so that an image which
    reaches its goal by as much is done.

    **choice**: the paper minimises ``||delta||_p + c g(x + delta)`` by "any gradient-based method" with every change
    within eps, and leaves p, c and k open. Here the ball takes the place of the norm, and the method is that of
    ``SignGradient``. A softmax that is 1 in float32 (one logit more than about 80 above the others) has no gradient.

    Attributes:
        margin: k, in the unit of the goal's score (of a class: of logits). The other fields are those of
            ``SignGradient``.

    Source: "Adversarial attack as a defence", 2021, section 2 and table 1.
    """

    stop_at_success: bool = True
    name: str = "cw-ball"

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        """``-g``."""
        return -goal.shortfall(outputs.softmax(1) if goal.metric == "logit_margin" else outputs, rows)
