"""Inputs of the feature and noise operations, made from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastadv.testing.cases import SPECIALS, arrange


@dataclass(frozen=True, kw_only=True)
class FeatureCase:
    """A batch of feature maps or images and the key of its random numbers.

    ``held``: seed and ticks are tensors, a tick for each image. ``layout``: see :func:`fastadv.testing.cases.arrange`.
    """

    shape: tuple[int, ...]
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    special: bool = False
    held: bool = False
    seed: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """Readable, for test ids."""
        parts = ["x".join(map(str, self.shape)), self.layout, str(self.dtype).removeprefix("torch.")]
        return "-".join(parts + [word for word, on in (("special", self.special), ("held", self.held)) if on])

    def _draw(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + sum(self.shape))

    def make(self, device: str = "cpu") -> Tensor:
        """The map; the same values on every device."""
        draw = self._draw()
        value = torch.randn(self.shape, generator=draw)
        if self.special and value.numel():
            flat = value.view(-1)
            flat[torch.randperm(flat.numel(), generator=draw)[: len(SPECIALS)]] = torch.tensor(SPECIALS)[: flat.numel()]
        return arrange(value.to(self.dtype), self.layout, device)

    def key(self, device: str = "cpu") -> dict[str, Any]:
        """Seed, ids, tick and layer; two images share their id."""
        ids = torch.randint(0, 2**62, (self.shape[0],), generator=self._draw())
        ids[-1:] = ids[:1]
        values: dict[str, Any] = {"seed": 2**63 + 11, "ids": ids.to(device), "tick": 5, "layer": 3}
        if self.held:
            values["seed"] = torch.tensor(2**63 + 11 - 2**64, device=device)
            values["tick"] = torch.arange(self.shape[0], device=device) % 2 + 2**20 - 2
        return values

    def parameters(self, device: str = "cpu") -> dict[str, Tensor]:
        """Scale, shift and slope of every channel."""
        draw = self._draw()
        names = ("scale", "shift", "slope")
        return {name: torch.randn(self.shape[1], generator=draw).to(device) for name in names}


_HALVES = (torch.bfloat16, torch.float16)

#: Maps (N, C, ...); planes that are and are not multiples of 4, more channels than a kernel takes at a time.
FEATURE_CASES: tuple[FeatureCase, ...] = (
    FeatureCase(shape=(1, 1, 1, 1)),
    FeatureCase(shape=(0, 3, 5, 7)),
    FeatureCase(shape=(2, 3, 0, 7)),
    FeatureCase(shape=(5, 17), held=True),
    FeatureCase(shape=(3, 5, 7, 9), special=True),
    FeatureCase(shape=(3, 5, 7, 9), layout="channels_last", special=True, held=True),
    FeatureCase(shape=(2, 3, 8, 9), layout="columns"),
    FeatureCase(shape=(2, 4, 6, 7), layout="channels_last"),
    FeatureCase(shape=(2, 67, 3, 3), layout="channels_last"),
    FeatureCase(shape=(2, 80, 4, 4), layout="channels_last", held=True),
    FeatureCase(shape=(2, 8, 1, 5), layout="channels_last"),
    FeatureCase(shape=(2, 8, 8, 8), layout="offset", special=True),
    FeatureCase(shape=(2, 3, 27, 29), held=True),
    *(FeatureCase(shape=(3, 4, 8, 8), dtype=dtype, special=True) for dtype in _HALVES),
    *(FeatureCase(shape=(2, 8, 6, 6), dtype=dtype, layout="channels_last", held=True) for dtype in _HALVES),
    *(FeatureCase(shape=(2, 5, 3, 5), dtype=dtype, layout="channels_last", special=True) for dtype in _HALVES),
    FeatureCase(shape=(2, 67, 3, 5), dtype=torch.bfloat16, layout="channels_last", special=True, held=True),
    FeatureCase(shape=(2, 578, 2, 4), dtype=torch.bfloat16, layout="channels_last"),
)

#: Those that are float32 images of four dimensions or fewer.
NOISE_CASES: tuple[FeatureCase, ...] = tuple(case for case in FEATURE_CASES if case.dtype == torch.float32)
#: Those that have height and width.
IMAGE_CASES: tuple[FeatureCase, ...] = tuple(case for case in FEATURE_CASES if len(case.shape) == 4)
