"""Files of representatives and detectors: safetensors with a checked description, read without running code."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fastadv.core.content import file_content
from fastadv.core.errors import ArgumentError, Error
from fastadv.core.fields import is_number
from fastadv.core.files import write_atomically
from fastadv.core.provenance import versions

_FORMAT = "fastadv.detection"
_VERSION = 1
_COUNT = 1 << 20  # of anything that a description may count


class DetectionFileError(Error, ValueError):
    """A file of representatives or of a detector is missing, broken, of another kind, or holds impossible values."""


def write(path: str | os.PathLike[str], *, kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and what they are, as a file that is whole or absent, and on the disk.

    Args:
        path: the file; its folder must exist.
        kind: what the file holds; :func:`read` insists on it.
        tensors: by name; on any device.
        about: JSON values that describe them.

    Raises:
        OSError: with the file's name.
        ValueError: a number in ``about`` is NaN or infinite.
    """
    text = json.dumps(dict(about), sort_keys=True, allow_nan=False)
    made = json.dumps(versions(), sort_keys=True)
    metadata = {"format": _FORMAT, "version": str(_VERSION), "kind": kind, "about": text, "made_with": made}
    data = save({name: _owned(value) for name, value in tensors.items()}, metadata)
    write_atomically(path, _with_sorted_metadata(data), fsync=True)


def _with_sorted_metadata(data: bytes) -> bytes:
    """A safetensors file with its metadata in the order of their names: the library writes them in any order."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def read(path: str | os.PathLike[str], *, kind: str) -> TensorFile:
    """Read a file of :func:`write`.

    Raises:
        DetectionFileError: it is missing, damaged, of another kind or of a newer version.
    """
    file = Path(path)
    if not file.is_file():
        what = "a directory" if file.is_dir() else "no such file"
        raise DetectionFileError(f"{file}: expected a safetensors file of the kind {kind!r}, got {what}")
    found = file_content(file)
    if found.kind not in ("detector", "safetensors"):
        raise DetectionFileError(f"{file}: expected a whole safetensors file of the kind {kind!r}, got {found.said()}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            _check_metadata(file, metadata, kind)
            names: list[str] = list(opened.keys())
            # copies: the tensors of a file may begin at any byte, and change with it
            tensors = {name: opened.get_tensor(name).clone() for name in names}
    except (DetectionFileError, MemoryError):
        raise
    except Exception as error:  # a damaged header makes safetensors and torch raise anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DetectionFileError(
            f"{file}: expected a whole safetensors file, got a truncated or damaged one: {first}"
        ) from error
    try:
        about = json.loads(metadata["about"], parse_constant=_no_constant)
    except (KeyError, ValueError, RecursionError) as error:
        raise DetectionFileError(
            f"{file}: expected a description of its tensors, got one that cannot be read: {error}"
        ) from error
    if not isinstance(about, dict):
        raise DetectionFileError(f"{file}: expected a description that is an object, got {type(about).__name__}")
    return TensorFile(path=file, about=about, tensors=tensors)


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorFile:
    """What a file held; every getter raises :class:`DetectionFileError` with the file's name and the field's.

    Attributes:
        path: the file.
        about: the description.
        tensors: by name, on the CPU.
    """

    path: Path
    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def text(self, name: str, *, known: tuple[str, ...] | None = None) -> str:
        """A text, one of ``known`` if they are given."""
        value = self.about.get(name)
        if not isinstance(value, str) or (known is not None and value not in known):
            raise self.wrong(name, value, "a text" if known is None else f"one of {', '.join(known)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Texts."""
        value = self.about.get(name)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.wrong(name, value, "a list of texts")
        return tuple(value)

    def pairs(self, name: str) -> dict[str, str]:
        """Texts by name."""
        value = self.about.get(name)
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise self.wrong(name, value, "texts by name")
        return dict(value)

    def integer(self, name: str) -> int:
        """A number from 1 to 2**20."""
        value = self.about.get(name)
        if type(value) is not int or not 1 <= value <= _COUNT:
            raise self.wrong(name, value, f"an integer from 1 to {_COUNT}")
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.about.get(name)
        if not is_number(value):
            raise self.wrong(name, value, "a finite number")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """Finite numbers."""
        value = self.about.get(name)
        if not isinstance(value, list) or not all(map(is_number, value)):
            raise self.wrong(name, value, "a list of finite numbers")
        return tuple(float(v) for v in value)

    def tensor(self, name: str, shape: tuple[int | None, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of finite values with the dtype and the sizes that are not None (those are 1 at least)."""
        value = self.tensors.get(name)
        if value is None:
            raise DetectionFileError(f"{self.path}: expected the tensor {name!r}, got a file without it")
        fits = value.dim() == len(shape) and all(
            (got > 0 if want is None else got == want) for want, got in zip(shape, value.shape, strict=True)
        )
        if value.dtype != dtype or not fits:
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise DetectionFileError(
                f"{self.path}: {name!r}: expected {dtype} ({expected}), got {value.dtype} {tuple(value.shape)}"
            )
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DetectionFileError(f"{self.path}: {name!r}: expected finite values, got NaN or infinity")
        return value

    def only(self, names: set[str]) -> None:
        """Insist on these tensors and no others."""
        others = sorted(set(self.tensors) - names)
        if others:
            raise DetectionFileError(
                f"{self.path}: expected no further tensors, got {len(others)} that do not belong, first {others[0]!r}"
            )

    def wrong(self, name: str, value: object, expected: str) -> DetectionFileError:
        """The error for a field."""
        return DetectionFileError(f"{self.path}: {name}: expected {expected}, got {_short(value)}")


def _check_metadata(file: Path, metadata: Mapping[str, str], kind: str) -> None:
    if metadata.get("format") != _FORMAT or metadata.get("kind") != kind:
        found = metadata.get("kind") if metadata.get("format") == _FORMAT else metadata.get("format")
        raise DetectionFileError(f"{file}: expected {kind!r} of {_FORMAT}, got {_short(found or 'bare tensors')}")
    if metadata.get("version") != str(_VERSION):
        raise DetectionFileError(f"{file}: expected version {_VERSION}, got {_short(metadata.get('version'))}")


def _no_constant(text: str) -> None:
    raise ArgumentError(f"description: expected numbers of JSON, got {text}")


def _short(value: object) -> str:
    text = (
        reprlib.repr(value) if isinstance(value, (list, dict)) else repr(value)
    )  # lists may be nested too deep for repr
    return text if len(text) <= 60 else f"{text[:60]}..."


def _owned(value: Tensor) -> Tensor:
    """On the CPU, in row order, and alone in its memory: what safetensors can write."""
    made = value.detach().cpu().contiguous()
    return made if made.untyped_storage().nbytes() == made.nbytes else made.clone()
