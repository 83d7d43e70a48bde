"""Noisy and clean patches, and what a denoiser gains: functions of the seed, the epoch and the image alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv import ops
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource
from fastadv.models import fixed_batches
from fastadv.models.red import REDNet
from fastadv.ops import philox
from fastadv.training.batches import at
from fastadv.training.denoiser_config import DenoiserConfig

SIGMAS = (0.025, 0.05, 0.1)
"""The noise that denoisers are measured at."""

_PATCH_LAYER, _NOISE_LAYER, _HELD_LAYER = 17, 18, 19
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class HeldImages:
    """Images that a denoiser is measured on and not trained on.

    Attributes:
        source: The faces.
        names: Which of them.
    """

    source: FaceSource
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a denoiser does to images with noise of one size.

    Attributes:
        sigma: The noise's standard deviation, pixels in [0, 1].
        noisy: Mean over the images of the PSNR of the noisy image, in dB.
        denoised: Mean PSNR of what the denoiser makes of it.
    """

    sigma: float
    noisy: float
    denoised: float

    @property
    def decibels(self) -> float:
        """Denoised minus noisy."""
        return self.denoised - self.noisy


def draw(images: Tensor, ids: Tensor, config: DenoiserConfig, epoch: int) -> tuple[Tensor, Tensor]:
    """A clean patch of each image, half of them mirrored, and the same with noise.

    Args:
        images: (N, 3, H, W), at least as large as a patch.
        ids: (N,) int64, on the images' device.
        config: Its `patch`, `sigma_min`, `sigma_max` and `seed`.
        epoch: Counted from 0.

    Returns:
        Clean and noisy patches, (N, 3, P, P), channels-last.
    """
    side, device = config.patch, images.device
    drawn = philox.uniform(config.seed, ids, epoch, _PATCH_LAYER, (4,))
    room = torch.tensor([images.shape[2] - side + 1, images.shape[3] - side + 1], device=device)
    corners = (drawn[:, :2] * room).floor().long()
    steps = torch.arange(side, device=device)
    rows, columns = corners[:, :1] + steps, corners[:, 1:] + steps
    columns = torch.where(drawn[:, 2:3] < 0.5, columns.flip(1), columns)
    clean = at(images, rows, columns).contiguous(memory_format=torch.channels_last)
    sigma = config.sigma_min + (config.sigma_max - config.sigma_min) * drawn[:, 3]
    return clean, noisy(clean, ids, sigma, seed=config.seed, tick=epoch, layer=_NOISE_LAYER)


def noisy(
    images: Tensor, ids: Tensor, sigma: float | Tensor, *, seed: int, tick: int = 0, layer: int = _HELD_LAYER
) -> Tensor:
    """The images with Gaussian noise of a standard deviation, clipped to [0, 1]; see `fastadv.ops.add_noise_`."""
    return ops.add_noise_(
        torch.empty_like(images),
        scale=sigma,
        seed=seed,
        ids=ids,
        tick=tick,
        layer=layer,
        kind="gaussian",
        origin=images,
    )


def psnr(images: Tensor, clean: Tensor) -> Tensor:
    r"""Peak signal-to-noise ratio of each image, :math:`-10 \log_{10} \operatorname{mean} (y - x)^2` dB, (N,) float64.

    Source: Mao, Shen and Yang 2016, section 4.
    """
    return -10 * (images.double() - clean.double()).square().flatten(1).mean(1).clamp(min=1e-20).log10()


def measure(network: REDNet, held: HeldImages, *, seed: int = 0, progress: Progress = silent) -> tuple[Gain, ...]:
    """The gain on held-out images, whole ones, in batches of a fixed shape.

    Args:
        network: Anything trained; as it is.
        held: The images.
        seed: Of the noise.
        progress: Told of the images.
    """
    totals = {sigma: [0.0, 0.0] for sigma in SIGMAS}
    for begin in range(0, len(held.names), _BATCH):
        with held.source.stream(held.names[begin : begin + _BATCH]) as faces:
            found = list(faces)
        images = torch.stack([face.image for face in found]).to(network.device)
        images = images.contiguous(memory_format=torch.channels_last)
        ids = torch.tensor([face.id for face in found], device=network.device)
        for sigma, total in totals.items():
            given = noisy(images, ids, sigma, seed=seed)
            with torch.no_grad():
                made = fixed_batches(network, given, _BATCH).clamp(0, 1)
            total[0] += float(psnr(given, images).sum())
            total[1] += float(psnr(made, images).sum())
        progress("validating", min(begin + _BATCH, len(held.names)), len(held.names))
    count = len(held.names)
    return tuple(Gain(sigma=s, noisy=a / count, denoised=b / count) for s, (a, b) in totals.items())
