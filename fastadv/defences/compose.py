"""Compositions of input defences: one after the other, or one drawn for each image; and how any is put on a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.fields import check_range
from fastadv.defences.defended import DefendedModel, InputDefence, Traits, WatchedDefendedModel
from fastadv.defences.evade_detector import WatchedModel
from fastadv.models import FaceModel
from fastadv.ops import philox
from fastadv.surrogates.input_diversity import DIVERSITY_LAYER
from fastadv.surrogates.key import StepKey

CHOICE_LAYER = DIVERSITY_LAYER + 1
"""The Philox layer from which ``OneOf`` draws."""

_PARTS = 15  # at most, of one composition
_DEPTH = 4  # compositions within each other: draws are numbered in base 16, and Philox counts to 16**5


class Wraps(Traits):
    """Shared by all input defences: their name, and how they are put on a model.

    Attributes:
        naming: The name, with the fields in it: ``"mean{0.size}"`` is ``"mean3"``.
    """

    naming: ClassVar[str]

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.naming.format(self)

    def wrap(self: Any, model: FaceModel, *, seed: int = 0) -> FaceModel:
        """The model behind this defence; the weights are shared.

        Args:
            model: Any ``FaceModel``; of one that is defended already, images pass this defence first, then that one,
                and all draws are of the new seed. A ``WatchedModel`` keeps its detector, which then sees the defended
                images.
            seed: The defender's secret in [0, 2**64); it matters to a random defence only.

        Returns:
            A ``DefendedModel``, or a ``WatchedDefendedModel``.

        Raises:
            TypeError: ``model`` is no ``FaceModel``, or of a kind that computes its features in a way of its own.
            ValueError: The seed is out of range.
        """
        if isinstance(model, DefendedModel):
            plain = model.replace(name=model.name.removesuffix(f"+{model.defence.name}"))
            return DefendedModel(plain, Chain(parts=(self, model.defence)), seed=seed)
        if isinstance(model, WatchedModel):
            if isinstance(model, WatchedDefendedModel):
                raise ArgumentTypeError(
                    "model: expected a watched model without a defence, got one that is defended; chain the "
                    "defences, then watch"
                )
            return WatchedDefendedModel(model, self, seed=seed)
        return DefendedModel(model, self, seed=seed)


class _Composed(Wraps):
    """What the compositions share."""

    parts: tuple[InputDefence, ...]

    @property
    def on_host(self) -> bool:  # type: ignore[override]
        """Whether any part is."""
        return any(part.on_host for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Chain(_Composed):
    r"""Several defences, one after the other: :math:`T(x) = T_n(\dots T_1(x))`.

    Attributes:
        parts: 1 to 15 defences, the first one first; they draw independently.

    Raises:
        ValueError: There is none, or too many, or more than four compositions within each other.
        TypeError: A part is no input defence.
    """

    parts: tuple[InputDefence, ...]

    def __post_init__(self) -> None:
        _check_parts(self.parts)

    @property
    def name(self) -> str:
        """The parts' names with "+" between."""
        return "+".join(part.name for part in self.parts)

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether any part is."""
        return any(part.random for part in self.parts)

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """The images after the last part."""
        for k, part in enumerate(self.parts):
            images = part(images, _own(key, k))
        return images


@dataclass(frozen=True, kw_only=True)
class OneOf(_Composed):
    r"""One of several defences, drawn for each image: :math:`T(x) = T_k(x),\; k \sim p`.

    All of them are computed, and one is taken, so that the time does not tell which, and the host does not wait.

    Attributes:
        parts: 1 to 15 defences.
        weights: One number of at least 0 for each, proportional to its probability; None: all alike.

    Raises:
        ValueError: There is none, or too many, or the weights do not fit, or more than four compositions within each
            other.
        TypeError: A part is no input defence.

    Source:
        Mehr and Schroeder, "Six Pixels to Kevin Bacon", future work: a defence drawn at random.
    """

    parts: tuple[InputDefence, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_parts(self.parts)
        if self.weights is None:
            return
        if len(self.weights) != len(self.parts):
            raise ArgumentError(
                f"weights: expected {len(self.parts)} numbers, one for each part, got {brief(self.weights)}"
            )
        for weight in self.weights:
            check_range("weights", weight, 0, 1e9)
        if sum(self.weights) <= 0:
            raise ArgumentError(f"weights: expected at least one above 0, got {brief(self.weights)}")

    @property
    def name(self) -> str:
        """``"one(mean3|jpeg20)"``."""
        return f"one({'|'.join(part.name for part in self.parts)})"

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether there is anything to draw."""
        return len(self.parts) > 1 or self.parts[0].random

    def chosen(self, key: StepKey) -> Tensor:
        """Which part each image gets, ``(N,)`` int64."""
        weights = self.weights or (1.0,) * len(self.parts)
        total, ends = 0.0, []
        for weight in weights[:-1]:
            total += weight
            ends.append(total / sum(weights))
        u = philox.uniform(key.seed, key.ids, key.ticks, CHOICE_LAYER, (1,)).flatten()
        found = torch.zeros_like(key.ids)
        for end in ends:
            found = found + (u >= end)
        # the last parts may have the weight 0, and a rounded end may lie below u
        return found.clamp(max=max(k for k, weight in enumerate(weights) if weight > 0))

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """Each image as its part makes it."""
        chosen = self.chosen(key).view(-1, 1, 1, 1)
        made = self.parts[0](images, _own(key, 0))
        for k, part in enumerate(self.parts[1:], 1):
            made = torch.where(chosen == k, part(images, _own(key, k)), made)
        return made


def _own(key: StepKey, place: int) -> StepKey:
    """The key of the part at a place: every part of a tree of compositions has its own draw."""
    return replace(key, ticks=key.ticks * (_PARTS + 1) + place + 1)


def _check_parts(parts: tuple[InputDefence, ...]) -> None:
    if not isinstance(parts, tuple) or not 1 <= len(parts) <= _PARTS:
        raise ArgumentError(f"parts: expected a tuple of 1 to {_PARTS} defences, got {brief(parts)}")
    for part in parts:
        if not isinstance(part, Wraps):
            raise ArgumentTypeError(f"parts: expected input defences, got {type(part).__name__}")
    depth = 1 + max(_depth(part) for part in parts)
    if depth > _DEPTH:
        raise ArgumentError(f"parts: expected at most {_DEPTH} compositions within each other, got {depth}")


def _depth(part: InputDefence) -> int:
    return 1 + max(map(_depth, part.parts)) if isinstance(part, _Composed) else 0
