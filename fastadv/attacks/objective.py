"""A goal of your own without a class: any function of the model's output as the loss to ascend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastadv.attacks.goal import Goal, Rows, check_classes, check_each
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError

_OUTPUTS = ("logits", "embedding")


@dataclass(frozen=True)
class Objective(Goal):
    r"""Ascend a loss of your own: achieved where it is above ``border``. ::

        undecided = fa.Objective(lambda logits: -logits.std(1), border=-0.1)
        made = fa.attack("pgd", model, images, goal=undecided)

    An attack on a function that uses the norm, the margin or other rows of the batch is yours to justify: the engine
    calls it with whatever images its slots hold.

    Attributes:
        function: ``function(outputs)`` of ``(N, K)`` logits or ``(N, D)`` unit embeddings, or
            ``function(outputs, labels)`` where there are labels: ``(N,)``, differentiable, row i of row i alone.
        border: The value above which an image has reached the goal.
        labels: Whole numbers ``(N,)``, one for each image, or None.
        output: ``"logits"`` or ``"embedding"``.

    Raises:
        TypeError: ``function`` cannot be called.
        ValueError: ``output`` is another, or labels are no whole numbers.
    """

    function: Callable[..., Tensor]
    border: float = 0.0
    labels: Tensor | None = None
    output: str = "logits"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ArgumentTypeError(f"function: expected a function of the model's output, got {brief(self.function)}")
        if self.output not in _OUTPUTS:
            raise ArgumentError(f"output: expected 'logits' or 'embedding', got {brief(self.output)}")
        if self.labels is not None:
            check_classes("labels", self.labels, expected="whole numbers (N,)")

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The function's value, checked to be one number an image."""
        value = self.function(outputs) if rows.label is None else self.function(outputs, rows.label)
        return check_each("function", value, len(outputs))


def as_goal(goal: object) -> Goal:
    """A goal itself, or a plain function of the logits as one whose border is 0.

    Raises:
        ArgumentTypeError: It is neither.
    """
    if isinstance(goal, Goal):
        if not hasattr(goal, "__dataclass_fields__"):
            raise ArgumentTypeError(
                f"goal: expected a frozen dataclass, got {type(goal).__name__}; write @dataclass(frozen=True) above it"
            )
        return goal
    if isinstance(goal, type) and issubclass(goal, Goal):
        raise ArgumentTypeError(f"goal: expected a goal such as Impersonate(...), got {goal.__name__}; call it")
    if callable(goal):
        return Objective(goal)
    raise ArgumentTypeError(f"goal: expected a goal such as Impersonate(...), got {type(goal).__name__}")
