"""InsightFace's verification files (`lfw.bin`, `cfp_fp.bin`, `agedb_30.bin`): a pickle of images and flags."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fastadv.core.content import file_content
from fastadv.core.errors import RemoteError
from fastadv.core.pickle_values import Array, PickleRefusedError, Span
from fastadv.core.places import is_file, open_binary
from fastadv.core.remote import to_path
from fastadv.core.symbolic_pickle import read_symbolically
from fastadv.data.alignment import Size
from fastadv.data.faces import SourceError
from fastadv.data.images import ImageError
from fastadv.data.packed import PackedFaces
from fastadv.data.pairs import Pair

FOLDS = 10
_EXPECTED = "an InsightFace .bin of pairs (a pickle of images and flags)"
# what the reader itself looks at, and refuses by what is in it
_READ = frozenset({"bin", "pickle", "pickle with code", "damaged pickle", "unknown", "unreadable", "text"})


class PairBin(PackedFaces):
    """The faces and pairs of a `.bin` file: a pickle of `(images, flags)`, read without running it.

    `images` are encoded files (JPEG or PNG) as bytes, bytearrays or NumPy arrays of bytes, two per pair; `flags` say
    whether a pair shows one person, as booleans, integers or one array. Pair 12 is
    named "pair/000012_a" and "pair/000012_b"; who the people are is not in the file, so every identity is "pair".
    The images are aligned already and stay in the file until they are loaded.

    Attributes:
        file: The file.
        pairs: All pairs, in the file's order, in ten folds: contiguous tenths, the first ones longer by one where the
            number does not divide (the folds of InsightFace's evaluation: an unshuffled ten-fold split).
    """

    def __init__(self, file: str | os.PathLike[str], *, size: Size | None = 112) -> None:
        """Reads the places of the images and the flags; no image is decoded yet.

        Args:
            file: The `.bin` file.
            size: Side of the images that are given, or their height and width, in pixels; None for what is in the
                file.

        Raises:
            SourceError: The file is missing, cut short, no such pickle, or a pickle that wants to run code, which is
                named; or the number of images is not twice that of the flags.
        """
        self.file = to_path(file)
        spans, flags = _read(self.file)
        names = [f"pair/{i:06d}_{side}" for i in range(len(flags)) for side in "ab"]
        self._spans = dict(zip(names, spans, strict=True))
        self.pairs = tuple(
            Pair(first=names[2 * i], second=names[2 * i + 1], same=flag, fold=fold)
            for i, (flag, fold) in enumerate(zip(flags, contiguous_folds(len(flags)), strict=True))
        )
        super().__init__(((name, self.file) for name in names), self._bytes, size=size, landmarks=None)

    def _bytes(self, name: str) -> bytes:
        try:
            with open_binary(self.file, block=0) as file:
                return self._spans[name].read(file)
        except RemoteError:
            raise
        except (OSError, PickleRefusedError) as error:
            raise ImageError(f"{self.path(name)}: cannot be read: {error}") from error


def contiguous_folds(count: int, folds: int = FOLDS) -> list[int]:
    """The fold of each of `count` pairs in an unshuffled split: the first `count % folds` folds are longer by one."""
    size, longer = divmod(count, folds)
    return [fold for fold in range(folds) for _ in range(size + (fold < longer))]


def _read(path: Path) -> tuple[list[Span], list[bool]]:
    if not is_file(path):
        raise SourceError(f"{path}: there is no such file" if not path.exists() else f"{path}: this is not a file")
    found = file_content(path)
    if found.kind not in _READ:
        raise SourceError(f"{path}: expected {_EXPECTED}, got {found.said()}")
    try:
        value = read_symbolically(path)
        with open_binary(path) as file:
            return _checked(path, value, file)
    except PickleRefusedError as error:
        if found.kind in ("unknown", "text"):
            raise SourceError(f"{path}: expected {_EXPECTED}, got {found.said()}") from None
        mend = "; download it again" if str(error).startswith("cut short") else ""
        raise SourceError(f"{path}: refused as a .bin of pairs: {error}{mend}") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error


def _checked(path: Path, value: Any, file: BinaryIO) -> tuple[list[Span], list[bool]]:
    parts = [_items(v) for v in value] if isinstance(value, (tuple, list)) and len(value) == 2 else []
    if len(parts) != 2 or parts[0] is None or (parts[1] is None and not isinstance(value[1], Array)):
        raise SourceError(f"{path}: expected a pickle of (list of images, list of flags), got {_kind(value)}")
    images = [_encoded(path, number, image) for number, image in enumerate(parts[0])]
    count = len(parts[1]) if parts[1] is not None else math.prod(value[1].shape)
    if (parts[1] is not None or value[1].flat) and (not count or len(images) != 2 * count):
        raise SourceError(f"{path}: expected two images for each flag, got {len(images)} images, {count} flags")
    flags = _numbers(value[1], file) if parts[1] is None else [_number(flag, file) for flag in parts[1]]
    wrong = next((i for i, f in enumerate(flags) if not (isinstance(f, (bool, int, float)) and f in (0, 1))), None)
    if wrong is not None:
        raise SourceError(f"{path}: flag {wrong}: expected true or false, got {_kind(flags[wrong])}")
    return images, [bool(flag) for flag in flags]


def _items(value: Any) -> Sequence[Any] | None:
    """The items of a list, or of a row or column of objects."""
    if isinstance(value, Array) and value.flat and isinstance(value.data, list):
        return value.data
    return value if isinstance(value, (list, tuple)) else None


def _encoded(path: Path, number: int, image: Any) -> Span:
    """The bytes of an image file: as such, or as a row or column of bytes (what `cv2.imencode` gives)."""
    if isinstance(image, Array) and image.dtype is not None and image.dtype.code in ("u1", "i1"):
        if not image.flat:
            raise SourceError(
                f"{path}: image {number}: expected the bytes of an image file, got pixels, {_kind(image)}; encode each "
                "image as PNG or JPEG first"
            )
        image = image.data
    if not isinstance(image, Span) or image.text:
        raise SourceError(f"{path}: image {number}: expected the bytes of an image file, got {_kind(image)}")
    return image


def _numbers(value: Array, file: BinaryIO) -> list[Any]:
    """The numbers of a row or column of flags."""
    if not value.flat or value.dtype is None or not isinstance(value.data, Span):
        raise PickleRefusedError(f"its flags are {_kind(value)}; expected one row")
    return value.dtype.values(value.data.read(file)).tolist()


def _number(flag: Any, file: BinaryIO) -> Any:
    """A flag that may be an array of one number."""
    if isinstance(flag, Array) and math.prod(flag.shape) == 1 and isinstance(flag.data, Span):
        return _numbers(flag, file)[0]
    return flag


def _kind(value: Any) -> str:
    if isinstance(value, (bool, int, float)) or value is None:
        return str(value)[:40]
    if isinstance(value, Span):
        return "text" if value.text else "bytes"
    if isinstance(value, Array):
        return f"an array of shape {value.shape}"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, (list, tuple)) else "something else"
