"""Noise2Clean: a network that removes noise, and with it the attack."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.fields import check_type
from fastadv.defences.compose import Wraps
from fastadv.models.red import REDNet, load_denoiser
from fastadv.surrogates.key import StepKey


@dataclass(frozen=True, kw_only=True)
class Noise2Clean(Wraps):
    r"""Pass the images through a denoising auto-encoder, RED30, trained to remove Gaussian noise.

    .. math:: y = \min(\max(\mathrm{RED}(x), 0), 1)

    Deterministic, with the network's own gradient (none where the clip holds). The network computes in the type of its
    weights, whatever the images' type and the face model's precision. The defence keeps a frozen copy of its own, and a
    defended model another one, which follows it from device to device.

    Attributes:
        network: A RED network; the shipped one, of 30 layers, was trained on synthetic faces.
        label: What reports call it.

    Raises:
        TypeError: ``network`` is no ``REDNet``, or ``label`` no text.
        CheckpointError: The shipped weights are missing or damaged.

    Source:
        Mehr and Schroeder, "Six Pixels to Kevin Bacon", deep image restoration (Noise2Clean); the network: Mao, Shen
        and Yang 2016, "Image restoration using very deep convolutional encoder-decoder networks with symmetric skip
        connections".
    """

    network: REDNet = field(default_factory=load_denoiser, repr=False)
    label: str = "noise2clean"

    def __post_init__(self) -> None:
        check_type("network", self.network, REDNet)
        if not isinstance(self.label, str) or not self.label:
            raise ArgumentTypeError(f"label: expected a non-empty str, got {brief(self.label)}")
        # a value: what is trained on afterwards, or moved, is another network
        object.__setattr__(self, "network", copy.deepcopy(self.network).eval().requires_grad_(False))

    @classmethod
    def from_file(cls, weights: str | os.PathLike[str]) -> Noise2Clean:
        """The defence with weights of ``fastadv train denoiser``; its label names folder and file.

        Raises:
            CheckpointError: The file is missing, damaged, no safetensors file, or not of a RED network.
        """
        return cls(
            network=load_denoiser(weights), label=f"noise2clean:{'/'.join(Path(weights).with_suffix('').parts[-2:])}"
        )

    @property
    def name(self) -> str:
        """The label."""
        return self.label

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """The images without noise, in their type and memory order.

        Raises:
            ValueError: The images are on another device than the network; a defended model takes care of that.
        """
        network = self.network
        if images.device != network.device:
            raise ArgumentError(f"images: expected ones on the network's device {network.device}, got {images.device}")
        made: Tensor = network(images.to(network.dtype)).clamp(0, 1).to(images.dtype)
        channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        return made.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
