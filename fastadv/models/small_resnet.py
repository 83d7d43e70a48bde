"""A small IR-ResNet: the residual blocks of Deng et al. 2019 (BN-Conv-BN-PReLU-Conv-BN), few and narrow."""

from __future__ import annotations

from torch import Tensor, nn

from fastadv.models.iresnet import _Block  # by this name, which is a part of a saved network's identity

_CHANNELS = (16, 32, 64)

LAYERS = tuple(f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1))


class SmallResNet(nn.Module):
    """`(N, 3, 112, 112)` normalised images to `(N, 128)` features.

    A stride and a max pooling before the first block, and a block's stride in its first convolution rather than in its
    second: a small part of the arithmetic.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, _CHANNELS[0], 3, 2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(_CHANNELS[0])
        self.prelu = nn.PReLU(_CHANNELS[0])
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        inputs = _CHANNELS[0]
        stages = []
        for outputs in _CHANNELS:
            stride = 1 if outputs == inputs else 2
            stages.append(nn.Sequential(_Block(inputs, outputs, early=stride), _Block(outputs, outputs)))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.last_bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs * 49, 128, bias=False)
        self.features = nn.BatchNorm1d(128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.prelu(self.bn(self.conv(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.features(self.fc(self.last_bn(x).flatten(1)))
