"""A plain convolutional network: 3×3 convolutions and max pooling, no shortcuts."""

from __future__ import annotations

from torch import Tensor, nn

_CHANNELS = (16, 32, 64, 96)

LAYERS = tuple(f"stages.{i}" for i in range(len(_CHANNELS)))


class _Stage(nn.Module):
    """Convolution, BN, ReLU, 2×2 max pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.bn(self.conv(x))))


class SmallVGG(nn.Module):
    """`(N, 3, 112, 112)` normalised images to `(N, 128)` features.

    In the manner of Simonyan and Zisserman 2015 (VGG), as in Parkhi et al. 2015, "Deep face recognition"; batch norm
    after each convolution. The first convolution has stride 2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, _CHANNELS[0], 5, 2, padding=2, bias=False)
        self.bn = nn.BatchNorm2d(_CHANNELS[0])
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        stages = [_Stage(a, b) for a, b in zip((_CHANNELS[0], *_CHANNELS[:-1]), _CHANNELS, strict=True)]
        stages[0].pool = nn.Identity()  # type: ignore[assignment]
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(_CHANNELS[-1] * 9, 128, bias=False)
        self.features = nn.BatchNorm1d(128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn(self.conv(x))))
        return self.features(self.fc(self.stages(x).flatten(1)))
