"""What the training of a denoiser depends on."""

from __future__ import annotations

from dataclasses import dataclass

from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_least, check_positive
from fastadv.models.red import check_shape
from fastadv.models.training_loop import annealed


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    r"""How to train a denoiser. Every field but the last decides about the weights that come out.

    A step draws one patch of each image, :math:`\sigma \sim U[\text{sigma\_min}, \text{sigma\_max}]` and
    :math:`z \sim N(0, I)`, and lowers with Adam

    .. math:: L = \frac{1}{N} \sum_i \operatorname{mean}\big(\mathrm{RED}(x_i + \sigma_i z_i) - x_i\big)^2

    **choice**: the noisy image is clipped to the pixel range, as those are that the defence will see; the mean over
    pixels instead of the paper's sum, which Adam does not tell apart. One size of noise by default: over a range that
    begins at 0 a network learns to see how much noise there is, finds next to none in an attacked image, and leaves the
    attack alone.

    Attributes:
        width: Maps of every inner layer; the paper's is 64.
        layers: Even; the paper's are 10, 20 and 30.
        stride: 1 as in the paper, or 2 for a quarter of the arithmetic.
        sigma_min: Smallest standard deviation of the noise, pixels in [0, 1].
        sigma_max: Largest; the paper's are 10/255 to 70/255.
        patch: Side of the patches, at least 8; the paper's is 50.
        epochs: Passes over the images.
        batch: Images a step; the rest of an epoch that does not fill a batch is left out.
        lr: Peak learning rate: reached in the first 5 % of the steps, then lowered to 0 along half a cosine.
        seed: Of the first weights, the order, the patches and the noise.
        checkpoint_steps: Also save the state within an epoch, every so many steps; None saves after epochs only.

    Raises:
        ValueError: A field out of its range, with the name, the value and what was expected.

    Source:
        Mao, Shen and Yang 2016, "Image restoration using very deep convolutional encoder-decoder networks with
        symmetric skip connections", eq. 3 and section 4.
    """

    width: int = 64
    layers: int = 30
    stride: int = 1
    sigma_min: float = 0.1
    sigma_max: float = 0.1
    patch: int = 56
    epochs: int = 20
    batch: int = 32
    lr: float = 1e-3
    seed: int = 0
    checkpoint_steps: int | None = None

    def __post_init__(self) -> None:
        check_shape(width=self.width, layers=self.layers, stride=self.stride)
        for name, least in (("patch", 8), ("epochs", 1), ("batch", 1)):
            check_least(name, getattr(self, name), least)
        check_least("checkpoint_steps", 1 if self.checkpoint_steps is None else self.checkpoint_steps, 1)
        check_positive("lr", self.lr)
        if not 0 < self.sigma_max <= 1:
            raise ArgumentError(f"sigma_max: expected a number in (0, 1], got {self.sigma_max}")
        if not 0 <= self.sigma_min <= self.sigma_max:
            raise ArgumentError(
                f"sigma_min: expected a number in [0, sigma_max={self.sigma_max:g}], got {self.sigma_min}"
            )
        if not 0 <= self.seed < 1 << 63:
            raise ArgumentError(f"seed: expected a number in [0, 2^63), got {self.seed}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of so many."""
        return annealed(self.lr, step, steps, warmup=0.05)
