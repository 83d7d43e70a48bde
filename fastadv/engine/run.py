"""What a user calls: a stream of jobs, a batch in memory, or the iterates on the way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastadv.attacks import Goal, Recipe, check_recipe
from fastadv.attacks.attack import most_steps
from fastadv.attacks.objective import as_goal
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.fields import check_seed
from fastadv.core.spent import Spent
from fastadv.engine.adversarials import Adversarials
from fastadv.engine.job import Job, Result, check_id, notices
from fastadv.engine.loop import Loop
from fastadv.engine.settings import AttackWarning, Engine
from fastadv.models import FaceModel


def stream_jobs(
    attack: Recipe,
    jobs: Iterable[Job | None],
    model: FaceModel,
    *,
    seed: int = 0,
    engine: Engine | None = None,
    spent: Spent | None = None,
) -> Iterator[Result]:
    """Attack a stream of jobs; results come as they are done, in no particular order.

    Memory is bounded by the slots, whatever the length of the stream. Each result is a function of
    (image, goal, attack, seed, id) and the engine's batch and precision.

    Args:
        attack: How to move, and on which surrogate.
        jobs: Images with goals of one kind. None among them (never first) says that there is none at the moment: the
            images at hand go on, their results come, and the stream is asked again.
        model: The model to attack, in evaluation mode.
        seed: Of every random number.
        engine: How to run; None takes the defaults.
        spent: A clock that is told where the time goes, or None.

    Raises:
        ValueError: An image is not float32 in [0, 1] of the model's size, goals are of different kinds, the model
            is in training mode, has no class head for a goal on logits, or its output for an image depends on the
            other images of the batch or on chance.

    What the caller has switched on around the call (``torch.autocast``, ``no_grad``, inference mode, a default type or
    device) changes no result, and is as it was between two results.
    """
    recipe = check_recipe(attack)
    check_seed(seed)
    check_model(model)
    queue = iter(jobs)
    first = next(queue, None)
    if first is None:
        return

    def everything() -> Iterator[Job | None]:
        yield first
        yield from queue

    yield from Loop(recipe, first.goal, model, everything(), seed, engine or Engine(), spent).results()


def run(
    attack: Recipe,
    goal: Goal | Callable[[Tensor], Tensor],
    model: FaceModel,
    images: Tensor,
    *,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    engine: Engine | None = None,
) -> Adversarials:
    """Attack a batch in memory.

    Args:
        attack: How to move, for example ``attacks.fim(eps=8/255)``; ``Recipe(...)`` of a state machine of your own.
        goal: What to reach; its tensors have one row an image. A plain function of the logits is ascended until it is
            above 0: see ``fastadv.Objective``.
        model: The model to attack, in evaluation mode.
        images: ``(N, 3, H, W)`` float32 RGB in [0, 1].
        seed: Of every random number.
        ids: The number that keys each image's random draws; None takes 0, 1, 2, ...
        engine: How to run; None takes the defaults.

    Raises:
        ValueError: As ``stream_jobs``; also when the goal has not one row an image.

    Warns:
        AttackWarning: An image had no gradient, met non-finite ones, or had reached its goal before.
    """
    return collect(attack, goal, model, images, seed=seed, ids=ids, engine=engine)


def collect(
    attack: Recipe,
    goal: Goal | Callable[[Tensor], Tensor],
    model: FaceModel,
    images: Tensor,
    *,
    seed: int,
    engine: Engine | None,
    ids: Sequence[int] | None = None,
) -> Adversarials:
    """What :func:`run` and :func:`fastadv.engine.attack.attack` do; warnings name the line of their caller."""
    goal = as_goal(goal)
    jobs = _jobs(goal, images, ids)
    n = len(images)
    check_model(model)
    settled = (engine or Engine()).resolve(model, images=n)
    # one block, however many results there are
    made = torch.empty(images.shape, dtype=torch.float32, device="cpu") if n else images.detach().clone()
    found: dict[int, Result] = {}
    for result in stream_jobs(attack, jobs, model, seed=seed, engine=settled):
        place = int(result.name)
        made[place] = result.image
        found[place] = replace(result, image=made[place])
    done = [found[i] for i in range(n)]
    for line in notices((r.name, r.flags) for r in done):
        warnings.warn(line, AttackWarning, stacklevel=3)
    return Adversarials.of(done, made)


def trace(
    attack: Recipe,
    goal: Goal | Callable[[Tensor], Tensor],
    model: FaceModel,
    images: Tensor,
    *,
    at: Sequence[int],
    seed: int = 0,
    ids: Sequence[int] | None = None,
    engine: Engine | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Attack a batch in memory and give the iterates on the way.

    The iterate after k steps of an attack whose step size does not depend on the number of steps (FIM and all its
    relatives) is the result of the same attack with k steps.

    Args:
        attack: See ``run``; likewise ``goal``, ``model``, ``images``, ``seed`` and ``ids``.
        goal: What to reach.
        model: The model to attack.
        images: ``(N, 3, H, W)``.
        at: Numbers of steps, from 1 to the attack's; any order.
        seed: Of every random number.
        ids: The numbers that key the images' random draws.
        engine: How to run; the slots are as many as the images need. Where memory does not suffice for all images at
            once, they are attacked group by group, and the iterates come when the last group is done.

    Yields:
        The number of steps, ascending, and ``(N, 3, H, W)`` float32 on the 8-bit grid, on the model's device.

    Raises:
        ValueError: As ``run``; also when ``at`` holds no number of steps that the attack takes.
    """
    recipe = check_recipe(attack)
    check_seed(seed)
    check_model(model)
    most = most_steps(recipe.attack)
    if not at or any(not 1 <= k <= most for k in at):
        raise ArgumentError(f"at: expected numbers of steps from 1 to {most}, got {brief(list(at))}")
    goal = as_goal(goal)
    jobs = _jobs(goal, images, ids)
    settled = (engine or Engine()).resolve(model, images=len(images))
    batch = settled.batch or 1
    slots = max(1, -(-len(images) // batch)) * batch
    kind = goal.row(0) if len(images) else goal  # like the jobs' goals, which are of one row
    loop = Loop(recipe, kind, model, jobs, seed, replace(settled, slots=slots, poll=1))
    yield from loop.iterates(frozenset(at))


def check_model(model: object) -> None:
    """Insists on a `FaceModel`; a bare network is told how it becomes one."""
    if not isinstance(model, FaceModel):
        hint = "; use fastadv.wrap(network, mean=..., std=..., input_size=...)" if isinstance(model, nn.Module) else ""
        raise ArgumentTypeError(f"model: expected a FaceModel, got {type(model).__name__}{hint}")


def _jobs(goal: Goal, images: Tensor, ids: Sequence[int] | None) -> Iterator[Job]:
    """One job an image, named by its place; checked before anything is made."""
    if not isinstance(images, Tensor):
        raise ArgumentTypeError(f"images: expected a torch.Tensor (N, 3, H, W) in [0, 1], got {type(images).__name__}")
    if images.dim() != 4:
        raise ArgumentError(f"images: expected the shape (N, 3, H, W), got {tuple(images.shape)}")
    n = len(images)
    rows = goal.row_count
    if rows is not None and rows != n:
        raise ArgumentError(f"goal: expected one row for each of the {n} images, got {rows}")
    if ids is not None and len(ids) != n:
        raise ArgumentError(f"ids: expected one entry for each of the {n} images, got {len(ids)}")
    numbers = list(range(n) if ids is None else (i.item() if hasattr(i, "item") else i for i in ids))
    for i, number in enumerate(numbers):
        check_id(f"ids[{i}]", number)
    return (Job(name=str(i), id=numbers[i], image=images[i].detach(), goal=goal.row(i)) for i in range(n))
