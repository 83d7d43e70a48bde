"""Budgets: the set of images an attack may choose from, and how to stay in it.

A budget is a ball around the original image, cut with the pixel range, or the pixel range alone for an attack that
looks for the smallest perturbation. Radii are in the unit of the pixels, which lie in [0, 1]: the papers'
"epsilon = 8 of 255" is ``8 / 255``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv.attacks.per_image import as_rows, column, row_norm, rows_like
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import is_number
from fastadv.ops import add_noise_, philox

START_LAYER = 0
"""The Philox layer of a random start; the layers of a network's own masks come after it."""

_LEVELS = 255.0
_STRETCH = 1.02
_SLACK = 1e-6  # float32 rounding of origin ± eps, far below one grey level (0.0039)


def _check_eps(eps: float) -> None:
    if not (is_number(eps) and eps > 0):
        raise ArgumentError(f"eps: expected a positive number, got {brief(eps)}")


def _check_range(lo: float, hi: float) -> None:
    if not (is_number(lo) and is_number(hi) and lo < hi):
        raise ArgumentError(f"lo, hi: expected finite numbers with lo < hi, got {brief(lo)} and {brief(hi)}")


def _in_range(x: Tensor, lo: float, hi: float) -> Tensor:
    """Whether all pixels of each image are, ``(N,)`` bool."""
    return (x.flatten(1).amin(1) >= lo) & (x.flatten(1).amax(1) <= hi)


def _largest(low: Tensor, high: Tensor, holds: Callable[[Tensor], Tensor], times: int) -> Tensor:
    """The largest numbers ``(N,)`` between low and high that hold, each found by its own bisections."""
    for _ in range(times):
        middle = (low + high) / 2
        ok = holds(middle)
        low, high = torch.where(ok, middle, low), torch.where(ok, high, middle)
    return low


def to_levels(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Each pixel at its nearest 8-bit level from ``low`` to ``high``: ``clip(round(255 x), low, high) / 255``."""
    return torch.mul(x, _LEVELS).round_().clamp_(low, high).div_(_LEVELS)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *([1] * (like.dim() - 1)))


@dataclass(frozen=True)
class _WithinRadius:
    """What both balls have: a radius, and the pixel range that cuts them."""

    eps: float
    lo: float = 0.0
    hi: float = 1.0
    is_ball: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_eps(self.eps)
        _check_range(self.lo, self.hi)


@dataclass(frozen=True)
class Linf(_WithinRadius):
    """The box ``|x' - x| <= eps`` in every pixel, cut with ``[lo, hi]``.

    Attributes:
        eps: Radius in units of the pixel range [0, 1] (``8/255``, not 8).
        lo: Smallest pixel value.
        hi: Largest pixel value.

    Raises:
        ValueError: eps is not in (0, hi - lo], or the range is empty.
    """

    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps > self.hi - self.lo:
            raise ArgumentError(
                f"eps: expected at most hi - lo = {self.hi - self.lo:g}, got {self.eps:g}; pixels are in ["
                f"{self.lo:g}, {self.hi:g}], so write {self.eps:g}/255 for {self.eps:g} grey levels"
            )

    def clip(self, x: Tensor, origin: Tensor) -> Tensor:
        """The nearest point of the budget: ``min(hi, x + eps, max(lo, x - eps, x'))``."""
        x = torch.maximum(torch.minimum(x, origin + self.eps), origin - self.eps)
        return x.clamp(self.lo, self.hi)

    def inside(self, x: Tensor, origin: Tensor) -> Tensor:
        """Whether each image lies in the budget, ``(N,)`` bool, with 1e-6 for float32 rounding."""
        off = (x - origin).abs().flatten(1).amax(1) <= self.eps + _SLACK
        return off & _in_range(x, self.lo, self.hi)

    def random_start(self, origin: Tensor, *, seed: int, ids: Tensor, draw: int = 0) -> Tensor:
        """A point drawn uniformly from the box around each image, then cut with the pixel range.

        Args:
            origin: Images ``(N, C, H, W)``, float32.
            seed: The run's seed.
            ids: The images' ids ``(N,)`` int64; an image's point depends on its own id, the seed and the draw only.
            draw: Which of an image's points, from 0.
        """
        # in the box without a cut: origin + eps z rounds to no more than origin + eps does
        return add_noise_(
            torch.empty_like(origin),
            origin=origin.detach(),
            scale=self.eps,
            seed=seed,
            ids=ids,
            tick=draw,
            layer=START_LAYER,
            lo=self.lo,
            hi=self.hi,
        )

    def round8(self, x: Tensor, origin: Tensor) -> Tensor:
        """The nearest image with 8 bits per channel that is still in the budget.

        A pixel is rounded to the nearest multiple of 1/255 inside ``[origin - eps, origin + eps]``. Where that
        interval holds none (eps below half a grey level, origin between two), the origin's own nearest is taken.
        """
        return to_levels(x, *self.level_bounds(origin))

    def level_bounds(self, origin: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and the highest grey level (0 to 255) that each pixel may take."""
        low = torch.ceil((origin - self.eps).clamp(self.lo, self.hi) * _LEVELS - 1e-4)
        high = torch.floor((origin + self.eps).clamp(self.lo, self.hi) * _LEVELS + 1e-4)
        none, nearest = low > high, torch.round(origin * _LEVELS)
        return torch.where(none, nearest, low), torch.where(none, nearest, high)


@dataclass(frozen=True)
class L2(_WithinRadius):
    """The ball ``||x' - x||_2 <= eps`` of each image, cut with ``[lo, hi]``.

    Attributes:
        eps: Radius of the whole image's perturbation, pixels in [0, 1].
        lo: Smallest pixel value.
        hi: Largest pixel value.

    Raises:
        ValueError: eps is not positive, or the range is empty.
    """

    norm: ClassVar[str] = "l2"

    def clip(self, x: Tensor, origin: Tensor) -> Tensor:
        """The point moved back to the ball along its radius, then cut with the pixel range.

        The cut only moves pixels towards the origin, so the result is in both sets.
        """
        delta = x - origin
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        scale = torch.where(length > self.eps, self.eps / length, torch.ones_like(length))
        return (origin + delta * _rows(scale, x)).clamp(self.lo, self.hi)

    def inside(self, x: Tensor, origin: Tensor) -> Tensor:
        """Whether each image lies in the budget, ``(N,)`` bool, with a relative 1e-5 for float32 rounding."""
        off = torch.linalg.vector_norm((x - origin).flatten(1), dim=1) <= self.eps * (1 + 1e-5) + _SLACK
        return off & _in_range(x, self.lo, self.hi)

    def random_start(self, origin: Tensor, *, seed: int, ids: Tensor, draw: int = 0) -> Tensor:
        """A point drawn uniformly from the ball around each image, then cut with the pixel range.

        A Gaussian direction, and the radius ``eps * u ** (1 / D)`` that is uniform in volume. The arguments are those
        of ``Linf.random_start``.
        """
        shape = tuple(origin.shape[1:])
        direction = philox.normal(seed, ids, 2 * draw, START_LAYER, shape)
        length = torch.linalg.vector_norm(direction.flatten(1), dim=1)
        u = philox.uniform(seed, ids, 2 * draw + 1, START_LAYER, (1,)).flatten()
        radius = self.eps * u.double().pow(1.0 / math.prod(shape)).to(origin.dtype)
        return self.clip(origin + direction * _rows(radius / length, origin), origin)

    def round8(self, x: Tensor, origin: Tensor) -> Tensor:
        """An image with 8 bits per channel that is still in the ball.

        Rounding to the nearest level can leave the ball, so the perturbation is first scaled by the largest
        factor in [0, 1] (found by 12 bisections, each image on its own) whose rounding stays inside.
        """
        made = torch.empty_like(x)
        into, start = as_rows(made), rows_like(origin.detach(), made) * _LEVELS
        way = rows_like(x.detach(), made) * _LEVELS - start
        moved = torch.empty_like(start)
        lowest, highest = math.ceil(self.lo * _LEVELS - 1e-4), math.floor(self.hi * _LEVELS + 1e-4)

        def fits(scale: Tensor) -> Tensor:
            torch.addcmul(start, way, column(scale), out=into).round_().clamp_(lowest, highest)
            return row_norm(torch.sub(into, start, out=moved)) <= (self.eps * (1 + 1e-5) + _SLACK) * _LEVELS

        one = torch.ones(x.shape[0], dtype=x.dtype, device=x.device)
        fits(_largest(torch.where(fits(one), one, 0.0), one, fits, 12))
        into.div_(_LEVELS)
        return made


@dataclass(frozen=True, kw_only=True)
class Box:
    """The pixel range alone: the budget of attacks that look for the smallest perturbation themselves.

    Attributes:
        lo: Smallest pixel value.
        hi: Largest pixel value.

    Raises:
        ValueError: The range is empty.
    """

    lo: float = 0.0
    hi: float = 1.0
    norm: ClassVar[str] = "none"
    is_ball: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_range(self.lo, self.hi)

    @property
    def eps(self) -> float:
        """The largest change of a pixel that the range allows."""
        return self.hi - self.lo

    def clip(self, x: Tensor, origin: Tensor) -> Tensor:
        """The point cut with the pixel range."""
        return x.clamp(self.lo, self.hi)

    def inside(self, x: Tensor, origin: Tensor) -> Tensor:
        """Whether each image lies in the pixel range, ``(N,)`` bool."""
        return _in_range(x, self.lo, self.hi)

    def random_start(self, origin: Tensor, *, seed: int, ids: Tensor, draw: int = 0) -> Tensor:
        """A point drawn uniformly from the pixel range; the arguments are those of ``Linf.random_start``."""
        return self.lo + self.eps * philox.uniform(seed, ids, draw, START_LAYER, tuple(origin.shape[1:]))

    def round8(self, x: Tensor, origin: Tensor) -> Tensor:
        """An image with 8 bits per channel whose perturbation is, along itself, a little longer than that of ``x``.

        A smallest perturbation changes most pixels by less than a grey level: rounding to the nearest would take away
        a part of it, and with it the success. So, with ``d = x - origin``, each pixel is rounded away from the origin
        where its part of the way to the next level is at least a threshold, one for each image: one half where the
        result r keeps ``<r - origin, d> >= 1.02 ||d||^2``, else the largest threshold that does (0 where none does),
        found by 9 bisections. The pixels that change most go first, so the extra length is the least. The two per
        cent pay for what the rounding itself undoes: with them all of 16 LFW faces that DeepFool had moved over the
        border of 158 identities stayed beyond it, without them 3, and with the nearest levels none.
        """
        delta = x - origin
        level = x * _LEVELS
        near = torch.round(level)
        level = torch.where(((level - near).abs() < 1e-3) | (delta == 0), near, level)
        up, down, rises = torch.ceil(level), torch.floor(level), delta > 0
        outward, inward = torch.where(rises, up, down), torch.where(rises, down, up)
        part = (level - inward).abs()
        # <r - origin, d> is what the inward levels give and the gain of every pixel that goes outward
        gain, parts = ((outward - inward) * delta / _LEVELS).flatten(2), part.flatten(2)
        kept = ((inward / _LEVELS - origin) * delta).flatten(2).sum(2).sum(1)
        missing = delta.square().flatten(2).sum(2).sum(1) * _STRETCH - kept

        def keeps(threshold: Tensor) -> Tensor:
            return torch.where(parts >= _rows(threshold, gain), gain, 0.0).sum(2).sum(1) >= missing

        high = torch.full((len(x),), 0.5, dtype=x.dtype, device=x.device)
        low = _largest(torch.where(keeps(high), high, 0.0), high, keeps, 9)
        return (torch.where(part >= _rows(low, x), outward, inward) / _LEVELS).clamp(self.lo, self.hi)


Ball = Linf | L2
Budget = Linf | L2 | Box


def check_ball(budget: Ball) -> None:
    """A ValueError unless the budget is a ball."""
    if not isinstance(budget, (Linf, L2)):
        raise ArgumentError(f"budget: expected Linf(eps) or L2(eps), got {brief(budget)}")


def check_box(budget: Budget) -> None:
    """A ValueError unless the budget bounds every pixel on its own."""
    if not isinstance(budget, (Linf, Box)):
        raise ArgumentError(f"budget: expected Linf(eps) or Box(), got {brief(budget)}")
