"""JPEG as a defence: the real codec forward, and a gradient for who attacks through it."""

from __future__ import annotations

import importlib
import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastadv.core.errors import MissingPackageError, UnavailableError
from fastadv.core.fields import check_int, check_one_of
from fastadv.defences.compose import Wraps
from fastadv.defences.straight_through import straight_through
from fastadv.surrogates.key import StepKey

GRADIENTS = ("identity", "kornia")
_SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


@dataclass(frozen=True, kw_only=True)
class Jpeg(Wraps):
    """Store each image as JPEG, and read it again.

    The forward pass is libjpeg's, in memory, of the image rounded to 8 bits; it runs on the host, so an attack
    through it cannot be captured as a CUDA graph. The gradient is a stand-in: that of the identity, or that of
    kornia's differentiable codec at the same image and quality.

    Attributes:
        quality: libjpeg's, in [1, 95]; the paper's is 20.
        subsampling: Of the colours: ``"4:4:4"``, ``"4:2:2"`` or ``"4:2:0"``, what most cameras write.
        gradient: ``"identity"`` (straight through) or ``"kornia"``.

    Raises:
        ValueError: A field is out of range.
        ImportError: ``gradient="kornia"``, and kornia is not installed.

    Source:
        Zhong and Deng 2020, "Towards transferable adversarial attack against deep face recognition", table VI (lower
        part); the gradients: Athalye et al. 2018, section 4.1 (BPDA), and Reich et al. 2024, "Differentiable JPEG: the
        devil is in the details" (kornia's).
    """

    naming: ClassVar[str] = "jpeg{0.quality}"
    on_host: ClassVar[bool] = True
    quality: int = 20
    subsampling: str = "4:2:0"
    gradient: str = "identity"

    def __post_init__(self) -> None:
        check_int("quality", self.quality, 1, 95)
        check_one_of("subsampling", self.subsampling, _SUBSAMPLING)
        check_one_of("gradient", self.gradient, GRADIENTS)
        if self.gradient == "kornia":
            _kornia_codec(torch.full((1, 3, 16, 16), 0.5), self.quality)

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """The decoded images.

        Raises:
            RuntimeError: A CUDA graph is being captured.
        """
        if images.is_cuda and torch.cuda.is_current_stream_capturing():
            raise UnavailableError(
                f"capture: expected False with {self.name}, which runs on the host, got a CUDA graph; use "
                "Engine(capture=False)"
            )
        value = self._coded(images.detach())
        if not (images.requires_grad and torch.is_grad_enabled()):
            return value
        return straight_through(value, images if self.gradient == "identity" else _kornia_codec(images, self.quality))

    def _coded(self, images: Tensor) -> Tensor:
        levels = (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        decoded = np.stack([self._one(level) for level in levels]) if len(levels) else levels
        values = torch.from_numpy(decoded).to(images.device).permute(0, 3, 1, 2).to(images.dtype) / 255
        return torch.empty_like(images).copy_(values)

    def _one(self, level: NDArray[np.uint8]) -> NDArray[np.uint8]:
        buffer = io.BytesIO()
        # optimised Huffman tables change the bytes, not the pixels
        Image.fromarray(level).save(buffer, "JPEG", quality=self.quality, subsampling=_SUBSAMPLING[self.subsampling])
        buffer.seek(0)
        with Image.open(buffer) as image:
            return np.asarray(image)


def _kornia_codec(images: Tensor, quality: int) -> Tensor:
    try:
        enhance = importlib.import_module("kornia.enhance")
    except ImportError as error:
        raise MissingPackageError(
            "gradient: expected the package kornia for 'kornia', got no such package; pip install "
            "kornia, or use 'identity', which needs nothing"
        ) from error
    return enhance.jpeg_codec_differentiable(images, torch.full((1,), float(quality), device=images.device))
