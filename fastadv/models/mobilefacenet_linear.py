"""MobileFaceNet with PReLU and a linear embedding (Chen et al. 2018), in TreB1eN's published layout."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

LAYERS = (
    "conv_23",
    *(f"conv_3.model.{i}" for i in range(4)),
    "conv_34",
    *(f"conv_4.model.{i}" for i in range(6)),
    "conv_45",
    *(f"conv_5.model.{i}" for i in range(2)),
)


def _conv(
    inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, linear: bool = False
) -> nn.Sequential:
    """Convolution (3×3 ones padded), BN and, unless it is linear, PReLU."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(inputs, outputs, kernel, stride, int(kernel == 3), groups=groups, bias=False),
        bn=nn.BatchNorm2d(outputs),
    )
    if not linear:
        layers["prelu"] = nn.PReLU(outputs)
    return nn.Sequential(layers)


class _Bottleneck(nn.Module):
    """1×1 expansion, depthwise 3×3, linear 1×1 projection; residual where the stride is 1."""

    def __init__(self, inputs: int, outputs: int, hidden: int, *, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.conv = _conv(inputs, hidden)
        self.conv_dw = _conv(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = _conv(hidden, outputs, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.conv_dw(self.conv(x)))
        return x + y if self.residual else y


class _Residual(nn.Module):
    """Bottlenecks of one width, one after the other."""

    def __init__(self, channels: int, hidden: int, repeats: int) -> None:
        super().__init__()
        self.model = nn.Sequential(*(_Bottleneck(channels, channels, hidden, stride=1) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class MobileFaceNetLinear(nn.Module):
    """MobileFaceNet: `(N, 3, 112, 112)` normalised BGR images to `(N, 512)` features; 1.20 M parameters.

    Parameter names of `model_mobilefacenet.pth` of TreB1eN/InsightFace_Pytorch, which was trained on BGR images: the
    global depthwise convolution is followed by a linear layer without bias and a batch norm.

    Source: Chen et al. 2018, "MobileFaceNets", table 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 3, stride=2)
        self.conv2_dw = _conv(64, 64, 3, groups=64)
        self.conv_23 = _Bottleneck(64, 64, 128, stride=2)
        self.conv_3 = _Residual(64, 128, 4)
        self.conv_34 = _Bottleneck(64, 128, 256, stride=2)
        self.conv_4 = _Residual(128, 256, 6)
        self.conv_45 = _Bottleneck(128, 128, 512, stride=2)
        self.conv_5 = _Residual(128, 256, 2)
        self.conv_6_sep = _conv(128, 512)
        self.conv_6_dw = _conv(512, 512, 7, groups=512, linear=True)
        self.linear = nn.Linear(512, 512, bias=False)
        self.bn = nn.BatchNorm1d(512)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_3(self.conv_23(self.conv2_dw(self.conv1(x))))
        x = self.conv_5(self.conv_45(self.conv_4(self.conv_34(x))))
        x = self.conv_6_dw(self.conv_6_sep(x))
        return self.bn(self.linear(x.flatten(1)))
