"""Inputs of the operations over several layers: feature maps, features and centroids, made from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.testing.cases import arrange

#: Bottleneck outputs of SE-ResNet-50 at 224 x 224: channels and side of each of the 16.
SE_RESNET_50: tuple[tuple[int, int], ...] = ((256, 56),) * 3 + ((512, 28),) * 4 + ((1024, 14),) * 6 + ((2048, 7),) * 3


@dataclass(frozen=True, kw_only=True)
class LayerCase:
    """Maps of the given (channels, height, width), and centroids for them."""

    images: int
    layers: tuple[tuple[int, int, int], ...]
    centroids: int = 5
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """Readable, for test ids."""
        sizes = "+".join("x".join(map(str, layer)) for layer in self.layers[:3])
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.images}x({sizes})-k{self.centroids}-{self.layout}-{kind}"

    def maps(self, device: str = "cpu") -> list[Tensor]:
        """Feature maps, as after a ReLU of shifted values: every mean is well away from 0."""
        draw = torch.Generator().manual_seed(self.images + len(self.layers))
        made = [(torch.randn(self.images, *layer, generator=draw) + 0.3).relu() for layer in self.layers]
        return [arrange(value.to(self.dtype), self.layout, device) for value in made]

    def features(self, device: str = "cpu") -> list[Tensor]:
        """Features (N, C_l)."""
        draw = torch.Generator().manual_seed(7 + self.images)
        return [torch.randn(self.images, c, generator=draw).to(device) for c, _, _ in self.layers]

    def against(self, device: str = "cpu") -> list[Tensor]:
        """Centroids (K, C_l)."""
        draw = torch.Generator().manual_seed(11 + self.centroids)
        return [torch.randn(self.centroids, c, generator=draw).to(device) for c, _, _ in self.layers]


#: More layers than one launch takes.
MANY_LAYERS = LayerCase(images=2, layers=tuple((1 + i % 3, 1 + i % 2, 2) for i in range(53)), centroids=3)

LAYER_CASES: tuple[LayerCase, ...] = (
    LayerCase(images=1, layers=((1, 1, 1),), centroids=1),
    LayerCase(images=0, layers=((3, 5, 7), (4, 1, 1))),
    LayerCase(images=3, layers=((5, 7, 9), (17, 3, 1), (33, 1, 1), (2, 1, 6)), centroids=7),
    LayerCase(images=2, layers=((70, 5, 5), (130, 2, 3)), centroids=21, layout="channels_last"),
    LayerCase(images=2, layers=((5, 4, 6), (1, 3, 5)), layout="columns"),
    LayerCase(images=2, layers=((6, 4, 8), (1, 3, 5)), layout="offset"),
    LayerCase(images=1, layers=((2, 37, 41), (1, 23, 23)), centroids=2),
    LayerCase(images=1, layers=((1, 9, 9), (3, 17, 19)), centroids=2, layout="channels_last"),
    LayerCase(images=35, layers=((4, 2, 2),), centroids=9),
    *(
        LayerCase(images=2, layers=((5, 7, 9), (8, 4, 4), (20, 1, 1)), layout=layout, dtype=dtype)
        for layout in ("contiguous", "channels_last")
        for dtype in (torch.bfloat16, torch.float16)
    ),
)
