"""Inception-ResNet-v1 (Szegedy et al. 2017), the network of FaceNet's open checkpoints; facenet-pytorch's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPS = 1e-3

LAYERS = (
    *(f"repeat_1.{i}" for i in range(5)),
    "mixed_6a",
    *(f"repeat_2.{i}" for i in range(10)),
    "mixed_7a",
    *(f"repeat_3.{i}" for i in range(5)),
    "block8",
)

_Kernel = int | tuple[int, int]


class _Conv(nn.Module):
    """Convolution, BN, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: _Kernel, *, stride: int = 1, padding: _Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_EPS)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class _Branches(nn.Module):
    """Every branch reads the same maps; their outputs are joined along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.count = len(branches)
        for i, branch in enumerate(branches):
            self.add_module(f"branch{i}", branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, f"branch{i}")(x) for i in range(self.count)], 1)


class _Residual(_Branches):
    """`relu(x + scale · (W · branches(x) + b))`; the last block of all has no ReLU."""

    def __init__(self, inputs: int, joined: int, scale: float, *branches: nn.Module, relu: bool = True) -> None:
        super().__init__(*branches)
        self.scale = scale
        self.conv2d = nn.Conv2d(joined, inputs, 1)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2d(super().forward(x)) * self.scale + x)


def _block35() -> _Residual:
    return _Residual(
        256,
        96,
        0.17,
        _Conv(256, 32, 1),
        nn.Sequential(_Conv(256, 32, 1), _Conv(32, 32, 3, padding=1)),
        nn.Sequential(_Conv(256, 32, 1), _Conv(32, 32, 3, padding=1), _Conv(32, 32, 3, padding=1)),
    )


def _crossed(inputs: int, width: int, length: int, scale: float, *, relu: bool = True) -> _Residual:
    """A block whose second branch has a row of weights, and then a column, in place of a square."""
    half = length // 2
    narrow = _Conv(inputs, width, 1)  # drawn first, as its place among the branches says
    crossed = nn.Sequential(
        _Conv(inputs, width, 1),
        _Conv(width, width, (1, length), padding=(0, half)),
        _Conv(width, width, (length, 1), padding=(half, 0)),
    )
    return _Residual(inputs, 2 * width, scale, narrow, crossed, relu=relu)


def _mixed_6a() -> _Branches:
    return _Branches(
        _Conv(256, 384, 3, stride=2),
        nn.Sequential(_Conv(256, 192, 1), _Conv(192, 192, 3, padding=1), _Conv(192, 256, 3, stride=2)),
        nn.MaxPool2d(3, 2),
    )


def _mixed_7a() -> _Branches:
    return _Branches(
        nn.Sequential(_Conv(896, 256, 1), _Conv(256, 384, 3, stride=2)),
        nn.Sequential(_Conv(896, 256, 1), _Conv(256, 256, 3, stride=2)),
        nn.Sequential(_Conv(896, 256, 1), _Conv(256, 256, 3, padding=1), _Conv(256, 256, 3, stride=2)),
        nn.MaxPool2d(3, 2),
    )


class InceptionResNetV1(nn.Module):
    """Inception-ResNet-v1: `(N, 3, 160, 160)` normalised images to `(N, 512)` features; 23.48 M parameters.

    Parameter names of the published `20180402-114759-vggface2.pt` (LFW 99.65%) and `20180408-102900-casia-webface.pt`
    (99.05%) of timesler/facenet-pytorch, converted from davidsandberg/facenet. Their `logits` (8,631 and 10,575
    identities) become the class head; like those of the published network, they read the features before the L2
    normalisation.

    Source: Szegedy et al. 2017, "Inception-v4, Inception-ResNet and the impact of residual connections on learning",
        figures 10 to 15, with the scales of the residuals and the widths of the published network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = _Conv(3, 32, 3, stride=2)
        self.conv2d_2a = _Conv(32, 32, 3)
        self.conv2d_2b = _Conv(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, 2)
        self.conv2d_3b = _Conv(64, 80, 1)
        self.conv2d_4a = _Conv(80, 192, 3)
        self.conv2d_4b = _Conv(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(_block35() for _ in range(5)))
        self.mixed_6a = _mixed_6a()
        self.repeat_2 = nn.Sequential(*(_crossed(896, 128, 7, 0.10) for _ in range(10)))
        self.mixed_7a = _mixed_7a()
        self.repeat_3 = nn.Sequential(*(_crossed(1792, 192, 3, 0.20) for _ in range(5)))
        self.block8 = _crossed(1792, 192, 3, 1.0, relu=False)
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(self.maxpool_3a(x))))
        x = self.mixed_7a(self.repeat_2(self.mixed_6a(self.repeat_1(x))))
        x = self.block8(self.repeat_3(x))
        return self.last_bn(self.last_linear(x.mean((2, 3))))
