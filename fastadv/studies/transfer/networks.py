"""The networks of a study of transfer: their names, and one size of the crops for all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastadv.core.content import is_onnx
from fastadv.core.errors import ArgumentError
from fastadv.core.nearest import meant
from fastadv.data.alignment import template
from fastadv.models import FaceModel, names
from fastadv.models.description import is_description
from fastadv.models.resized import resized
from fastadv.runs.inputs import network_name, open_named_model

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a part of names of images, and of "A+B"
_NEAR = 1e-3  # of the longer side of a crop: a tenth of a pixel of 112


@dataclass(frozen=True, kw_only=True)
class NamedNetwork:
    """A network as a user names it.

    Attributes:
        name: What the study calls it.
        model: The architecture, or a file.
        weights: Its weights, or None.
    """

    name: str
    model: str
    weights: str | None = None

    @property
    def text(self) -> str:
        """``MODEL`` or ``MODEL=WEIGHTS``."""
        return self.model if self.weights is None else f"{self.model}={self.weights}"


def parse_network(text: str) -> NamedNetwork:
    """A network from ``NAME``, ``NAME=WEIGHTS``, ``FILE.onnx`` or ``FILE.toml``, or with a name of the user's own from
    ``ALIAS=NAME:WEIGHTS``, ``ALIAS=NAME`` or ``ALIAS=FILE``, so that one architecture may come twice.

    What stands before "=" is an alias where it is neither an architecture nor a file.

    Raises:
        ValueError: There is nothing behind "=", the architecture is not known, or the alias holds other characters than
            letters, digits, ".", "_" and "-".
    """
    first, equals, rest = text.partition("=")
    if equals and not rest:
        raise ArgumentError(f"network: expected NAME=WEIGHTS or ALIAS=NAME:WEIGHTS, got {text!r} without a file")
    if not equals or _is_known(first):
        return NamedNetwork(name=network_name(text), model=first, weights=rest or None)
    model, colon, weights = (rest, "", "") if _is_known(rest) else rest.partition(":")
    if not _is_known(model) or (colon and not weights):
        raise ArgumentError(
            "network: expected NAME, NAME=WEIGHTS or ALIAS=NAME:WEIGHTS with a NAME of 'fastadv models', or a .onnx "
            f"or .toml file, got {text!r}{meant(model if colon else first, names())}"
        )
    if not _ALIAS.fullmatch(first):
        raise ArgumentError(f"network: expected an alias of letters, digits, '.', '_' and '-', got {first!r}")
    return NamedNetwork(name=first, model=model, weights=weights or None)


def _is_known(name: str) -> bool:
    return name in names() or is_description(name) or is_onnx(name)


def open_networks(texts: Sequence[str], *, size: int | None = None, device: str = "cpu") -> Mapping[str, FaceModel]:
    """The networks of a study by their names, for crops of one size.

    Args:
        texts: Two or more, as ``parse_network`` takes them.
        size: Side of the crops in pixels; None: as ``on_one_crop``.
        device: Where to compute.

    Raises:
        ValueError: A name is given twice, or one network alone; as ``parse_network``, ``on_one_crop`` and opening them.
        CheckpointError: Weights do not fit.
    """
    asked = [parse_network(text) for text in texts]
    known = [each.name for each in asked]
    twice = next((name for name in known if known.count(name) > 1), None)
    if twice is not None:
        raise ArgumentError(
            f"network: expected each one once, got {twice!r} twice; give one of them a name, ALIAS=NAME:WEIGHTS"
        )
    if len(asked) < 2:
        raise ArgumentError(f"network: expected two or more, got {', '.join(known) or 'none'}")
    return on_one_crop({each.name: open_named_model(each.text, device=device) for each in asked}, size)


def on_one_crop(models: Mapping[str, FaceModel], size: int | None = None) -> Mapping[str, FaceModel]:
    """The networks on crops of one size: those of another size resize them, differentiably (``models.resized``).

    Without a size, networks of one size are left as they are. For others the crops have the first one's, made square by
    its longer side, since a network of 112×96 sees the middle of what one of 112×112 does.

    Args:
        models: By name.
        size: Side of square crops in pixels, or None.

    Raises:
        ValueError: Their templates place a face at different parts of the crop; or the size is no positive number.
    """
    if size is not None and size < 1:
        raise ArgumentError(f"size: expected a positive number of pixels, got {size}")
    start, first = next(iter(models.items()))
    for name, model in models.items():
        if np.abs(_places(model) - _places(first)).max() > _NEAR:
            raise ArgumentError(f"network: expected all of one template, got {start} and {name} with another")
    if size is None and all(model.input_size == first.input_size for model in models.values()):
        return models
    side = size or max(first.input_size)
    return {name: resized(model, (side, side)) for name, model in models.items()}


def _places(model: FaceModel) -> NDArray[np.float64]:
    """Where the five points of a face lie from the centre of a crop, in its longer sides."""
    height, width = model.input_size
    points = template(model.input_size) if model.template is None else np.array(model.template)
    return np.asarray((points - (width / 2, height / 2)) / max(height, width))
