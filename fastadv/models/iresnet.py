"""IR-ResNet (Deng et al. 2019, "ArcFace"): BN-Conv-BN-PReLU-Conv-BN blocks, the published names."""

from __future__ import annotations

from torch import Tensor, nn

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
_CHANNELS = (64, 128, 256, 512)
_EPS = 1e-5


def layers(depth: int) -> tuple[str, ...]:
    """The names of the residual blocks, shallow to deep.

    Args:
        depth: 18, 34, 50 or 100.
    """
    return tuple(f"layer{i}.{j}" for i, n in enumerate(_BLOCKS[depth], start=1) for j in range(n))


class _Block(nn.Module):
    """BN-Conv-BN-PReLU-Conv-BN beside the shortcut, the stride in its last convolution or, ``early``, in its first."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, early: int = 1, eps: float = _EPS) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, eps=eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, early, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=eps)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, eps=eps)
        self.downsample: nn.Module | None = None
        if stride * early != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride * early, bias=False), nn.BatchNorm2d(outputs, eps=eps)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """IR-ResNet: `(N, 3, 112, 112)` normalised images to `(N, 512)` features.

    Parameters: 24.02 M (18), 34.14 M (34), 43.59 M (50), 65.15 M (100). Source: Deng et al. 2019, section
    3.1; parameter names of the published checkpoints of ArcFace (insightface's arcface_torch), MagFace and ElasticFace.

    Args:
        depth: 18, 34, 50 or 100.
        eps: of the batch norms; MagFace's is 2e-5.

    Raises:
        ValueError: for another depth.
    """

    def __init__(self, depth: int, *, eps: float = _EPS) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ArgumentError(f"depth: expected one of {', '.join(map(str, _BLOCKS))}, got {brief(depth)}")
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps=eps)
        self.prelu = nn.PReLU(64)
        inputs = 64
        stages = []
        for outputs, repeats in zip(_CHANNELS, _BLOCKS[depth], strict=True):
            blocks = [_Block(inputs, outputs, 2, eps=eps)]
            blocks += [_Block(outputs, outputs, eps=eps) for _ in range(repeats - 1)]
            stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(512, eps=eps)
        self.dropout = nn.Dropout(0.0)  # no weights: it keeps the published structure
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(self.bn2(x).flatten(1))
        return self.features(self.fc(x))
