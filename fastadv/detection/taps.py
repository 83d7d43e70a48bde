"""What the layers of a network say about an image, caught in the forward pass that answers it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv import ops
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.fields import check_one_of, check_type
from fastadv.models import FaceModel
from fastadv.models.hooks import hooked
from fastadv.ops import checks

EMBEDDING = "embedding"
"""The name of the unit embedding as a layer; no submodule of this name can be tapped."""

_Caught = dict[str, Tensor]


def submodules(layers: Iterable[str]) -> tuple[str, ...]:
    """The layers that are submodules of the backbone: all but the embedding."""
    return tuple(name for name in layers if name != EMBEDDING)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tapped:
    """What one forward pass gave.

    Attributes:
        layers: the names of the layers.
        values: one for each layer: the means ``(N, C_l)`` float32 of its channels; or its maps ``(N, C_l, H_l, W_l)``
            in the model's type, where they were kept.
        features: ``(N, D)``, the raw output of the backbone: normalised it is the embedding, and the model's head makes
            logits of it.
    """

    layers: tuple[str, ...]
    values: tuple[Tensor, ...]
    features: Tensor

    def of(self, layer: str) -> Tensor:
        """The value of one layer.

        Raises:
            ValueError: there is no such layer.
        """
        check_one_of("layer", layer, self.layers)
        return self.values[self.layers.index(layer)]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerTap:
    r"""Average-pooled outputs of named layers, beside the features, from one forward pass.

    .. math:: p_{l,n,c} = \frac{1}{H_l W_l} \sum_{h,w} o_{l,n,c,h,w}

    Each output is pooled (:func:`fastadv.ops.average_pool`) as soon as its layer has run and is not kept, so the memory
    is that of the bare forward pass. ``keep_maps`` keeps the outputs instead, for the one launch of
    :func:`fastadv.ops.pooled_centroid_distances`: at batch 1 that saves the cost of L - 1 calls.

    The hooks exist during a call only, whatever it raises, and see only the calls of their own thread. Differentiable,
    and capturable in a CUDA graph. Works on prepared models too; a layer that is neither in ``model.layers`` nor in
    ``keep`` of :func:`fastadv.models.prepare` may have been folded with a neighbour: then a convolution gives the
    output of the batch norm after it, or of the activation, and a batch norm before a convolution gives its own input.

    Attributes:
        model: in evaluation mode.
        layers: names of submodules of the backbone, each run once in a forward pass, with an output ``(N, C, H, W)`` or
            ``(N, C)``; ``"embedding"`` is the unit embedding; None for ``model.layers``.
        keep_maps: keep the outputs, unpooled.
        backend: of the operation.

    Raises:
        TypeError, ValueError: a field is of the wrong type, a layer does not exist, or the model is in training mode.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """

    model: FaceModel
    layers: tuple[str, ...] | None = None
    keep_maps: bool = False
    backend: str | None = None

    def __post_init__(self) -> None:
        check_type("model", self.model, FaceModel)
        if self.layers is None:
            object.__setattr__(self, "layers", self.model.layers)
        if isinstance(self.layers, str):
            raise ArgumentTypeError(f"layers: expected a sequence of names, got the text {self.layers!r}")
        object.__setattr__(self, "layers", tuple(self.names))
        if not self.names:
            raise ArgumentError("layers: expected one name or more, got none")
        if len(set(self.names)) != len(self.names):
            raise ArgumentError(f"layers: expected distinct names, got {self.names}")
        known = {name for name, _ in self.model.backbone.named_modules() if name}
        for name in submodules(self.names):
            if name not in known:
                raise ArgumentError(f"layers: expected submodules of the backbone of {self.model.name!r}, got {name!r}")
        if any(module.training for module in self.model.modules()):
            raise ArgumentError(
                f"model: expected one in evaluation mode, got {self.model.name!r} in training mode; call .eval()"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The layers."""
        assert self.layers is not None
        return self.layers

    def __call__(self, images: Tensor) -> Tapped:
        """Run the model.

        Args:
            images: ``(N, 3, H, W)`` RGB in [0, 1], as the model takes them.

        Raises:
            TypeError, ValueError: the model refuses the images, it is in training mode, or a layer did not run, ran
                more than once, or gave something else than one tensor ``(N, C, H, W)`` or ``(N, C)``.
        """
        if self.model.training:
            raise ArgumentError(
                f"model: expected one in evaluation mode, got {self.model.name!r} in training mode; call .eval()"
            )
        caught: _Caught = {}
        modules = self.model.backbone
        names = submodules(self.names)
        with hooked([(modules.get_submodule(name), self._hook(name, caught)) for name in names]):
            features = self.model.features(images)
        if EMBEDDING in self.names:
            caught[EMBEDDING] = self._kept(EMBEDDING, F.normalize(features, dim=1))
        for name in self.names:
            if name not in caught:
                raise ArgumentError(f"layer {name!r}: expected one run in the forward pass, got none")
            if caught[name].shape[0] != images.shape[0]:
                raise ArgumentError(f"layer {name!r}: expected {images.shape[0]} rows, got {caught[name].shape[0]}")
        return Tapped(layers=self.names, values=tuple(caught[name] for name in self.names), features=features)

    def _hook(self, name: str, caught: _Caught) -> Callable[[nn.Module, Any, Any], None]:
        caller = threading.get_ident()

        def catch(module: nn.Module, inputs: Any, output: Any) -> None:
            if threading.get_ident() != caller:
                return
            if name in caught:
                raise ArgumentError(f"layer {name!r}: expected one run in the forward pass, got more")
            caught[name] = self._kept(name, output)

        return catch

    def _kept(self, name: str, output: object) -> Tensor:
        value = _as_map(name, output)
        return value if self.keep_maps else ops.average_pool([value], backend=self.backend)[0]


def _as_map(name: str, output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise ArgumentTypeError(f"layer {name!r}: expected a tensor as its output, got {type(output).__name__}")
    if output.dtype not in checks.GRAD_TYPES:
        raise ArgumentTypeError(
            f"layer {name!r}: expected an output of float32, bfloat16 or float16, got {output.dtype}"
        )
    if output.dim() == 2:
        return output[:, :, None, None]
    if output.dim() != 4:
        raise ArgumentError(
            f"layer {name!r}: expected an output of shape (N, C, H, W) or (N, C), got {tuple(output.shape)}"
        )
    return output


def of_one_type(values: list[Tensor]) -> list[Tensor]:
    """Maps as an operation takes them: a bfloat16 network has float32 ones too. Those of one type share a launch."""
    places: dict[torch.dtype, list[int]] = {}
    for k, value in enumerate(values):
        places.setdefault(value.dtype, []).append(k)
    if len(places) == 1:
        return values
    made = list(values)
    for chosen in places.values():
        for k, value in zip(chosen, ops.average_pool([values[k] for k in chosen]), strict=True):
            made[k] = value[:, :, None, None]
    return made


def pooled(value: Tensor) -> Tensor:
    """Means ``(N, C, 1, 1)`` float32 of a map."""
    return ops.average_pool([value])[0][:, :, None, None]
