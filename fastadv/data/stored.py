"""How a data set's images are stored: one format for all, in the mode of each source."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_one_of
from fastadv.data.images import encode_grey_png, encode_png

FORMATS = ("png", "jpeg")
QUALITY = 95
_GREY_MODES = frozenset({"1", "L", "LA"})


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """A format of image files.

    Attributes:
        name: ``"png"``, which keeps every pixel, or ``"jpeg"``, which does not.
        quality: Of a JPEG file, 1 to 100.

    Raises:
        ValueError: A field is out of range.
    """

    name: str = "png"
    quality: int = QUALITY

    def __post_init__(self) -> None:
        check_one_of("format", self.name, FORMATS)
        if not isinstance(self.quality, int) or not 1 <= self.quality <= 100:
            raise ArgumentError(f"quality: expected a whole number from 1 to 100, got {self.quality!r}")

    @property
    def suffix(self) -> str:
        """Of the files' names."""
        return ".png" if self.name == "png" else ".jpg"

    def encode(self, image: NDArray[np.uint8], *, grey: bool) -> bytes:
        """The file of an image; the same pixels give the same bytes.

        Args:
            image: ``(H, W, 3)`` uint8.
            grey: Store one channel, the first: the three must be equal.
        """
        if self.name == "png":
            return encode_grey_png(image[..., 0]) if grey else encode_png(image)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image[..., 0]) if grey else image).save(
            buffer, "JPEG", quality=self.quality
        )
        return buffer.getvalue()


def is_grey(image: NDArray[np.uint8]) -> bool:
    """Whether the three channels of an image ``(H, W, 3)`` are equal at every pixel."""
    return bool((image[..., :1] == image).all())


def stored_grey(data: bytes) -> bool:
    """Whether the file of an image, one that ``decode_image`` has read, holds grey values rather than colours."""
    with Image.open(io.BytesIO(data)) as image:
        return image.mode in _GREY_MODES and "transparency" not in image.info
