"""SphereFace-20 and -64 of CosFace (Wang et al. 2018), in the layout of its PyTorch port."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

_CHANNELS = (3, 64, 128, 256, 512)
_UNITS = {20: (1, 2, 4, 1), 64: (3, 7, 16, 3)}  # residual units of each stage


def layers(depth: int) -> tuple[str, ...]:
    """The names of each stage's first activation and of its residual units, shallow to deep.

    Args:
        depth: 20 or 64.
    """
    return tuple(f"layer{i}.{j + 1}" for i, units in enumerate(_UNITS[depth], start=1) for j in range(units + 1))


class _Unit(nn.Module):
    """`x + prelu(conv(prelu(conv(x))))`, without biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.prelu1 = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.prelu2 = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.prelu2(self.conv2(self.prelu1(self.conv1(x))))


class CosFaceSphere(nn.Module):
    """SphereFace: `(N, 3, 112, 96)` normalised images to `(N, 512)` features; 22.67 M (20) or 47.89 M parameters (64).

    Parameter names of `ACC99.28.pth` and the other checkpoints of MuggleWang/CosFace_pytorch. Its images are 112 high
    and 96 wide, aligned to the five points of ArcFace less 8 pixels in x.

    Sources: Wang et al. 2018, "CosFace: large margin cosine loss for deep face recognition", section 4.1; Liu et al.
        2017, "SphereFace", table 2 (20 and 64 layers).

    Args:
        depth: 20 or 64.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, 2, padding=1), nn.PReLU(outputs), *(_Unit(outputs) for _ in range(units))
            )
            for (inputs, outputs), units in zip(pairwise(_CHANNELS), _UNITS[depth], strict=True)
        )
        self.fc = nn.Linear(512 * 7 * 6, 512)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).flatten(1))
