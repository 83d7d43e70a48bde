"""A tenth of MobileFaceNet for small machines: linear bottlenecks and a global depthwise convolution."""

from __future__ import annotations

from torch import Tensor, nn

# Expansion, channels, stride of each bottleneck.
_TABLE = ((2, 32, 2), (2, 32, 1), (3, 48, 2), (3, 48, 1), (3, 64, 2), (3, 64, 1))

LAYERS = tuple(f"blocks.{i}" for i in range(len(_TABLE)))


class _Bottleneck(nn.Module):
    """1×1 expansion, depthwise 3×3, linear 1×1 projection; residual where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.prelu1 = nn.PReLU(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.prelu2 = nn.PReLU(hidden)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu1(self.bn1(self.expand(x)))
        y = self.prelu2(self.bn2(self.depthwise(y)))
        y = self.bn3(self.project(y))
        return x + y if self.residual else y


class SmallMobile(nn.Module):
    """`(N, 3, 112, 112)` normalised images to `(N, 128)` features.

    After Chen et al. 2018, "MobileFaceNets": the same kinds of layers, fewer and narrower, on half the resolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, 2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(24)
        self.prelu = nn.PReLU(24)
        self.depthwise = nn.Conv2d(24, 24, 3, 2, padding=1, groups=24, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(24)
        self.depthwise_prelu = nn.PReLU(24)
        blocks: list[nn.Module] = []
        channels = 24
        for expansion, outputs, stride in _TABLE:
            blocks.append(_Bottleneck(channels, outputs, expansion=expansion, stride=stride))
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.widen = nn.Conv2d(channels, 256, 1, bias=False)
        self.widen_bn = nn.BatchNorm2d(256)
        self.widen_prelu = nn.PReLU(256)
        self.pool = nn.Conv2d(256, 256, 4, groups=256, bias=False)
        self.pool_bn = nn.BatchNorm2d(256)
        self.embed = nn.Conv2d(256, 128, 1, bias=False)
        self.embed_bn = nn.BatchNorm2d(128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn(self.conv(x)))
        x = self.blocks(self.depthwise_prelu(self.depthwise_bn(self.depthwise(x))))
        x = self.widen_prelu(self.widen_bn(self.widen(x)))
        x = self.pool_bn(self.pool(x))
        return self.embed_bn(self.embed(x)).flatten(1)
