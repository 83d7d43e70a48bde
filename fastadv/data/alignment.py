"""Five landmarks to an aligned crop.

Coordinates are continuous pixel-edge coordinates everywhere: pixel i covers [i, i + 1) and its centre is
i + 0.5. Scaling an image scales them without an offset. A pixel-centre library (OpenCV) counts half less.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fastadv.core.errors import ArgumentError, Error
from fastadv.core.templates import TEMPLATES, Template

Points = NDArray[np.float64]
Matrix = NDArray[np.float64]
Pixels = TypeVar("Pixels", NDArray[np.uint8], NDArray[np.float32])
#: Of a crop: its side, or its height and width, in pixels.
Size = int | tuple[int, int]

NAMES = "left eye, right eye, nose, left and right mouth corner; the viewer's left first"


class AlignmentError(Error, ValueError):
    """Landmarks that cannot be read or that do not determine an alignment."""


def shape_of(size: Size) -> tuple[int, int]:
    """Height and width of a crop.

    Raises:
        ValueError: `size` is neither a positive integer nor two.
    """
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2 or any(not isinstance(n, (int, np.integer)) or isinstance(n, bool) or n < 1 for n in sides):
        raise ArgumentError(f"size: expected a positive number of pixels, or a height and a width, got {size!r}")
    return int(sides[0]), int(sides[1])


def template(size: Size = 112) -> Points:
    """The five points of an aligned face in a crop, (5, 2) as (x, y), in pixels.

    The points of Deng et al. 2019 (ArcFace) for 112x112. For another side, 160 for example, they are
    multiplied by side / 112: the crop shows the same part of the face at another resolution. A crop that is not square
    is the middle of the square of its longer side: 112 high and 96 wide, as SphereFace and CosFace take them, it has
    the points less 8 pixels in x.

    Raises:
        ValueError: `size` is neither a positive integer nor two.
    """
    height, width = shape_of(size)
    side = max(height, width)
    return TEMPLATES["arcface"].array * (side / 112) - ((side - width) / 2, (side - height) / 2)


def similarity(source: ArrayLike, target: ArrayLike) -> Matrix:
    """The similarity (rotation, uniform scale, shift; no reflection) that maps `source` nearest to `target`.

    Minimises `sum_i |M (source_i, 1) - target_i|^2`. In the plane a similarity is `w = a z + b` on complex
    numbers, so that with centred points `a = sum(conj(z) w) / sum(|z|^2)`: the closed form of Umeyama
    1991 with the reflection left out.

    Args:
        source: (K, 2) points, K >= 2.
        target: (K, 2) points.

    Returns:
        (2, 3) float64, from source to target coordinates.

    Raises:
        AlignmentError: Non-finite or coinciding points, or no similarity without reflection.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.ndim != 2 or source.shape[1] != 2 or source.shape[0] < 2 or source.shape != target.shape:
        raise AlignmentError(f"landmarks: expected two (K, 2) arrays, got {source.shape} and {target.shape}")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise AlignmentError("landmarks: expected finite coordinates, got NaN or infinity")
    z, w = source @ (1, 1j), target @ (1, 1j)
    z_mean, w_mean = z.mean(), w.mean()
    z, w = z - z_mean, w - w_mean
    spread = float(np.vdot(z, z).real)
    # Relative to the coordinates: what is left of equal points after rounding is no direction.
    if spread <= 1e-12 * (1 + abs(z_mean)) ** 2:
        raise AlignmentError("landmarks: expected different places, got points that coincide")
    a = np.vdot(z, w) / spread
    if abs(a) ** 2 * spread <= 1e-9 * float(np.vdot(w, w).real):
        raise AlignmentError(
            "landmarks: expected points that a rotation and a scale can fit, got others; they may be "
            "mirrored or in another order"
        )
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def inverse(matrix: ArrayLike) -> Matrix:
    """The (2, 3) matrix of the inverse of an affine map, float64.

    Raises:
        AlignmentError: Another shape, or a map without an inverse.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape != (2, 3) or not np.isfinite(matrix).all():
        raise AlignmentError(f"matrix: expected finite numbers (2, 3), got {matrix.tolist()}")
    (a, b, c), (d, e, f) = matrix
    determinant = a * e - b * d
    if abs(determinant) <= 1e-12 * np.abs(matrix[:, :2]).max() ** 2:
        raise AlignmentError(f"matrix: expected one with an inverse, got {matrix.tolist()}")
    linear = np.array([[e, -b], [-d, a]]) / determinant
    return np.concatenate([linear, -linear @ [[c], [f]]], axis=1)


def warp(image: Pixels, matrix: ArrayLike, size: tuple[int, int]) -> Pixels:
    """Moves an image by an affine map, bilinear.

    The value at output pixel centre p is read at `inverse(matrix)(p)`. A sample inside the image uses the
    border pixel beyond its centre; one outside is 0. Not a low-pass filter: strong reduction aliases.

    Args:
        image: (H, W, C), uint8 (the result is rounded, not cut off) or float32.
        matrix: (2, 3), from coordinates of `image` to coordinates of the output.
        size: Height and width of the output.

    Returns:
        (height, width, C) of the input's type.

    Raises:
        ValueError: Another shape or type.
        AlignmentError: A matrix without an inverse.
    """
    if image.ndim != 3 or 0 in image.shape or image.dtype not in (np.uint8, np.float32):
        raise ArgumentError(f"image: expected (H, W, C) uint8 or float32, got {image.shape} {image.dtype}")
    height, width = size
    if height < 1 or width < 1:
        raise ArgumentError(f"size: expected a positive height and width, got {size}")
    (a, b, c), (d, e, f) = inverse(matrix)
    x = np.arange(width) + 0.5
    y = (np.arange(height) + 0.5)[:, None]
    u = (a * x + (b * y + c)).ravel()
    v = (d * x + (e * y + f)).ravel()
    rows, columns, channels = image.shape
    inside = (u >= 0) & (u < columns) & (v >= 0) & (v < rows)
    left, right, along = _neighbours(u, columns)
    top, bottom, down = _neighbours(v, rows)
    image = image[top.min() : bottom.max() + 1, left.min() : right.max() + 1]  # of a large picture, what is read
    columns, left, right = image.shape[1], left - left.min(), right - left.min()
    top, bottom = (top - top.min()) * columns, (bottom - top.min()) * columns

    # Channels first: long inner loops, several times faster than three values at a time.
    planes = np.ascontiguousarray(np.moveaxis(image, -1, 0)).reshape(channels, -1)
    upper = _mix(planes.take(top + left, axis=1), planes.take(top + right, axis=1), along)
    lower = _mix(planes.take(bottom + left, axis=1), planes.take(bottom + right, axis=1), along)
    values = _mix(upper, lower, down)
    if not inside.all():
        values *= inside
    if image.dtype == np.uint8:
        values = np.rint(values)
    packed = values.astype(image.dtype).reshape(channels, height, width)
    return np.ascontiguousarray(np.moveaxis(packed, 0, -1))


def _neighbours(position: Points, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The two pixels whose centres enclose a coordinate, and how far between them it lies."""
    centred = np.clip(position - 0.5, 0, count - 1)
    low = centred.astype(np.intp)  # not negative, so this is the floor
    return low, np.minimum(low + 1, count - 1), (centred - low).astype(np.float32)


def _mix(low: NDArray, high: NDArray, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    low = low.astype(np.float32)
    mixed: NDArray[np.float32] = low + weight * (high.astype(np.float32) - low)
    return mixed


def _target(size: Size | Template, onto: ArrayLike | None) -> ArrayLike:
    if onto is not None:
        return onto
    return size.array if isinstance(size, Template) else template(size)


def matrix_of(landmarks: ArrayLike, size: Size | Template = 112, *, onto: ArrayLike | None = None) -> Matrix:
    """The (2, 3) matrix by which `align` cuts a face out: `similarity` onto `template(size)`, or other five points.

    Raises:
        AlignmentError: As for `align`.
    """
    try:
        points = np.asarray(landmarks, np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.shape != (5, 2):
        raise AlignmentError(f"landmarks: expected shape (5, 2), {NAMES}, got {points.shape}")
    matrix = similarity(points, _target(size, onto))
    eyes, down = points[1] - points[0], points[3:].mean(axis=0) - points[0]
    # Only mirrored points turn the other way; a rotated face does not.
    if eyes[0] * down[1] - eyes[1] * down[0] <= 0:
        raise AlignmentError(f"landmarks: expected {NAMES}, got a mirrored face")
    return matrix


def align(
    image: NDArray[np.uint8], landmarks: ArrayLike, size: Size | Template = 112, *, onto: ArrayLike | None = None
) -> tuple[NDArray[np.uint8], Matrix]:
    """Cuts the aligned face out of an image: `similarity` onto `template(size)`, then `warp`.

    An image that becomes two times smaller or more is first reduced by a whole factor, each pixel the mean of a block,
    so that nothing aliases.

    Args:
        image: (H, W, 3) uint8.
        landmarks: (5, 2) as (x, y) in pixel-edge coordinates: left eye, right eye, nose, left and right
            mouth corner, the viewer's left first.
        size: Side of the crop in pixels, or its height and width, or another template with its own size.
        onto: Where the landmarks go, (5, 2) in pixels of the crop; None for the template.

    Returns:
        The crop, (height, width, 3) uint8, and the (2, 3) matrix from image to crop coordinates.

    Raises:
        AlignmentError: Landmarks that are mirrored, degenerate, not finite, or of another shape.
    """
    matrix = matrix_of(landmarks, size, onto=onto)
    shape = size.size if isinstance(size, Template) else shape_of(size)
    factor = int(1 / np.hypot(*matrix[:, 0]))
    if factor < 2:
        return warp(image, matrix, shape), matrix
    reduced = np.array(Image.fromarray(image).reduce(factor))
    return warp(reduced, matrix * (factor, factor, 1), shape), matrix


def center_crop(image: NDArray[np.uint8], size: Size) -> tuple[NDArray[np.uint8], Matrix]:
    """The middle of an image at a crop's size, for faces that are aligned already.

    An image of that size comes back as it is. Of another one the central square, resampled (bilinear with a low-pass
    filter) to the longer side of the crop, is cut to the crop: the same part of the face as `template` says.

    Returns:
        The crop, (height, width, 3) uint8, and the (2, 3) matrix from image to crop coordinates.
    """
    rows, columns = shape_of(size)
    height, width = image.shape[:2]
    if (height, width) == (rows, columns):
        return image, np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    longer, side = max(rows, columns), min(height, width)
    across, down = side * (columns / longer), side * (rows / longer)  # of the image
    left, top = (width - across) / 2, (height - down) / 2
    scale = template(longer)[0, 0] / template(side)[0, 0]
    matrix = np.array([[scale, 0.0, -scale * left], [0.0, scale, -scale * top]])
    box = (left, top, left + across, top + down)
    resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR, box=box)
    return np.array(resized, dtype=np.uint8), matrix


def __getattr__(name: str) -> object:
    """`read_landmarks`, which is in a module of its own that imports this one."""
    if name == "read_landmarks":
        from fastadv.data.landmark_lists import read_landmarks

        return read_landmarks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
