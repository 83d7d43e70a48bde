"""What a model says of images, by name: the unit embedding, the logits, or the output of a layer."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.models.face_model import FaceModel
from fastadv.models.hooks import hooked

_LAYER = "layer:"


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass at the layer that was asked for."""


def at_layer(name: str) -> str:
    """The kind of output that is the value of a submodule of the backbone."""
    return _LAYER + name


def layers_of(kind: str) -> tuple[str, ...]:
    """The names of the submodules that a kind of output is read from: one or none."""
    return (kind.removeprefix(_LAYER),) if kind.startswith(_LAYER) else ()


def output_of(model: FaceModel, kind: str, images: Tensor) -> Tensor:
    """One row of numbers an image.

    Args:
        model: In evaluation mode.
        kind: ``"embedding"``, ``"logits"``, or ``at_layer(name)``: the layer's output as a vector, channel by channel
            in row order, whatever the memory layout; what comes after the layer is not computed.
        images: ``(N, 3, H, W)`` in [0, 1].

    Returns:
        ``(N, D)`` float32: unit embeddings, logits, or features.

    Raises:
        ValueError: The model has no head, no such layer, or the layer did not run or gave something else than one
            tensor with a row an image.
    """
    if kind == "embedding":
        return model(images)
    if kind == "logits":
        return model.logits(images)
    if not kind.startswith(_LAYER):
        raise ArgumentError(f"kind: expected 'embedding', 'logits' or at_layer(name), got {brief(kind)}")
    return _layer(model, kind.removeprefix(_LAYER), images)


def _layer(model: FaceModel, name: str, images: Tensor) -> Tensor:
    modules = dict(model.backbone.named_modules())
    if not name or name not in modules:
        raise ArgumentError(f"layer: expected a submodule of the backbone of {model.name!r}, got {name!r}")
    caught: list[Any] = []
    caller = threading.get_ident()

    def catch(module: nn.Module, inputs: Any, output: Any) -> None:
        if threading.get_ident() != caller:
            return
        caught.append(output)
        raise _Reached

    with suppress(_Reached), hooked([(modules[name], catch)]):
        model.features(images)
    if not caught:
        raise ArgumentError(
            f"layer: expected one that runs in the forward pass of {model.name!r}, got {name!r}, which does not"
        )
    value = caught[0]
    if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != len(images):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(f"layer: expected a tensor (N, ...) from {name!r} of {model.name!r}, got {got}")
    return value.flatten(1).to(torch.promote_types(value.dtype, torch.float32))
