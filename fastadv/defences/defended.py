"""A face model behind an input defence: a ``FaceModel`` for every caller."""

from __future__ import annotations

import copy
from typing import ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from fastadv.core.errors import ArgumentTypeError
from fastadv.core.fields import check_seed
from fastadv.defences.evade_detector import WatchedModel
from fastadv.defences.key import content_key
from fastadv.models import FaceModel
from fastadv.models.face_model import check_face_model
from fastadv.surrogates.key import StepKey

D = TypeVar("D")


class Defence(Protocol):
    """Anything that makes a model a defended one: an input defence, switched-off filters, other weights, an attack."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def random(self) -> bool:
        """Whether it draws random numbers, which the attacker does not know."""

    @property
    def on_host(self) -> bool:
        """Whether it works on the host, so that an attack through it cannot be captured."""

    @property
    def takes_attacked(self) -> bool:
        """Whether a query that is known to be attacked is compared as it is (``AttackAsDefence``)."""

    def run_in(self: D, precision: str | None) -> D:
        """The defence as it is in an evaluation of a precision: one that attacks does so in that one."""

    def wrap(self, model: FaceModel, *, seed: int = 0) -> FaceModel:
        """The defended model."""


class InputDefence(Defence, Protocol):
    """A transformation of the images before they are embedded. A frozen value."""

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """Images ``(N, 3, H, W)`` to images of the same shape, with a gradient; draws hang on the key only."""


class Traits:
    """What is true of most defences; see ``Defence``."""

    random: ClassVar[bool] = False
    on_host: ClassVar[bool] = False
    takes_attacked: ClassVar[bool] = False

    def run_in(self: D, precision: str | None) -> D:
        """The defence as it is in an evaluation of a precision."""
        return self


def networks_of(defence: object) -> tuple[nn.Module, ...]:
    """The networks that a defence and its parts run, in order; most run none."""
    own = getattr(defence, "network", None)
    parts = getattr(defence, "parts", ())
    return (*((own,) if isinstance(own, nn.Module) else ()), *(n for part in parts for n in networks_of(part)))


class _Behind:
    """What the defended models share: images pass the defence, then all that the model does."""

    defence: InputDefence
    seed: int

    def _take(self, defence: InputDefence, seed: int) -> None:
        """Put the defence in front; its networks become a part of the model, to follow it wherever it goes."""
        if networks_of(defence):
            defence = copy.deepcopy(defence)  # another model, on another device, may have the same defence
            held = nn.ModuleList(networks_of(defence)).to(self.device)  # type: ignore[attr-defined]
            self.defence_networks = held.train(self.training)  # type: ignore[attr-defined]
        self.defence, self.seed = defence, seed

    def seen(self, images: Tensor) -> Tensor:
        """The defended images ``(N, 3, H, W)``: what the network gets."""
        return self.defence(images, content_key(images, self.seed))

    def features(self, images: Tensor) -> Tensor:
        """The raw features ``(N, D)`` of the defended images; see ``FaceModel.features``."""
        self._check(images)  # type: ignore[attr-defined]
        return super().features(self.seen(images))  # type: ignore[misc]


class SameNetwork(FaceModel):
    """A plain model's parts, shared, under another name.

    Args:
        model: The model.
        name: What reports call this one.

    Raises:
        TypeError: ``model`` is no ``FaceModel``, or of a kind that computes its features in a way of its own.
    """

    def __init__(self, model: FaceModel, name: str) -> None:
        check_face_model(model)
        if type(model) is not FaceModel:
            raise ArgumentTypeError(
                f"model: expected a plain FaceModel, got {type(model).__name__}; use the defence's wrap"
            )
        self._share(model, name=name)


class DefendedModel(_Behind, SameNetwork):
    r"""A model behind an input defence: :math:`F(T(x))`.

    Embeddings, logits, layers and their taps are those of the defended images; ``prepare`` and the engine's surrogates
    keep the defence; the weights are the model's own. The draws of a random defence hang on the image and the seed
    only: one image is always seen in one way, an image that changes by any part of a grey level in another. A defence
    that runs a network is copied, and the copy is moved, frozen and saved with the model.

    What takes the network out of a model (``surrogates.gd_uap``, ``detection.export``) leaves the defence behind.

    Args:
        model: A plain ``FaceModel``; ``wrap`` of a defence takes defended and watched ones too.
        defence: What the images pass.
        seed: The defender's secret; of a defence without draws it changes nothing.

    Raises:
        TypeError: ``model`` is no ``FaceModel``, or of a kind that computes its features in a way of its own.
        ValueError: The seed is out of range.
    """

    def __init__(self, model: FaceModel, defence: InputDefence, *, seed: int = 0) -> None:
        check_seed(seed)
        super().__init__(model, f"{getattr(model, 'name', '')}+{defence.name}")
        self._take(defence, seed)


class WatchedDefendedModel(_Behind, WatchedModel):
    """A defended model under a detector that looks at the layers of the defended images.

    Args:
        model: The watched model.
        defence: What the images pass.
        seed: The defender's secret.
    """

    def __init__(self, model: WatchedModel, defence: InputDefence, *, seed: int = 0) -> None:
        check_seed(seed)
        super().__init__(model, model.detector, model.claims)
        self.name = f"{model.name}+{defence.name}"
        self._take(defence, seed)

    @property
    def embedding_size(self) -> int:
        """The features, and the detector's columns: the width of what ``forward`` gives."""
        return super().embedding_size + max(1, len(self.claims))
