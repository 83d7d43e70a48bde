"""Translation-invariant attacks: the gradient is smoothed before the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.fields import check_one_of

KERNELS = ("gaussian", "linear", "uniform")


@dataclass(frozen=True, kw_only=True)
class TranslationInvariant:
    r"""Convolves the gradient with a kernel, which stands for the mean gradient over shifted images.

    .. math:: g \leftarrow W * g, \qquad W_{ij} = w_i w_j, \qquad \sum_{i=-k}^{k} w_i = 1

    for each image and channel, with zeros outside and ``size = 2k + 1``. ``gaussian``:
    :math:`w_i \propto e^{-i^2 / 2\sigma^2}`; ``linear``: :math:`w_i \propto 1 - |i| / (k + 1)`; ``uniform``: constant.
    The kernel is the product of two one-dimensional ones, and so is the convolution.

    Attributes:
        size: Width of the kernel in pixels, odd; 1 changes nothing. **choice**: 7; the paper's 15 is for images of 299
            pixels, and faces have 112.
        sigma: Standard deviation of the Gaussian in pixels; None: ``k / 3``, so that the kernel ends at three of them,
            as in the authors' experiments.
        kernel: ``"gaussian"``, ``"linear"`` or ``"uniform"``.

    Raises:
        ValueError: A field is out of range, or ``sigma`` is given for another kernel than the Gaussian.

    Source:
        Dong et al. 2019, "Evading defenses to transferable adversarial examples by translation-invariant attacks",
        eq. 7 and section 3.3.
    """

    size: int = 7
    sigma: float | None = None
    kernel: str = "gaussian"

    def __post_init__(self) -> None:
        if not (isinstance(self.size, int) and self.size >= 1 and self.size % 2 == 1):
            raise ArgumentError(f"size: expected an odd number of pixels, at least 1, got {brief(self.size)}")
        check_one_of("kernel", self.kernel, KERNELS)
        if self.sigma is not None and self.kernel != "gaussian":
            raise ArgumentError(
                f"sigma: expected None with kernel={brief(self.kernel)}, since it belongs to the Gaussian "
                f"kernel, got {brief(self.sigma)}"
            )
        if self.sigma is not None and not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ArgumentError(f"sigma: expected None or a positive number of pixels, got {brief(self.sigma)}")

    @property
    def weights(self) -> tuple[float, ...]:
        """``w_{-k} ... w_k``, which sum to 1."""
        half = self.size // 2
        sigma = half / 3 if self.sigma is None else self.sigma
        if half == 0 or self.kernel == "uniform":
            made = [1.0] * self.size
        elif self.kernel == "linear":
            made = [1 - abs(i) / (half + 1) for i in range(-half, half + 1)]
        else:
            made = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-half, half + 1)]
        return tuple(w / math.fsum(made) for w in made)

    def __call__(self, gradient: Tensor) -> Tensor:
        """Smooth a gradient.

        Args:
            gradient: ``(N, C, H, W)``, floating point; not written.

        Returns:
            A tensor like it.

        Raises:
            TypeError: It is not floating point.
            ValueError: It is no batch of images.
        """
        if not gradient.is_floating_point():
            raise ArgumentTypeError(f"gradient: expected a floating-point tensor, got {gradient.dtype}")
        if gradient.dim() != 4:
            raise ArgumentError(f"gradient: expected shape (N, C, H, W), got {tuple(gradient.shape)}")
        half = self.size // 2
        right = self.weights[half:]
        for axis in (2, 3):
            length = gradient.shape[axis]
            made = gradient * right[0]
            # Shifted copies rather than a convolution: five times as fast on a CPU for three channels. A product and a
            # sum, not one fused operation, which would round differently in vector and scalar code.
            for i in range(1, min(half, length - 1) + 1):
                near, far = gradient.narrow(axis, 0, length - i), gradient.narrow(axis, i, length - i)
                made.narrow(axis, i, length - i).add_(near * right[i])
                made.narrow(axis, 0, length - i).add_(far * right[i])
            gradient = made
        return gradient
