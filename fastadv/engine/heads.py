"""What a class head must be like for a goal on logits."""

from __future__ import annotations

from torch import Tensor

from fastadv.attacks import Goal
from fastadv.core.errors import ArgumentError
from fastadv.core.notices import notify
from fastadv.engine.evaluate import outputs_of
from fastadv.models import FaceModel
from fastadv.surrogates import BoundSurrogate

_SUM = 1e-3  # rounding of a sum of probabilities, also in bfloat16's products


def class_count(goal: Goal, logits: Tensor) -> int:
    """How many classes the logits ``(N, K)`` are of; a goal such as ``EvadeDetector`` reads further columns."""
    return logits.shape[1] - goal.further_columns


def check_further_heads(surrogate: BoundSurrogate, goal: Goal, classes: int, like: Tensor) -> None:
    """Refuse an ensemble whose further networks tell other numbers of classes apart.

    Args:
        surrogate: The networks, the attacked model's first.
        goal: A goal on logits.
        classes: Of the attacked model's head.
        like: Any images ``(N, C, H, W)``.

    Raises:
        ArgumentError: One has another number of classes, or no class head.
    """
    for member in surrogate.members[1:]:
        found = class_count(goal, outputs_of(member.model, goal, like))
        if found != classes:
            raise ArgumentError(
                f"others: expected class heads of {classes} classes like the attacked model's, got {found} from the "
                f"head of {member.model.name!r}"
            )


def check_head(model: FaceModel, goal: Goal, logits: Tensor) -> None:
    """Refuse a head that has no other class to be taken for, and say where its outputs look like probabilities.

    Args:
        model: The attacked model.
        goal: A goal on logits.
        logits: ``(N, K)`` of any images.

    Raises:
        ArgumentError: There is one class only.

    Warns:
        Notice: Every row is of numbers of at least 0 whose sum is 1, as after a softmax.
    """
    classes = class_count(goal, logits)
    if classes < 2:
        raise ArgumentError(
            f"model: expected a class head of two classes or more, since {type(goal).__name__} is about telling them "
            f"apart, got {classes} from the head of {model.name!r}; use a goal on embeddings"
        )
    rows = logits[:, :classes].detach().float()
    if bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() <= _SUM).all()):
        notify(
            f"head: the outputs of the head of {model.name!r} look like probabilities (a softmax), and are taken for "
            "logits: DeepFool, C&W and losses on logits go astray on them; give a head without its softmax"
        )
