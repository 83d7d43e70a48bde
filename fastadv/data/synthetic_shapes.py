"""The drawing of synthetic faces: planes of coordinates, signed distances, soft edges, paint.

Everything on pixels is built of operations that IEEE 754 rounds exactly (+, -, *, /, square root, minimum, maximum,
absolute value), so that a picture has the same bits in any batch, at any place of a vector register, on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv.ops import philox

CENTER = (56.0, 72.0)
"""Where the face's own coordinates (0, 0) lie in the 112 template: between eyes and mouth, at the nose."""


Part = TypeVar("Part")


class Deck:
    """Uniform numbers of a batch, dealt in the order of the calls: the n-th call takes the n-th number of each image.

    Args:
        seed: Of the Philox key, in [0, 2^64).
        ids: (N,) int64, the identities.
        tick: (N,) int64 or a number: the image of the identity.
        layer: Separates independent decks.
        cards: Numbers for each image.
    """

    def __init__(self, seed: int, ids: Tensor, tick: Tensor | int, layer: int, cards: int) -> None:
        self._numbers = philox.uniform(seed, ids, tick, layer, (cards,))
        self._dealt = 0

    def take(self, count: int) -> Tensor:
        """The next `count` numbers, (N, count)."""
        first, self._dealt = self._dealt, self._dealt + count
        if self._dealt > self._numbers.shape[1]:
            raise IndexError(f"cards: the deck holds {self._numbers.shape[1]}, {self._dealt} were asked for")
        return self._numbers[:, first : self._dealt]

    def between(self, low: float, high: float) -> Tensor:
        """Uniform in [low, high), (N, 1, 1)."""
        return (self.take(1) * (high - low) + low)[:, :, None]

    def around(self, center: float, spread: float) -> Tensor:
        """Triangular in center ± spread, (N, 1, 1): most of the images near the centre."""
        u = self.take(2)
        return ((u[:, :1] + u[:, 1:] - 1) * spread + center)[:, :, None]

    def chance(self, probability: float) -> Tensor:
        """1 with the probability, else 0, (N, 1, 1)."""
        return (self.take(1) < probability).float()[:, :, None]

    def color(self, table: Sequence[Sequence[float]], jitter: float) -> Tensor:
        """One of the colours, each channel moved by at most `jitter`, (N, 3, 1, 1)."""
        rows = torch.tensor(table, dtype=torch.float32)
        chosen = rows[(self.take(1)[:, 0] * len(table)).long()]
        return (chosen + (self.take(3) * 2 - 1) * jitter).clamp(0.02, 0.98)[:, :, None, None]


def between(low: float, high: float, *, least: float = -math.inf) -> Any:
    """A field that `drawn` gives `Deck.between`, raised to `least` where it is below."""
    return field(metadata={"deal": lambda deck: deck.between(low, high).clamp(min=least)})


def around(center: float, spread: float) -> Any:
    """A field that `drawn` gives `Deck.around`."""
    return field(metadata={"deal": lambda deck: deck.around(center, spread)})


def chance(probability: float) -> Any:
    """A field that `drawn` gives `Deck.chance`."""
    return field(metadata={"deal": lambda deck: deck.chance(probability)})


def color(table: Sequence[Sequence[float]], jitter: float) -> Any:
    """A field that `drawn` gives `Deck.color`."""
    return field(metadata={"deal": lambda deck: deck.color(table, jitter)})


def drawn(kind: type[Part], deck: Deck, **known: Tensor) -> Part:
    """A dataclass whose fields, but for the known ones, are dealt in their order as they say."""
    return kind(**{f.name: known[f.name] if f.name in known else f.metadata["deal"](deck) for f in fields(kind)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """From pixels to coordinates of the face, for layers at any depth.

    With X, Y the image plane after the alignment is undone, a layer at depth z (towards the viewer) has the face
    coordinates `u = X - z·du`, `v = Y - z·dv`: turning the head moves what is near against what is far.

    Attributes:
        x: (N, S, S) image-plane coordinate over the cosine of the yaw, units of the 112 template.
        y: (N, S, S) the same over the cosine of the pitch.
        du: (N, 1, 1) tangent of the yaw.
        dv: (N, 1, 1) tangent of the pitch.
        pixel: (N, 1, 1) the width of a pixel in these units.
        size: S.
    """

    x: Tensor
    y: Tensor
    du: Tensor
    dv: Tensor
    pixel: Tensor
    size: int

    def window(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice]:
        """Rows and columns of a box given in the 112 template's pixels; cuts off what lies outside."""
        scale = self.size / 112

        def cut(low: float, high: float) -> slice:
            return slice(max(0, int(low * scale)), min(self.size, int(high * scale) + 1))

        return cut(top, bottom), cut(left, right)

    def layer(self, depth: float | Tensor, window: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
        """u and v at a depth, inside a window."""
        rows, columns = window
        return self.x[:, rows, columns] - self.du * depth, self.y[:, rows, columns] - self.dv * depth

    def cover(self, distance: Tensor, soft: float | Tensor = 0.0) -> Tensor:
        """Signed distance (negative inside) to coverage in [0, 1]: a ramp of one pixel and `soft` units more."""
        return (distance / (self.pixel + soft)).neg_().add_(0.5).clamp_(0.0, 1.0)


def paint(canvas: Tensor, window: tuple[slice, slice], cover: Tensor, color: Tensor) -> None:
    """Lays a colour over the canvas: `c ← c + cover·(color - c)`, in place.

    Args:
        canvas: (N, 3, S, S).
        window: Rows and columns.
        cover: (N, h, w) in [0, 1].
        color: (N, 3, 1, 1), or (N, 3, h, w).
    """
    part = canvas[:, :, window[0], window[1]]
    part += (color - part).mul_(cover[:, None])


def shade(canvas: Tensor, window: tuple[slice, slice], amount: Tensor) -> None:
    """Multiplies the canvas by `1 + amount`, in place; `amount` is (N, h, w)."""
    canvas[:, :, window[0], window[1]] *= (amount + 1)[:, None]


def ellipse(u: Tensor, v: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """About the signed distance to an ellipse with half axes a, b: `(sqrt(q) - 1)·min(a, b)`."""
    radius = ((u / a).square_() + (v / b).square_()).sqrt_()
    least = torch.minimum(torch.as_tensor(a), torch.as_tensor(b))
    return (radius - 1).mul_(least)


def rounded_box(u: Tensor, v: Tensor, a: Tensor, b: Tensor, corner: Tensor) -> Tensor:
    """Signed distance to a box with half sides a, b and corners of a radius."""
    p, q = u.abs() - (a - corner), v.abs() - (b - corner)
    outside = (p.clamp(min=0).square_() + q.clamp(min=0).square_()).sqrt_()
    return outside + torch.maximum(p, q).clamp_(max=0) - corner


def bump(u: Tensor, v: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """A soft spot: `1 / (1 + (u/a)² + (v/b)²)²`, 1 in the middle."""
    return ((u / a).square_() + (v / b).square_()).add_(1).square_().reciprocal_()


def wave(x: Tensor) -> Tensor:
    """A smooth wave of period 1 between -1 and 1, of parabolas: `16 t (1/2 - |t|)` with t in [-1/2, 1/2)."""
    t = x - (x + 0.5).floor()
    return (0.5 - t.abs()).mul_(t).mul_(16)
