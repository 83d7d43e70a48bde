"""The goal of an attack: a loss to maximise and a test of success, for each image.

Every loss is a vector with one entry per image and the engine sums it, so an image's gradient never depends
on the other images of its batch. Conventions: F(x) is the L2-normalised embedding, d(a, b) = ||F(a) - F(b)||_2, and the
similarity is the cosine, 1 - d^2 / 2.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.core.errors import ArgumentError
from fastadv.models.checks import check_embeddings, check_images

if TYPE_CHECKING:
    from fastadv.attacks.conjunction import Conjunction

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # what class indices may be
G = TypeVar("G", bound="Goal")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The references and labels of the images that are evaluated together, one row per image.

    Attributes:
        reference: Unit embeddings ``(N, D)`` float32 that the image is compared with, or None.
        label: Class indices ``(N,)`` int64, or None.
        parts: For a goal of several parts (``Goal.parts``) the rows of each part, and the two above are None; else
            empty.
    """

    reference: Tensor | None = None
    label: Tensor | None = None
    parts: tuple[Rows, ...] = ()

    @property
    def compared(self) -> Tensor:
        """``reference``, for a goal that has one: never None."""
        assert self.reference is not None
        return self.reference

    @property
    def named(self) -> Tensor:
        """``label``, for a goal that has one: never None."""
        assert self.label is not None
        return self.label

    def distance(self, outputs: Tensor) -> Tensor:
        """The Euclidean distance of embeddings or features to the reference, ``(N,)``."""
        # vector_norm has the gradient 0 where the distance is 0, not NaN
        return torch.linalg.vector_norm(outputs - self.compared, dim=1)


if TYPE_CHECKING:
    preset = property
else:

    class preset:  # noqa: N801
        """A property that a field of a dataclass may replace.

        Reading it from the class raises AttributeError: a dataclass would take what it finds there as the default of a
        field that has none.
        """

        def __init__(self, read: Callable[[Any], Any]) -> None:
            self._read, self.__doc__ = read, read.__doc__

        def __get__(self, goal: Any, kind: type) -> Any:
            if goal is None:
                raise AttributeError("of a goal, not of its class")
            return self._read(goal)


class Goal(ABC):
    """What counts as success of an attack, and the loss that it maximises: the base class, a frozen dataclass. ::

        @dataclass(frozen=True, kw_only=True)
        class Undecided(fa.Goal):
            output = "logits"
            border: float = -0.1

            def loss(self, outputs, rows):
                return -outputs.std(1)

    Only ``loss`` is required. A field, a class attribute or a property replaces a property below, and a method replaces
    a method. ``references`` and ``labels`` have one row per image; methods receive the rows of the images at hand in
    ``rows``. Every other field is the same for all images of a run.

    ``goal_a & goal_b`` is reached where both are (:class:`fastadv.attacks.Conjunction`).
    """

    @preset
    def output(self) -> str:
        """What the model must return: ``"embedding"``, ``"logits"``, or a layer's output (``models.outputs``)."""
        return "embedding"

    @preset
    def metric(self) -> str:
        """The name of the score."""
        return "loss"

    @preset
    def border(self) -> float:
        """The goal is reached where the score is above this number."""
        return 0.0

    @preset
    def references(self) -> Tensor | None:
        """Images ``(N, 3, H, W)`` or embeddings ``(N, D)`` to compare with, or None."""
        return None

    @preset
    def labels(self) -> Tensor | None:
        """Class indices ``(N,)``, or None."""
        return None

    @preset
    def own_reference(self) -> bool:
        """Whether an image is compared with its own clean embedding."""
        return False

    @preset
    def wants_label(self) -> bool:
        """Whether success means that the label's class has the largest logit (a targeted goal)."""
        return False

    @preset
    def avoids_label(self) -> bool:
        """Whether success means that any other class has the largest logit (an untargeted goal)."""
        return False

    @preset
    def by_templates(self) -> bool:
        """Whether embeddings are compared with templates, which are embeddings of the attacked model only."""
        return False

    @preset
    def further_columns(self) -> int:
        """How many columns of the outputs the goal reads in addition to the embedding or the logits."""
        return 0

    @abstractmethod
    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The loss to maximise, ``(N,)``. Entry i must depend on row i of the model's outputs ``(N, D)`` only."""

    def score(self, outputs: Tensor, rows: Rows) -> Tensor:
        """The number that is compared with the border, ``(N,)``; the loss by default."""
        return check_each(f"loss of {type(self).__name__}", self.loss(outputs, rows), len(outputs))

    def achieved(self, outputs: Tensor, rows: Rows, margin: float = 0.0) -> Tensor:
        """Whether the score exceeds the border by more than ``margin``, ``(N,)`` bool."""
        return self.score(outputs, rows) > self.border + margin

    def shortfall(self, outputs: Tensor, rows: Rows) -> Tensor:
        """``border - score``, ``(N,)``: 0 at the border, negative where the goal is reached.

        C&W and DeepFool minimise it. For class labels y and logits Z it is ``Z_y - max_{i != y} Z_i`` or its negative:
        the f of C&W without the maximum with -kappa.
        """
        return self.border - self.score(outputs, rows)

    def rivals(self, outputs: Tensor, rows: Rows, count: int) -> Tensor:
        """The shortfalls of DeepFool's ``count`` nearest candidates, ``(N, count)``, ascending; inf where none is left.

        The first is ``shortfall``. Only an untargeted goal on logits has more: one for each other class.
        """
        return F.pad(self.shortfall(outputs, rows)[:, None], (0, count - 1), value=torch.inf)

    @property
    def parts(self) -> tuple[Goal, ...]:
        """The goals whose references and labels the engine keeps for each image; the goal itself by default."""
        return (self,)

    @property
    def held(self) -> tuple[str, ...]:
        """The names of the fields with one row per image: those that are the references or the labels."""
        names = [f.name for f in fields(self)]  # type: ignore[arg-type]
        return tuple(name for name in names if any(getattr(self, name) is each for each in self._rows()))

    @property
    def row_count(self) -> int | None:
        """The number of images that the goal has rows for; None where it has no rows.

        Raises:
            ArgumentError: The numbers of references and of labels differ.
        """
        counts = sorted({len(each) for part in self.parts for each in part._rows()})
        if len(counts) > 1:
            raise ArgumentError(
                f"goal: expected as many references as labels in {type(self).__name__}, got {counts[0]} and {counts[1]}"
            )
        return counts[0] if counts else None

    def row(self: G, index: int) -> G:
        """The goal of one image, with tensors of one row. They are not checked again.

        Raises:
            ArgumentError: The references or labels are computed, not stored in a field.
        """
        other, held = copy.copy(self), self.held
        for name in held:
            object.__setattr__(other, name, getattr(self, name)[index : index + 1])
        if len(held) < len(self._rows()):
            raise ArgumentError(
                f"goal: expected {type(self).__name__} to have its references and labels in fields, got computed ones; "
                "write its row(index)"
            )
        return other

    def _rows(self) -> list[Tensor]:
        """The tensors with one row per image."""
        references = None if self.own_reference else self.references
        return [each for each in (references, self.labels) if each is not None]

    def __and__(self, other: Goal | Callable[[Tensor], Tensor]) -> Conjunction:
        """The conjunction of two goals; ``other`` may be a function of the logits."""
        from fastadv.attacks.conjunction import both  # here: its classes derive from this one

        return both(self, other)

    def __rand__(self, other: Goal | Callable[[Tensor], Tensor]) -> Conjunction:
        """The conjunction of a function of the logits and a goal."""
        from fastadv.attacks.conjunction import both

        return both(other, self)


def check_each(name: str, value: Tensor, count: int) -> Tensor:
    """Return ``value`` if it has the shape ``(count,)``, one number per image.

    Raises:
        ArgumentError: It has not; ``name`` is the argument that the message names.
    """
    if not isinstance(value, Tensor) or value.shape != (count,):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(f"{name}: expected one number for each of {count} images, got {got}")
    return value


def check_references(name: str, value: Tensor | None, *, features: bool = False) -> None:
    """Raise ArgumentError unless None, images in [0, 1] or embeddings are given; with ``features`` rows may be zero."""
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dim() not in (2, 4) or not value.is_floating_point():
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(f"{name}: expected float images (N, 3, H, W) or embeddings (N, D), got {got}")
    if value.dim() == 4:
        check_images(name, value)
    else:
        check_embeddings(name, value, zero=features)


def check_classes(name: str, value: Tensor, *, expected: str = "integers (N,)") -> None:
    """Raise ArgumentError unless ``value`` is a vector of integers of at least 0."""
    if not isinstance(value, Tensor) or value.dim() != 1 or value.dtype not in _INTEGERS:
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(f"{name}: expected {expected}, got {got}")
    if value.numel() and int(value.min()) < 0:
        raise ArgumentError(f"{name}: expected {expected} of at least 0, got {int(value.min())}")
