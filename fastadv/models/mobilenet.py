"""MobileNet-v1 for faces (Howard et al. 2017): depthwise separable convolutions, ended as in ArcFace."""

from __future__ import annotations

from torch import Tensor, nn

# Outputs and stride of the depthwise separable blocks; the first stage begins with a full convolution.
_STAGES = (
    ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)

LAYERS = (*(f"stage1.{i}" for i in range(6)), *(f"stage2.{i}" for i in range(6)), *(f"stage3.{i}" for i in range(2)))


def _full(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6())


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Depthwise 3×3, BN, ReLU6, pointwise, BN, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU6(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class MobileNetV1(nn.Module):
    """MobileNet-v1: `(N, 3, 112, 112)` normalised images to `(N, 512)` features; 16.58 M parameters.

    The first convolution has stride 1, for small images; the last maps are narrowed to 512 channels and connected
    fully. Parameter names of `arcface_mobilenet_v1.pth` of bubbliiiing/arcface-pytorch (ArcFace, CASIA-WebFace,
    LFW 99.11%), less their prefix `arcface.`.

    Source: Howard et al. 2017, "MobileNets", table 1.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = 32
        stages: list[list[nn.Module]] = []
        for table in _STAGES:
            blocks: list[nn.Module] = [] if stages else [_full(3, inputs)]
            for outputs, stride in table:
                blocks.append(_separable(inputs, outputs, stride))
                inputs = outputs
            stages.append(blocks)
        self.stage1, self.stage2, self.stage3 = (nn.Sequential(*blocks) for blocks in stages)
        self.sep = nn.Conv2d(1024, 512, 1, bias=False)
        self.sep_bn = nn.BatchNorm2d(512)
        self.prelu = nn.PReLU(512)
        self.bn2 = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(x)))
        x = self.bn2(self.prelu(self.sep_bn(self.sep(x))))
        return self.features(self.linear(x.flatten(1)))
