"""InsightFace's verification files (`lfw.bin`, `cfp_fp.bin`, `agedb_30.bin`): a pickle of images and flags."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastadv.data.faces import SourceError
from fastadv.data.images import ImageError
from fastadv.data.packed import PackedFaces
from fastadv.data.pairs import Pair
from fastadv.data.symbolic_pickle import PickleRefusedError, Span, read_symbolically

FOLDS = 10


class PairBin(PackedFaces):
    """The faces and pairs of a `.bin` file: a pickle of `(images, flags)`, read without running it.

    `images` are encoded files (JPEG or PNG), two per pair; `flags` say whether a pair shows one person. Pair 12 is
    named "pair/000012_a" and "pair/000012_b"; who the people are is not in the file, so every identity is "pair".
    The images are aligned already and stay in the file until they are loaded.

    Attributes:
        file: The file.
        pairs: All pairs, in the file's order, in ten folds: contiguous tenths, the first ones longer by one where the
            number does not divide (the folds of InsightFace's evaluation: an unshuffled ten-fold split).
    """

    def __init__(self, file: str | os.PathLike[str], *, size: int | None = 112) -> None:
        """Reads the places of the images and the flags; no image is decoded yet.

        Args:
            file: The `.bin` file.
            size: Side of the images that are given, in pixels; None for what is in the file.

        Raises:
            SourceError: The file is missing, cut short, no such pickle, or a pickle that wants to run code, which is
                named; or the number of images is not twice that of the flags.
        """
        self.file = Path(file)
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
            with open(self.file, "rb") as file:
                return self._spans[name].read(file)
        except (OSError, PickleRefusedError) as error:
            raise ImageError(f"{self.path(name)}: cannot be read: {error}") from error


def contiguous_folds(count: int, folds: int = FOLDS) -> list[int]:
    """The fold of each of `count` pairs in an unshuffled split: the first `count % folds` folds are longer by one."""
    size, longer = divmod(count, folds)
    return [fold for fold in range(folds) for _ in range(size + (fold < longer))]


def _read(path: Path) -> tuple[Sequence[Span], list[bool]]:
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file" if not path.exists() else f"{path}: this is not a file")
    try:
        value = read_symbolically(path)
    except PickleRefusedError as error:
        raise SourceError(f"{path}: refused as a .bin of pairs: {error}") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, (list, tuple)) for v in value)):
        raise SourceError(f"{path}: expected a pickle of (list of images, list of flags), got {_kind(value)}")
    images, flags = value
    wrong = next((i for i, image in enumerate(images) if not isinstance(image, Span)), None)
    if wrong is not None:
        raise SourceError(f"{path}: image {wrong}: expected the bytes of an image file, got {_kind(images[wrong])}")
    wrong = next((i for i, f in enumerate(flags) if not (isinstance(f, (bool, int)) and f in (0, 1))), None)
    if wrong is not None:
        raise SourceError(f"{path}: flag {wrong}: expected true or false, got {_kind(flags[wrong])}")
    if not flags or len(images) != 2 * len(flags):
        raise SourceError(f"{path}: expected two images for each flag, got {len(images)} images, {len(flags)} flags")
    return images, [bool(flag) for flag in flags]


def _kind(value: Any) -> str:
    if isinstance(value, (bool, int)) or value is None:
        return str(value)[:40]
    if isinstance(value, Span):
        return "text" if value.utf8 else "bytes"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, (list, tuple)) else "something else"
