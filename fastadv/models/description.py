"""A network in a small TOML file beside its weights: architecture, colours, normalisation, crop."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tomllib

from fastadv.core.brief import brief
from fastadv.core.content import is_onnx
from fastadv.core.errors import ArgumentError, Error
from fastadv.core.fields import is_int, is_number
from fastadv.core.nearest import meant
from fastadv.core.templates import TEMPLATES, Five
from fastadv.models.face_model import ORDERS, FaceModel
from fastadv.models.mirrored import mirrored

SUFFIX = ".toml"
_RANGES = (1, 255)
_MOST_BYTES = 1 << 14


class DescriptionError(Error, ValueError):
    """A description of a network that cannot be read; the message names the file and the key."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a file says of a network; what it does not say is as the architecture's publication has it.

    A file has the attributes as its keys::

        architecture = "iresnet100"
        weights = "backbone.pth"
        channels = "bgr"
        mean = 127.5
        std = 127.5
        range = 255

    Attributes:
        architecture: one of `fastadv.models.names()`; None for an ONNX file, which is a whole network.
        weights: the file of its weights, or the ONNX file; a relative path begins at the description.
        channels: the order of the colours that the network takes: "rgb" or "bgr".
        mean: subtracted from the pixels: one number, or one each for red, green and blue, whatever `channels` is.
        std: the divisors, likewise.
        range: the largest pixel in whose unit `mean` and `std` are: 1 or 255.
        input_size: side of the images in pixels, or height and width.
        template: where the five landmarks of an aligned face lie, as of `FaceModel`, or a name of
            `fastadv.data.TEMPLATES`, which is brought to the images' size; None for ArcFace's.
        mirror: whether the embeddings of the image and of its mirror image are joined, as of `mirrored`.
    """

    architecture: str | None = None
    weights: Path | None = None
    channels: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    range: int = 1
    input_size: tuple[int, int] | None = None
    template: Five | str | None = None
    mirror: bool = False

    def applied(self, model: FaceModel) -> FaceModel:
        """The model with what is described.

        Raises:
            ValueError: the network does not take it.
        """
        template = self.points(self.input_size or model.input_size)
        given: dict[str, Any] = {"channels": self.channels, "input_size": self.input_size, "template": template}
        given |= self.normalisation
        made = model.replace(**{name: value for name, value in given.items() if value is not None}).eval()
        if self.input_size is not None:
            assert made.embedding_size  # runs the network once, which refuses a size that it does not take
        return mirrored(made) if self.mirror else made

    @property
    def normalisation(self) -> dict[str, list[float] | None]:
        """``mean`` and ``std`` in the unit of pixels in [0, 1]."""
        both = {"mean": self.mean, "std": self.std}
        return {name: None if v is None else [value / self.range for value in v] for name, v in both.items()}

    def points(self, size: tuple[int, int]) -> Five | None:
        """The template in images of a height and width.

        Raises:
            ValueError: a named one is of another shape.
        """
        if not isinstance(self.template, str):
            return self.template
        named = TEMPLATES[self.template]
        (height, width), scale = named.size, size[0] / named.size[0]
        if height * size[1] != width * size[0]:
            raise ArgumentError(
                f"template: expected one of the shape of the input, {size[0]} x {size[1]}, got {self.template}, "
                f"{height} x {width}"
            )
        return tuple((x * scale, y * scale) for x, y in named.points)


def is_description(name: object) -> bool:
    """Whether a network is named by a file that describes it."""
    return isinstance(name, (str, os.PathLike)) and os.fspath(name).endswith(SUFFIX)


def read_description(path: str | os.PathLike[str]) -> Description:
    """Read a description.

    Args:
        path: a TOML file in UTF-8.

    Raises:
        DescriptionError: it is missing or no TOML, lacks the architecture, has one with an ONNX file, or has an unknown
            key or a wrong value.
    """
    file = Path(path)
    try:
        with open(file, "rb") as opened:
            data = opened.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:  # a key of many dots takes the square of their number
            raise ArgumentError(f"file: expected at most {_MOST_BYTES:,} bytes, got more")
        found = tomllib.loads(data.decode())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DescriptionError(
            f"{file}: expected a description of a network in TOML, got another file: {reason}"
        ) from None
    known = [field.name for field in fields(Description)]
    for key in found:
        if key not in known:
            raise DescriptionError(f"{file}: expected some of {', '.join(known)}, got {key[:40]!r}{meant(key, known)}")
    try:
        made = Description(**{key: _READ[key](key, value, file) for key, value in found.items()})
    except ArgumentError as error:
        raise DescriptionError(f"{file}: {error}") from None
    whole = made.weights is not None and is_onnx(made.weights)
    if made.architecture is None and not whole:
        raise DescriptionError(
            f"{file}: expected architecture, a name of 'fastadv models', or weights, an ONNX file, got neither"
        )
    if made.architecture is not None and whole:
        raise DescriptionError(
            f"{file}: expected no architecture with the ONNX file {made.weights}, a whole network, got "
            f"{made.architecture}"
        )
    return made


def _text(key: str, value: Any, file: Path) -> str:
    if not isinstance(value, str) or not value:
        raise ArgumentError(f"{key}: expected a text, got {brief(value)}")
    return value


def _path(key: str, value: Any, file: Path) -> Path:
    return file.parent / _text(key, value, file)


def _one_of(key: str, value: Any, file: Path) -> Any:
    choices: tuple[Any, ...] = ORDERS if key == "channels" else _RANGES
    if isinstance(value, bool) or value not in choices:
        raise ArgumentError(f"{key}: expected one of {', '.join(map(str, choices))}, got {brief(value)}")
    return value


def _flag(key: str, value: Any, file: Path) -> bool:
    if not isinstance(value, bool):
        raise ArgumentError(f"{key}: expected true or false, got {brief(value)}")
    return value


def _three(key: str, value: Any, file: Path) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(map(is_number, values)):
        raise ArgumentError(f"{key}: expected a number, or one each for red, green and blue, got {brief(value)}")
    return tuple(map(float, values))


def _size(key: str, value: Any, file: Path) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value] * 2
    if len(values) != 2 or not all(is_int(each) and each > 0 for each in values):
        raise ArgumentError(f"{key}: expected a side in pixels, or [height, width], got {brief(value)}")
    return tuple(values)


def _points(key: str, value: Any, file: Path) -> tuple[Any, ...] | str:
    if isinstance(value, str):
        if value not in TEMPLATES:
            raise ArgumentError(
                f"{key}: expected one of {', '.join(TEMPLATES)}, or five points, got {value!r}{meant(value, TEMPLATES)}"
            )
        return value
    pairs = value if isinstance(value, list) else []
    if len(pairs) != 5 or not all(isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in pairs):
        raise ArgumentError(f"{key}: expected five points [x, y] in pixels of the input, got {brief(value)}")
    return tuple(map(tuple, pairs))


_READ = {
    "architecture": _text,
    "weights": _path,
    "channels": _one_of,
    "mean": _three,
    "std": _three,
    "range": _one_of,
    "input_size": _size,
    "template": _points,
    "mirror": _flag,
}
