"""Budgets: the set of images an attack may choose from, and how to stay in it.

A budget is a ball around the original image, cut with the pixel range. Radii are in the unit of the
pixels, which lie in [0, 1]: the papers' "epsilon = 8 of 255" is ``8 / 255``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv.ops import philox

START_LAYER = 0
"""The Philox layer of a random start; the layers of a network's own masks come after it."""

_LEVELS = 255.0
_SLACK = 1e-6  # float32 rounding of origin ± eps, far below one grey level (0.0039)


def _check_range(eps: float, lo: float, hi: float) -> None:
    if not (isinstance(eps, (int, float)) and math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be a positive number, got {eps!r}")
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"lo and hi must be finite with lo < hi, got lo={lo!r}, hi={hi!r}")


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *([1] * (like.dim() - 1)))


@dataclass(frozen=True)
class Linf:
    """The box ``|x' - x| <= eps`` in every pixel, cut with ``[lo, hi]``.

    Attributes:
        eps: Radius in units of the pixel range [0, 1] (``8/255``, not 8).
        lo: Smallest pixel value.
        hi: Largest pixel value.

    Raises:
        ValueError: eps is not in (0, hi - lo], or the range is empty.
    """

    eps: float
    lo: float = 0.0
    hi: float = 1.0
    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        _check_range(self.eps, self.lo, self.hi)
        if self.eps > self.hi - self.lo:
            raise ValueError(
                f"eps must be at most hi - lo = {self.hi - self.lo:g}, got {self.eps:g}; "
                f"pixels are in [{self.lo:g}, {self.hi:g}], so write {self.eps:g}/255 for {self.eps:g} grey levels"
            )

    def clip(self, x: Tensor, origin: Tensor) -> Tensor:
        """The nearest point of the budget: ``min(hi, x + eps, max(lo, x - eps, x'))``."""
        x = torch.maximum(torch.minimum(x, origin + self.eps), origin - self.eps)
        return x.clamp(self.lo, self.hi)

    def inside(self, x: Tensor, origin: Tensor) -> Tensor:
        """Whether each image lies in the budget, ``(N,)`` bool, with 1e-6 for float32 rounding."""
        off = (x - origin).abs().flatten(1).amax(1) <= self.eps + _SLACK
        low, high = x.flatten(1).amin(1) >= self.lo, x.flatten(1).amax(1) <= self.hi
        return off & low & high

    def random_start(self, origin: Tensor, *, seed: int, ids: Tensor) -> Tensor:
        """A point drawn uniformly from the box around each image, then cut with the pixel range.

        Args:
            origin: Images ``(N, C, H, W)``.
            seed: The run's seed.
            ids: The images' ids ``(N,)`` int64; an image's point depends on its own id and the seed only.
        """
        u = philox.uniform(seed, ids, 0, START_LAYER, tuple(origin.shape[1:]))
        return self.clip(origin + (2 * u - 1) * self.eps, origin)

    def round8(self, x: Tensor, origin: Tensor) -> Tensor:
        """The nearest image with 8 bits per channel that is still in the budget.

        A pixel is rounded to the nearest multiple of 1/255 inside ``[origin - eps, origin + eps]``. Where that
        interval holds none (eps below half a grey level, origin between two), the origin's own nearest is taken.
        """
        low = torch.ceil((origin - self.eps).clamp(self.lo, self.hi) * _LEVELS - 1e-4)
        high = torch.floor((origin + self.eps).clamp(self.lo, self.hi) * _LEVELS + 1e-4)
        level = torch.round(x * _LEVELS)
        level = torch.maximum(torch.minimum(level, high), low)
        return torch.where(low > high, torch.round(origin * _LEVELS), level) / _LEVELS


@dataclass(frozen=True)
class L2:
    """The ball ``||x' - x||_2 <= eps`` of each image, cut with ``[lo, hi]``.

    Attributes:
        eps: Radius of the whole image's perturbation, pixels in [0, 1].
        lo: Smallest pixel value.
        hi: Largest pixel value.

    Raises:
        ValueError: eps is not positive, or the range is empty.
    """

    eps: float
    lo: float = 0.0
    hi: float = 1.0
    norm: ClassVar[str] = "l2"

    def __post_init__(self) -> None:
        _check_range(self.eps, self.lo, self.hi)

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
        low, high = x.flatten(1).amin(1) >= self.lo, x.flatten(1).amax(1) <= self.hi
        return off & low & high

    def random_start(self, origin: Tensor, *, seed: int, ids: Tensor) -> Tensor:
        """A point drawn uniformly from the ball around each image, then cut with the pixel range.

        A Gaussian direction, and the radius ``eps * u ** (1 / D)`` that is uniform in volume.
        """
        shape = tuple(origin.shape[1:])
        direction = philox.normal(seed, ids, 0, START_LAYER, shape)
        length = torch.linalg.vector_norm(direction.flatten(1), dim=1)
        u = philox.uniform(seed, ids, 1, START_LAYER, (1,)).flatten()
        radius = self.eps * u.double().pow(1.0 / math.prod(shape)).to(origin.dtype)
        return self.clip(origin + direction * _rows(radius / length, origin), origin)

    def round8(self, x: Tensor, origin: Tensor) -> Tensor:
        """An image with 8 bits per channel that is still in the ball.

        Rounding to the nearest level can leave the ball, so the perturbation is first scaled by the largest
        factor in [0, 1] (found by 24 bisections, each image on its own) whose rounding stays inside.
        """

        def rounded(scale: Tensor) -> Tensor:
            return torch.round((origin + (x - origin) * _rows(scale, x)).clamp(self.lo, self.hi) * _LEVELS) / _LEVELS

        one = torch.ones(x.shape[0], dtype=x.dtype, device=x.device)
        fits = self.inside(rounded(one), origin)
        low, high = torch.where(fits, one, torch.zeros_like(one)), one.clone()
        for _ in range(24):
            middle = (low + high) / 2
            ok = self.inside(rounded(middle), origin)
            low, high = torch.where(ok, middle, low), torch.where(ok, high, middle)
        return rounded(torch.where(fits, one, low))


Budget = Linf | L2
