"""One call: a named attack on images with labels, or with a goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from fastadv.attacks import ClassifyAs, Goal, Misclassify, Recipe, by_name, check_recipe
from fastadv.attacks.objective import as_goal
from fastadv.attacks.options import with_fields
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.engine.adversarials import Adversarials
from fastadv.engine.run import check_model, collect
from fastadv.engine.settings import Engine
from fastadv.models import FaceModel

Moves = str | Recipe


@overload
def attack(
    moves: Moves, model: FaceModel, images: Tensor, labels: Tensor | None = ..., *, eps: Sequence[float], **options: Any
) -> list[Adversarials]: ...
@overload
def attack(
    moves: Moves,
    model: FaceModel,
    images: Tensor,
    labels: Tensor | None = ...,
    *,
    eps: float | None = ...,
    **options: Any,
) -> Adversarials: ...
def attack(
    moves: Moves,
    model: FaceModel,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    eps: float | Sequence[float] | None = None,
    goal: Goal | Callable[[Tensor], Tensor] | None = None,
    targeted: bool = False,
    seed: int = 0,
    engine: Engine | None = None,
    **options: Any,
) -> Adversarials | list[Adversarials]:
    """Attack a batch of images by the name of an attack. ::

        made = fa.attack("pgd", model, images, labels, eps=8 / 255, steps=40)
        made.images, made.success

    Args:
        moves: A name of ``fa.attacks.list()``, or a recipe.
        model: What is attacked: see ``fa.wrap``.
        images: ``(N, C, H, W)`` float32 in [0, 1].
        labels: ``(N,)`` int64, the images' classes, which are to be left; with ``targeted`` those to be reached. None
            takes what the model says of the images.
        eps: Radius of the budget, pixels in [0, 1]; a sequence attacks once with each.
        goal: What to reach instead, such as ``fa.Impersonate(targets, threshold=0.3)``, or a function of the logits to
            ascend until it is above 0 (see ``fa.Objective``).
        targeted: Whether ``labels`` are to be reached.
        seed: Of every random number.
        engine: How to run; None takes the defaults.
        options: ``steps`` and every other option of the attack, such as ``stop_at_success=True``.

    Returns:
        The result; with a sequence of ``eps`` a list, one result for each.

    Raises:
        TypeError: The attack has no such option.
        ValueError: As ``run``; also when ``targeted`` has no labels, or labels come beside a goal.
    """
    check_model(model)
    if isinstance(eps, Sequence) and not isinstance(eps, str):  # type: ignore[unreachable]
        options |= {"goal": goal, "targeted": targeted, "seed": seed, "engine": engine}
        return [attack(moves, model, images, labels, eps=each, **options) for each in eps]
    if isinstance(moves, str):
        made = by_name(moves, eps=eps, **options)
    else:
        made = with_fields(check_recipe(moves), options)
        if eps is not None:
            raise ArgumentError(f"eps: expected none beside an attack that has its own budget, got {eps}")
    return collect(made, goal_of(model, images, labels, goal, targeted), model, images, seed=seed, engine=engine)


def goal_of(
    model: FaceModel,
    images: Tensor,
    labels: Tensor | None,
    goal: Goal | Callable[[Tensor], Tensor] | None,
    targeted: bool,
) -> Goal:
    """The goal that labels stand for, or the one that is given."""
    if goal is not None:
        if labels is not None or targeted:
            raise ArgumentError("goal: expected none beside labels or targeted, got one; give the one or the other")
        return as_goal(goal)
    if isinstance(labels, Goal):
        raise ArgumentTypeError(f"labels: expected classes (N,), got {type(labels).__name__}; pass it as goal=")
    if labels is None:
        if targeted:
            raise ArgumentError("labels: expected the classes to reach with targeted=True, got None")
        with torch.no_grad():
            labels = torch.cat([model.logits(part.to(model.device)).argmax(1) for part in images.split(64)])
    return ClassifyAs(labels) if targeted else Misclassify(labels)
