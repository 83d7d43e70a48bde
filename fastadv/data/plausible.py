"""Whether a list of landmarks can be right: how its faces fit the template, and what else its numbers may mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastadv.core.notices import notify
from fastadv.data.alignment import NAMES, AlignmentError, Points, template

#: Median RMS distance of a list's points from the template (112x112) after the best similarity: right lists have 2.9.
MAX_MEDIAN = 10.0
#: The same of one face. Of LFW's 9,711 faces three, which are seen from the side, have more than 10, none has 12.
MAX_FACE = 12.0
MAX_ENLARGEMENT = 8.0
MIN_EYES = 8.0  # pixels between the eyes
_GOOD = 9.0  # another reading of the numbers must fit as well as this, and much better than they do as they are
_SAMPLE = 200  # faces that the other readings are tried on
_POINTS = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")
_OURS, _SUBJECTS = (0, 1, 2, 3, 4), (1, 0, 2, 4, 3)
_ENOUGH = 5  # faces
_EXCHANGED = {
    (0, 1, 2, 4, 3): "with the mouth corners exchanged",
    (1, 0, 2, 3, 4): "with the eyes exchanged",
    _SUBJECTS: "with left and right exchanged (the viewer's left comes first)",
}


def residuals(points: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
    """How faces fit `template(112)` under their best similarity.

    With centred complex points `z` and template `w`, the similarity is `a = sum(conj(z) w) / sum(|z|^2)` (see
    `alignment.similarity`), the residual `sqrt(mean(|a z - w|^2))`.

    Args:
        points: (N, 5, 2), finite.

    Returns:
        The residuals, (N,), in units of the 112x112 crop, and `a`: its modulus is the enlargement, its argument the
        rotation. Faces whose points coincide get a NaN.
    """
    z = np.asarray(points, np.float64) @ (1, 1j)
    w = template(112) @ (1, 1j)
    z, w = z - z.mean(axis=1, keepdims=True), w - w.mean()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        a = (z.conj() * w).sum(axis=1) / (np.abs(z) ** 2).sum(axis=1)
        return np.sqrt((np.abs(a[:, None] * z - w) ** 2).mean(axis=1)), a


def settle_list(landmarks: Mapping[str, Points], wanted: Iterable[str]) -> tuple[Mapping[str, Points], tuple[str, ...]]:
    """A list in the order of this package, if it can be right for most of its faces.

    Args:
        landmarks: Five points per name.
        wanted: The names that matter.

    Returns:
        The list: another one where its faces fit in an order that people publish (x1..x5 y1..y5, y x pairs, left and
        right exchanged) and not as they are; and the names of single faces whose points fit no face.

    Raises:
        AlignmentError: The median face does not fit the template, is enlarged more than `MAX_ENLARGEMENT` times, or has
            less than `MIN_EYES` pixels between its eyes. The message says what the numbers would fit as.

    Warns:
        Notice: The points were brought into another order.
    """
    chosen = [name for name in wanted if _regular(landmarks.get(name))]
    if not chosen:
        return landmarks, ()
    points = np.array([landmarks[name] for name in chosen], dtype=np.float64)
    distance, a = residuals(points)
    usable = np.isfinite(distance)
    if not usable.any():
        return landmarks, ()
    middle, enlarged = float(np.median(distance[usable])), float(np.median(np.abs(a[usable])))
    eyes = float(np.median(np.hypot(*(points[usable, 1] - points[usable, 0]).T)))
    if np.median(np.abs(points[usable]).max(axis=(1, 2))) <= 1.5:
        _refuse(
            "points within 0 and 1", "they look like fractions: multiply x by the picture's width and y by its height"
        )
    other = _reading(points[usable], min(_GOOD, 0.6 * middle)) if middle > MAX_MEDIAN else None
    if other is not None and other.is_published(int(usable.sum())):
        notify(
            f"landmarks: read as {other}, in which they fit faces: median distance from the template "
            f"{float(np.median(residuals(other.of(points[usable]))[0])):.1f}, {middle:.1f} as they are",
            stacklevel=6,
        )
        return settle_list({k: other.of(v) if _regular(v) else v for k, v in landmarks.items()}, chosen)
    if middle > MAX_FACE or other is not None:
        _refuse(
            f"points that fit no face (median distance from the template {middle:.1f}; right lists have about 3)",
            f"they would fit as {other}" if other else "no order of the five points fits",
        )
    if enlarged > MAX_ENLARGEMENT or eyes < MIN_EYES:
        _refuse(
            f"faces with {eyes:.2g} pixels between the eyes (median), which a crop enlarges {enlarged:.3g} times",
            f"expected at least {MIN_EYES:g} pixels: is the list for smaller pictures?",
        )
    return landmarks, tuple(name for name, d in zip(chosen, distance, strict=True) if d > MAX_FACE)


def check_inside(points: ArrayLike, width: int, height: int) -> None:
    """Refuses a face with a point outside of its picture.

    A face that the border cuts may have points beyond it: half the distance between the eyes is allowed.

    Raises:
        AlignmentError: With the point and the picture's size.
    """
    points = np.asarray(points, np.float64)
    margin = float(np.hypot(*(points[1] - points[0]))) / 2
    beyond = np.maximum(-points, points - (width, height)).max(axis=1)
    worst = int(beyond.argmax())
    if beyond[worst] > margin:
        x, y = points[worst]
        raise AlignmentError(
            f"landmarks: expected points inside of the picture of {width}x{height}, got the {_POINTS[worst]} at "
            f"({x:.6g}, {y:.6g}); is the list for a picture of another size?"
        )


def _regular(points: object) -> bool:
    try:
        array = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        return False
    return array.shape == (5, 2) and bool(np.isfinite(array).all())


def _refuse(got: str, advice: str) -> None:
    raise AlignmentError(f"landmarks: expected x y in pixels of {NAMES}, got {got}; {advice}")


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the ten numbers of a line may mean.

    Attributes:
        layout: A key of `_LAYOUTS`.
        order: The place in the list of each of our five points.
    """

    layout: str
    order: tuple[int, ...]

    def of(self, points: ArrayLike) -> Points:
        """Points (..., 5, 2) in our order."""
        made: Points = _LAYOUTS[self.layout](np.asarray(points, np.float64))[..., self.order, :]
        return made

    def is_published(self, faces: int) -> bool:
        """Whether people publish lists like this; a few turned faces do not tell that left and right are exchanged."""
        exchanged = self.order == _SUBJECTS and faces >= _ENOUGH
        return self.layout in _PUBLISHED and (self.order == _OURS or exchanged)

    def __str__(self) -> str:
        if self.order == _OURS:
            return self.layout
        if self.order in _EXCHANGED:
            return f"{self.layout} {_EXCHANGED[self.order]}"
        return f"{self.layout} in the order {', '.join(_POINTS[self.order.index(k)] for k in range(5))}"


def _halves(points: Points) -> Points:
    """(..., 5, 2) of five x and then five y."""
    return np.swapaxes(points.reshape(*points.shape[:-2], 2, 5), -1, -2)


_LAYOUTS: Mapping[str, Callable[[Points], Points]] = MappingProxyType(
    {
        "x y pairs": lambda points: points,
        "y x pairs": lambda points: points[..., ::-1],
        "x1..x5 y1..y5": _halves,
        "y1..y5 x1..x5": lambda points: _halves(points)[..., ::-1],
        "x y pairs with y counted from the bottom": lambda points: points * (1, -1),
    }
)
_PUBLISHED = ("x y pairs", "y x pairs", "x1..x5 y1..y5")


def layout_fit(numbers: ArrayLike) -> float:
    """The median distance of faces (N, 10) from the template, in the best of the orders that people publish."""
    points = np.asarray(numbers, np.float64).reshape(-1, 5, 2)
    fits = [
        float(np.median(residuals(_Reading(layout=layout, order=order).of(points))[0]))
        for layout in _PUBLISHED
        for order in (_OURS, _SUBJECTS)
    ]
    return min((fit for fit in fits if np.isfinite(fit)), default=float("inf"))


def _reading(points: Points, worst: float) -> _Reading | None:
    """The order of the ten numbers in which they fit upright faces better than `worst`, or None."""
    points = points[:: max(1, len(points) // _SAMPLE)]
    # Turned faces fit several orders: what people mix up comes before what they hardly do.
    usual = [_OURS, *_EXCHANGED]
    for orders in (usual, [order for order in permutations(range(5)) if order not in usual]):
        best, found = worst, None
        for layout in _LAYOUTS:
            for order in orders:
                reading = _Reading(layout=layout, order=order)
                distance, a = residuals(reading.of(points))
                fit = float(np.median(distance))
                # A mirrored face is nearly a right one that is turned: the upright reading is meant.
                if fit < best and np.median(np.abs(np.angle(a))) < 1:
                    best, found = fit, reading
        if found is not None:
            return found
    return None
