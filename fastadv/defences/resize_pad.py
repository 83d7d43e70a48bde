"""Random resizing and padding, a defence by randomness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastadv.core.fields import check_range
from fastadv.defences.compose import Wraps
from fastadv.surrogates.input_diversity import InputDiversity
from fastadv.surrogates.key import StepKey


@dataclass(frozen=True, kw_only=True)
class RandomResizePad(Wraps):
    r"""Shrink each image by a random ratio, and put it at a random place of a black canvas of the old size.

    .. math:: r \sim U[\text{smallest}, 1], \quad d \sim U[0, 1 - r]^2 \cdot (H, W)

    One map and one bilinear interpolation (:class:`fastadv.surrogates.InputDiversity` with nothing else on).
    **choice**: the source enlarges 299 pixels to at most 331, padded; a face model takes one size, so the canvas is
    that size and the image shrinks, by 0.9 at most as 299/331 is.

    Attributes:
        smallest: The smallest ratio, in [0.5, 1]; 1 changes nothing.

    Raises:
        ValueError: ``smallest`` is out of range.

    Source:
        Xie et al. 2018, "Mitigating adversarial effects through randomization", section 3.
    """

    naming: ClassVar[str] = "resize-pad{0.smallest:g}"
    random: ClassVar[bool] = True
    smallest: float = 0.9

    def __post_init__(self) -> None:
        check_range("smallest", self.smallest, 0.5, 1.0)

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """The moved images."""
        return self._moves(images, key)

    @property
    def _moves(self) -> InputDiversity:
        return InputDiversity(resize=(float(self.smallest), 1.0), translate=0.0, rotate=0.0, scale=(1.0, 1.0))
