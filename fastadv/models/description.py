"""A network in a small TOML file beside its weights: architecture, colours, normalisation, crop."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tomllib

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, Error
from fastadv.core.fields import is_int, is_number
from fastadv.core.nearest import meant
from fastadv.models.face_model import ORDERS, FaceModel

SUFFIX = ".toml"
_RANGES = (1, 255)


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
        architecture: one of `fastadv.models.names()`.
        weights: the file of its weights; a relative path begins at the description.
        channels: the order of the colours that the network takes: "rgb" or "bgr".
        mean: subtracted from the pixels: one number, or one each for red, green and blue, whatever `channels` is.
        std: the divisors, likewise.
        range: the largest pixel in whose unit `mean` and `std` are: 1 or 255.
        input_size: side of the images in pixels, or height and width.
        template: where the five landmarks of an aligned face lie, as of `FaceModel`; None for ArcFace's.
    """

    architecture: str
    weights: Path | None = None
    channels: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    range: int = 1
    input_size: tuple[int, int] | None = None
    template: tuple[tuple[float, float], ...] | None = None

    def applied(self, model: FaceModel) -> FaceModel:
        """The model with what is described.

        Raises:
            ValueError: the network does not take it.
        """
        given = {name: getattr(self, name) for name in ("channels", "input_size", "template")}
        for name, values in (("mean", self.mean), ("std", self.std)):
            given[name] = None if values is None else [value / self.range for value in values]
        made = model.replace(**{name: value for name, value in given.items() if value is not None}).eval()
        if self.input_size is not None:
            assert made.embedding_size  # runs the network once, which refuses a size that it does not take
        return made


def is_description(name: object) -> bool:
    """Whether a network is named by a file that describes it."""
    return isinstance(name, (str, os.PathLike)) and os.fspath(name).endswith(SUFFIX)


def read_description(path: str | os.PathLike[str]) -> Description:
    """Read a description.

    Args:
        path: a TOML file in UTF-8.

    Raises:
        DescriptionError: it is missing or no TOML, lacks the architecture, or has an unknown key or a wrong value.
    """
    file = Path(path)
    try:
        with open(file, "rb") as opened:
            found = tomllib.load(opened)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DescriptionError(
            f"{file}: expected a description of a network in TOML, got another file: {reason}"
        ) from None
    known = [field.name for field in fields(Description)]
    for key in found:
        if key not in known:
            raise DescriptionError(f"{file}: expected some of {', '.join(known)}, got {key[:40]!r}{meant(key, known)}")
    if "architecture" not in found:
        raise DescriptionError(f"{file}: expected architecture, a name of 'fastadv models', got none")
    try:
        return Description(**{key: _READ[key](key, value, file) for key, value in found.items()})
    except ArgumentError as error:
        raise DescriptionError(f"{file}: {error}") from None


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


def _points(key: str, value: Any, file: Path) -> tuple[Any, ...]:
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
}
