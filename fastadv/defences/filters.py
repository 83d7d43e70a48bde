"""Input defences that smooth or coarsen: mean, Gaussian and median filter, bit depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastadv import ops
from fastadv.core.fields import check_int, check_odd, check_range
from fastadv.defences.compose import Wraps
from fastadv.defences.straight_through import straight_through
from fastadv.surrogates.key import StepKey

_LARGEST = 31  # pixels; wider windows leave nothing of a face of 112


@dataclass(frozen=True, kw_only=True)
class MeanFilter(Wraps):
    r"""Replace each pixel by the mean of a square window around it.

    .. math:: y_{c,i,j} = \frac{1}{s^2} \sum_{|a|, |b| \le (s-1)/2} x_{c,\,i+a,\,j+b}

    The border is repeated outwards. The 3×3 window is the fused :func:`fastadv.ops.box_blur`.

    Attributes:
        size: ``s``, odd, in [3, 31]; the paper's is 3.

    Raises:
        ValueError: ``size`` is out of range.

    Source:
        Mehr and Schroeder, "Six Pixels to Kevin Bacon", the low-pass filter.
    """

    naming: ClassVar[str] = "mean{0.size}"
    size: int = 3

    def __post_init__(self) -> None:
        check_odd("size", self.size, _LARGEST)

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """The smoothed images."""
        if self.size == 3 and images.dtype != torch.float64:
            return ops.box_blur(images)
        return _separable(images, (1 / self.size,) * self.size)


@dataclass(frozen=True, kw_only=True)
class GaussianBlur(Wraps):
    r"""Convolve each channel with a Gaussian window of weights that sum to 1.

    .. math:: w_{a,b} \propto e^{-(a^2 + b^2) / 2\sigma^2}, \qquad |a|, |b| \le (s-1)/2

    The border is repeated outwards (**choice**, as for the mean filter: constant images stay what they are).

    Attributes:
        size: ``s``, odd, in [3, 31]; the paper's is 5.
        sigma: In pixels, in (0, 31]; the paper's is 2.

    Raises:
        ValueError: A field is out of range.

    Source:
        Zhong and Deng 2020, "Towards transferable adversarial attack against deep face recognition", table VI (lower
        part).
    """

    naming: ClassVar[str] = "gauss{0.size}-{0.sigma:g}"
    size: int = 5
    sigma: float = 2.0

    def __post_init__(self) -> None:
        check_odd("size", self.size, _LARGEST)
        check_range("sigma", self.sigma, 0, _LARGEST, positive=True)

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """The smoothed images."""
        half = self.size // 2
        weights = [math.exp(-0.5 * (a / self.sigma) ** 2) for a in range(-half, half + 1)]
        return _separable(images, tuple(w / sum(weights) for w in weights))


@dataclass(frozen=True, kw_only=True)
class Median(Wraps):
    r"""Replace each pixel by the median of a square window around it, channel by channel.

    The border is repeated outwards. The gradient goes to the pixel that is the median: of equal ones to the first.

    Attributes:
        size: Of the window, odd, in [3, 7].

    Raises:
        ValueError: ``size`` is out of range.

    Source:
        Xu et al. 2018, "Feature squeezing: detecting adversarial examples in deep neural networks", section III-C.
    """

    naming: ClassVar[str] = "median{0.size}"
    size: int = 3

    def __post_init__(self) -> None:
        check_odd("size", self.size, 7)

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """The filtered images."""
        height, width = images.shape[2:]
        padded = _padded(images, self.size // 2)
        windows = [padded[:, :, i : i + height, j : j + width] for i in range(self.size) for j in range(self.size)]
        # stable, so that every device picks the same one of equal pixels
        return torch.stack(windows).sort(dim=0, stable=True).values[self.size**2 // 2]


@dataclass(frozen=True, kw_only=True)
class BitDepth(Wraps):
    r"""Round each value to one of ``2**bits`` evenly spaced levels of [0, 1].

    .. math:: y = \frac{\mathrm{round}((2^b - 1)\,x)}{2^b - 1}

    The gradient is that of the identity.

    Attributes:
        bits: ``b``, in [1, 8].

    Raises:
        ValueError: ``bits`` is out of range.

    Source:
        Xu et al. 2018, "Feature squeezing: detecting adversarial examples in deep neural networks", section III-B.
    """

    naming: ClassVar[str] = "bits{0.bits}"
    bits: int = 4

    def __post_init__(self) -> None:
        check_int("bits", self.bits, 1, 8)

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """The coarsened images."""
        steps = 2**self.bits - 1
        return straight_through((images.detach() * steps).round() / steps, images)


def _padded(images: Tensor, half: int) -> Tensor:
    """The images with their border repeated ``half`` pixels outwards.

    By copies whose gradients are sums: on a GPU that of PyTorch's padding is added up in an order that changes.
    """
    top, bottom = (images[:, :, i : i + 1].expand(-1, -1, half, -1) for i in (0, images.shape[2] - 1))
    rows = torch.cat((top, images, bottom), dim=2)
    left, right = (rows[:, :, :, j : j + 1].expand(-1, -1, -1, half) for j in (0, images.shape[3] - 1))
    return torch.cat((left, rows, right), dim=3)


def _separable(images: Tensor, weights: tuple[float, ...]) -> Tensor:
    """The windows' weighted sums, columns first; shifted additions: the same bits in any batch."""
    height, width = images.shape[2:]
    padded = _padded(images, len(weights) // 2)
    rows = sum((padded[:, :, i : i + height] * w for i, w in enumerate(weights)), padded.new_zeros(()))
    return sum((rows[:, :, :, j : j + width] * w for j, w in enumerate(weights)), padded.new_zeros(()))
