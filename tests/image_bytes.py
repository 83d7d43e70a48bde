"""Pictures as the bytes of a file."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encoded(image: np.ndarray | Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The file of an image."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def drawn(seed: int = 0, side: int = 16, format: str = "PNG", **options: object) -> bytes:
    """The file of a square of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encoded(pixels, format, **options)
