"""Several goals at once: reached where each of them is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.objective import as_goal
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError


@dataclass(frozen=True, repr=False)
class Conjunction(Goal):
    """Reach every one of several goals: ``goal_a & goal_b``. ::

        both = fa.ClassifyAs(labels) & fa.Objective(lambda logits: -logits.std(1), border=-2.0)

    The loss is the unweighted sum of the losses, ``J = J_1 + J_2 + ...``; a goal is weighted inside its own ``loss``.
    The conjunction is achieved where every goal is achieved with the margin. Its shortfall is the largest of the goals'
    shortfalls, each in the unit of its own goal. Its score, ``"least_margin"``, is the negative shortfall: above 0
    where every goal is beyond its border. DeepFool has one candidate, the goal with the largest shortfall.

    We chose the sum for attacks that follow the gradient of the loss, and the largest shortfall for those that minimise
    the shortfall (C&W, DeepFool), which need 0 as the border of the whole.

    Attributes:
        goals: Two goals or more, on the same output of the model and for the same images. Each has its own references
            and labels.

    Raises:
        TypeError: An element is not a goal.
        ValueError: The goals read different outputs, or have different numbers of rows.
    """

    metric: ClassVar[str] = "least_margin"
    goals: tuple[Goal, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.goals, (tuple, list)) or len(self.goals) < 2:
            raise ArgumentError(f"goals: expected two goals or more, got {brief(self.goals)}")
        object.__setattr__(self, "goals", tuple(as_goal(goal) for goal in self.goals))
        first = self.goals[0]
        for goal in self.goals[1:]:
            if (goal.output, goal.further_columns) != (first.output, first.further_columns):
                raise ArgumentError(
                    f"goals: expected goals on the same output of the model, got {_reads(first)} and {_reads(goal)}"
                )
        counted = [(goal, goal.row_count) for goal in self.goals if goal.row_count is not None]
        for goal, count in counted[1:]:
            if count != counted[0][1]:
                raise ArgumentError(
                    f"goals: expected goals for the same images, got {counted[0][1]} rows in "
                    f"{type(counted[0][0]).__name__} and {count} in {type(goal).__name__}"
                )

    def __repr__(self) -> str:
        return " & ".join(map(brief, self.goals))

    @property
    def output(self) -> str:
        """The output that every goal reads."""
        return self.goals[0].output

    @property
    def further_columns(self) -> int:
        """The number of further columns, the same for every goal."""
        return self.goals[0].further_columns

    @property
    def wants_label(self) -> bool:
        """Whether one of the goals is targeted at a label."""
        return any(goal.wants_label for goal in self.goals)

    @property
    def avoids_label(self) -> bool:
        """Whether one of the goals is untargeted on labels."""
        return any(goal.avoids_label for goal in self.goals)

    @property
    def parts(self) -> tuple[Goal, ...]:
        """The parts of all goals, in order."""
        return tuple(part for goal in self.goals for part in goal.parts)

    def row(self, index: int) -> Conjunction:
        """The goals of one image."""
        other = copy.copy(self)
        object.__setattr__(other, "goals", tuple(goal.row(index) for goal in self.goals))
        return other

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The sum of the losses."""
        return reduce(torch.add, [goal.loss(outputs, own) for goal, own in self._with(rows)])

    def score(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The negative shortfall."""
        return -self.shortfall(outputs, rows)

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        """Whether every goal is achieved with the margin."""
        return reduce(torch.logical_and, [goal.achieved(outputs, own, margin) for goal, own in self._with(rows)])

    def shortfall(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The largest of the shortfalls."""
        return reduce(torch.maximum, [goal.shortfall(outputs, own) for goal, own in self._with(rows)])

    def _with(self, rows: Rows) -> Iterator[tuple[Goal, Rows]]:
        """Each goal with its own rows."""
        at = 0
        for goal in self.goals:
            end = at + len(goal.parts)
            yield goal, rows.parts[at] if end == at + 1 else Rows(parts=rows.parts[at:end])
            at = end


def both(a: Goal | Callable[[Tensor], Tensor], b: Goal | Callable[[Tensor], Tensor]) -> Conjunction:
    """``a & b``; a conjunction among the two contributes its goals, so that conjunctions are never nested."""
    goals = (as_goal(a), as_goal(b))
    return Conjunction(tuple(g for goal in goals for g in (goal.goals if isinstance(goal, Conjunction) else (goal,))))


def _reads(goal: Goal) -> str:
    more = f" and {goal.further_columns} further column" if goal.further_columns else ""
    return f"{type(goal).__name__} on {brief(goal.output)}{more}"
