"""MobileFaceNet with ReLU6 (Chen et al. 2018), in the layout of foamliu's ArcFace checkpoint."""

from __future__ import annotations

from torch import Tensor, nn

# Expansion t, channels c, repeats n, stride s of the first repeat (Chen et al. 2018, table 1).
_TABLE = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))

LAYERS = tuple(f"features.{i}" for i in range(15))


class _ConvBNReLU(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        )


class _Stem(nn.Module):
    """Depthwise 3×3, BN, ReLU, pointwise, BN, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.depthwise(x)))
        return self.relu2(self.bn2(self.pointwise(x)))


class _Bottleneck(nn.Module):
    """1×1 expansion, depthwise 3×3, linear 1×1 projection; residual where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            _ConvBNReLU(inputs, hidden, 1),
            _ConvBNReLU(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.residual else y


class _GlobalDepthwise(nn.Module):
    """The global depthwise convolution that replaces average pooling: one weight per position and channel."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, size, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.depthwise(x))


class MobileFaceNet(nn.Module):
    """MobileFaceNet: `(N, 3, 112, 112)` normalised images to `(N, 128)` features; 1.00 M parameters.

    Source: Chen et al. 2018, "MobileFaceNets", table 1; ReLU6 in place of PReLU as in the published
        checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _ConvBNReLU(3, 64, 3, stride=2)
        self.dw_conv = _Stem(64)
        blocks: list[nn.Module] = []
        channels = 64
        for expansion, outputs, repeats, stride in _TABLE:
            for i in range(repeats):
                blocks.append(_Bottleneck(channels, outputs, expansion=expansion, stride=stride if i == 0 else 1))
                channels = outputs
        self.features = nn.Sequential(*blocks)
        self.conv2 = _ConvBNReLU(channels, 512, 1)
        self.gdconv = _GlobalDepthwise(512, 7)
        self.conv3 = nn.Conv2d(512, 128, 1)
        # Before the flattening rather than after: the same numbers, and it folds into conv3.
        self.bn = nn.BatchNorm2d(128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.dw_conv(self.conv1(x)))
        x = self.gdconv(self.conv2(x))
        return self.bn(self.conv3(x)).flatten(1)
