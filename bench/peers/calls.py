"""What every peer is given, and what it gives."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from fastadv.models import FaceModel


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The same for every library.

    Attributes:
        steps: Steps of the attack; of C&W those of one search.
        eps: Radius of the L-infinity ball.
        step_size: Of one step, pixels in [0, 1].
        searches: Of C&W's constant.
    """

    steps: int = 1
    eps: float = 0.0
    step_size: float = 0.0
    searches: int = 1


@dataclass(frozen=True, kw_only=True)
class Given:
    """Images and what is wanted of them, a row an image.

    Attributes:
        x: ``(N, 3, H, W)`` in [0, 1].
        label: ``(N,)``, the classes that the network gives them.
        wanted: ``(N,)``, other classes, for targeted attacks.
        target: ``(N, 3, H, W)``, images of other persons.
    """

    x: Tensor
    label: Tensor
    wanted: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> Given:
        return Given(x=self.x[rows], label=self.label[rows], wanted=self.wanted[rows], target=self.target[rows])

    def split(self, size: int) -> list[Given]:
        """Consecutive parts of ``size`` images."""
        return [self[slice(i, i + size)] for i in range(0, len(self), size)]


class Network(nn.Module):
    """Images to logits, or to unit embeddings: what a user of a library hands to it."""

    def __init__(self, model: FaceModel, output: str = "logits") -> None:
        super().__init__()
        self.model, self.output = model, output
        self.classes = 0 if model.head is None else int(model.logits(_grey(model)).shape[1])

    def forward(self, images: Tensor) -> Tensor:
        return self.model.logits(images) if self.output == "logits" else self.model(images)


def _grey(model: FaceModel) -> Tensor:
    return model.mean.new_full((1, *model.image_shape), 0.5)


Call = Callable[[Network, Given, Setting], Tensor]


class Peer(Protocol):
    """See the package."""

    NAME: str
    ATTACKS: Mapping[str, Call]

    def missing(self) -> str | None:
        """Why it cannot be used here."""

    def version(self) -> str | None:
        """Of the library."""


def why_missing(*modules: str) -> str | None:
    """Why one of the modules cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return str(error)
    return None


def stand_in(name: str, **attributes: Any) -> None:
    """An empty module in place of one that a library imports, is missing here, and is of no use to its attacks."""
    try:
        importlib.import_module(name)
    except ImportError:
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        sys.modules[name] = module
