"""Where the five points of an aligned face lie in its crop: published templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_int, check_range

_FARTHEST = 1e6  # pixels
Five = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Template:
    """The five points of an aligned face in a crop.

    Attributes:
        points: (x, y) of left eye, right eye, nose, left and right mouth corner, the viewer's left first; pixel-edge
            coordinates of the crop.
        size: Height and width of the crop in pixels.

    Raises:
        ValueError: Not five points, mirrored ones, or a size out of range.
    """

    points: Five
    size: tuple[int, int]

    def __post_init__(self) -> None:
        try:
            points = self.array
        except (TypeError, ValueError):
            points = np.empty(0)
        if points.shape != (5, 2) or not (np.abs(points) <= _FARTHEST).all():  # also of a NaN
            raise ArgumentError(f"template: expected five points (x, y), got {brief(self.points)}")
        eyes, down = points[1] - points[0], points[3:].mean(axis=0) - points[0]
        if eyes[0] * down[1] - eyes[1] * down[0] <= 0:
            raise ArgumentError(
                "template: expected left eye, right eye, nose, left and right mouth corner, the viewer's left first, "
                f"got {brief(self.points)}"
            )
        if not isinstance(self.size, tuple) or len(self.size) != 2:
            raise ArgumentError(f"template: expected a height and a width, got {brief(self.size)}")
        for name, side in zip(("height", "width"), self.size, strict=True):
            check_int(f"template {name}", side, 16, 4096)

    @property
    def array(self) -> NDArray[np.float64]:
        """The points, (5, 2)."""
        return np.array(self.points, dtype=np.float64)

    def widened(self, margin: float) -> Template:
        """The template of a crop of the same size that shows more around the face.

        Args:
            margin: How much is added on each side, in sides of the crop: 0.25 shows one and a half times as much.

        Raises:
            ValueError: The margin is not in [0, 2].
        """
        check_range("margin", margin, 0, 2)
        height, width = self.size
        moved = np.add(self.array, (margin * width, margin * height)) / (1 + 2 * margin)
        return Template(points=tuple((float(x), float(y)) for x, y in moved), size=self.size)


_ARCFACE: Five = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))

TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "arcface": Template(points=_ARCFACE, size=(112, 112)),
        # Liu et al. 2017: the same face, with 8 pixels less on the left and on the right
        "sphereface": Template(points=tuple((x - 8, y) for x, y in _ARCFACE), size=(112, 96)),
        "facenet": Template(points=tuple((x * (160 / 112), y * (160 / 112)) for x, y in _ARCFACE), size=(160, 160)),
        # dlib's mean face of 68 points with a padding of 0.25: centres of the eyes, tip of the nose, mouth corners
        "dlib": Template(
            points=((47.549, 46.599), (100.476, 46.599), (74.013, 76.563), (50.415, 103.023), (97.61, 103.023)),
            size=(150, 150),
        ),
    }
)
"""By name: ArcFace's of 112×112 (Deng et al. 2019), SphereFace's of 96×112, ArcFace's at FaceNet's 160×160, dlib's of
150×150."""
