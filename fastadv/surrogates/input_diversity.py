"""Input diversity: the attacked image is resized, moved, turned and scaled anew for every evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_range, check_type
from fastadv.ops import philox
from fastadv.surrogates.key import StepKey
from fastadv.surrogates.warp import affine_warp

DIVERSITY_LAYER = 4000
"""The Philox layer that the transforms are drawn from."""

_DRAWS = 8  # whether at all, ratio, place, translation, angle, scale
_LARGEST = 2  # more would spread a pixel far, and the backward pass looks at all it may have reached


@dataclass(frozen=True, kw_only=True)
class InputDiversity:
    r"""A random affine transform of every image, differentiable and drawn anew for every evaluation.

    .. math:: T(x; p) = \begin{cases} T(x) & \text{with probability } p \\ x & \text{with probability } 1 - p
              \end{cases}

    ``T`` first resizes the image by a ratio of ``resize`` and puts it at a random place of a canvas of the old size
    (a ratio above 1 crops), then scales and turns the canvas about its centre and moves it. All of it is one map
    and one bilinear interpolation, with zeros outside the image; ratio, place, angle and shifts are uniform and
    continuous. The numbers of an image hang on its key only.

    **choice**: The paper names the transforms, not their ranges. ``resize`` is that of Xie et al. (299 of 330 pixels
    and up), as shares of the image; the others are what detection and alignment leave over in an aligned face.

    Attributes:
        probability: ``p``; the paper's is 1. An image that is kept is kept to the bit.
        resize: Smallest and largest ratio of the new size to the old one.
        translate: Largest shift along either axis, as a share of the height and width.
        rotate: Largest angle in degrees, either way.
        scale: Smallest and largest factor.

    Raises:
        ValueError: A field is out of range.

    Source:
        Xie et al. 2019, "Improving transferability of adversarial examples with input diversity", eq. 5; Zhong and Deng
        2020, "Towards transferable adversarial attack against deep face recognition", eq. 13 and section IV-C.
    """

    probability: float = 1.0
    resize: tuple[float, float] = (0.9, 1.0)
    translate: float = 0.05
    rotate: float = 5.0
    scale: tuple[float, float] = (0.95, 1.05)

    def __post_init__(self) -> None:
        check_range("probability", self.probability, 0, 1)
        check_range("translate", self.translate, 0, 1)
        check_range("rotate", self.rotate, 0, 180)
        _check_factors("resize", self.resize)
        _check_factors("scale", self.scale)

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """Transform the images.

        Args:
            images: ``(N, C, H, W)``, float32 or float64; zero is what the canvas is filled with.
            key: Of the N images.

        Returns:
            Images of the same shape, type and layout; the gradient flows to ``images``.

        Raises:
            TypeError: The images are of another type, or ``key`` is no ``StepKey``.
            ValueError: The images are no batch, or the key not theirs.
        """
        check_type("key", key, StepKey)
        if images.dim() != 4:
            raise ArgumentError(f"images: expected shape (N, C, H, W), got {tuple(images.shape)}")
        if key.ids.shape != images.shape[:1]:
            raise ArgumentError(
                f"key: expected ids of shape {(len(images),)}, one per image, got {tuple(key.ids.shape)}"
            )
        matrices = self.matrices(key, (images.shape[2], images.shape[3]))
        return affine_warp(images, matrices.to(images.dtype), reach=self._reach)

    def matrices(self, key: StepKey, size: tuple[int, int]) -> Tensor:
        """The maps from places of the result to places of the image, as :func:`~fastadv.surrogates.warp.affine_warp`
        takes them.

        With the ratio ``r``, scale ``s``, rotation ``R``, canvas shift ``d`` and translation ``t``, all about the
        centre, a point ``p`` of the image comes out at ``s R (r p + d) + t``; this is the inverse.

        Args:
            key: Of N images.
            size: Height and width.

        Returns:
            ``(N, 2, 3)`` float32; exactly the identity where the image is kept.
        """
        u = philox.uniform(key.seed, key.ids, key.ticks, DIVERSITY_LAYER, (_DRAWS,))
        # float64, rounded once: vector and scalar code may differ in the last bit of a sine
        apply, ratio, place_x, place_y, move_x, move_y, angle, scale = u.double().unbind(1)
        height, width = size
        ratio = _between(self.resize, ratio)
        factor = _between(self.scale, scale)
        turn = (2 * angle - 1) * math.radians(self.rotate)
        cosine, sine = turn.cos(), turn.sin()
        across, along = (place_x - 0.5) * (1 - ratio) * width, (place_y - 0.5) * (1 - ratio) * height
        shift_x = factor * (cosine * across - sine * along) + (2 * move_x - 1) * self.translate * width
        shift_y = factor * (sine * across + cosine * along) + (2 * move_y - 1) * self.translate * height
        total = factor * ratio
        a, b = cosine / total, sine / total
        made = torch.stack((a, b, -(a * shift_x + b * shift_y), -b, a, b * shift_x - a * shift_y), 1)
        kept = torch.eye(2, 3, dtype=made.dtype, device=made.device).flatten()
        return torch.where((apply < self.probability)[:, None], made, kept).view(-1, 2, 3).float()

    @property
    def _reach(self) -> float:
        """How far a pixel of an image spreads at most: the largest row sum of ``s r R``."""
        angle = math.radians(min(self.rotate, 45.0))
        return max(1.0, self.resize[1] * self.scale[1] * (math.cos(angle) + math.sin(angle)))


def _between(ends: tuple[float, float], u: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * u


def _check_factors(name: str, ends: tuple[float, float]) -> None:
    numbers = isinstance(ends, tuple) and len(ends) == 2 and all(isinstance(v, (int, float)) for v in ends)
    if not (numbers and 0 < ends[0] <= ends[1] <= _LARGEST):
        raise ArgumentError(
            f"{name}: expected (smallest, largest) with 0 < smallest <= largest <= {_LARGEST}, got {brief(ends)}"
        )
