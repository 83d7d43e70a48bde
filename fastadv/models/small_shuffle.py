"""A small ShuffleNet: half of the channels pass, half are convolved, and the halves are shuffled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CHANNELS = (24, 64, 128, 192)
_REPEATS = (2, 3, 2)

LAYERS = tuple(f"stage{i}.{j}" for i, repeats in enumerate(_REPEATS, start=2) for j in range(repeats))


class _Unit(nn.Module):
    """A unit of ShuffleNet V2: split (or, with a stride, copy), 1×1, depthwise 3×3, 1×1, join, shuffle."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.split = stride == 1
        half = outputs // 2
        entering = half if self.split else inputs
        self.conv1 = nn.Conv2d(entering, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.depthwise = nn.Conv2d(half, half, 3, stride, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module | None = None
        if not self.split:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
                nn.BatchNorm2d(inputs),
                nn.Conv2d(inputs, half, 1, bias=False),
                nn.BatchNorm2d(half),
                nn.ReLU(),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is None:
            passing, x = x.chunk(2, 1)
        else:
            passing = self.shortcut(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn3(self.conv2(self.bn2(self.depthwise(x)))))
        # Channel k of one half comes beside channel k of the other.
        return torch.stack((passing, x), 2).flatten(1, 2)


class SmallShuffle(nn.Module):
    """`(N, 3, 112, 112)` normalised images to `(N, 128)` features.

    After Ma et al. 2018, "ShuffleNet V2"; the last map is averaged over its positions with learned weights per channel,
    as in MobileFaceNet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, _CHANNELS[0], 3, 2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(_CHANNELS[0])
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        stages = []
        for inputs, outputs, repeats in zip(_CHANNELS[:-1], _CHANNELS[1:], _REPEATS, strict=True):
            units = [_Unit(inputs, outputs, 2)] + [_Unit(outputs, outputs, 1) for _ in range(repeats - 1)]
            stages.append(nn.Sequential(*units))
        self.stage2, self.stage3, self.stage4 = stages
        self.gather = nn.Conv2d(_CHANNELS[-1], _CHANNELS[-1], 4, groups=_CHANNELS[-1], bias=False)
        self.gather_bn = nn.BatchNorm2d(_CHANNELS[-1])
        self.fc = nn.Linear(_CHANNELS[-1], 128, bias=False)
        self.features = nn.BatchNorm1d(128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn(self.conv(x))))
        x = self.stage4(self.stage3(self.stage2(x)))
        return self.features(self.fc(self.gather_bn(self.gather(x)).flatten(1)))
