"""SphereFace-20 (Liu et al. 2017): residual units of convolutions and PReLU, no batch norm; the published names."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

_CHANNELS = (64, 128, 256, 512)
_UNITS = (1, 2, 4, 1)  # residual units of each stage

# The outputs of each stage's first convolution and of its residual units.
LAYERS = tuple(
    name
    for i, units in enumerate(_UNITS, start=1)
    for name in (f"relu{i}_1", *(f"sum{i}_{2 * j + 3}" for j in range(units)))
)


class _Sum(nn.Module):
    """A residual unit's output, by a name: the published layout is flat and has none."""

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        return shortcut + branch


class SphereFace20(nn.Module):
    """SphereFace-20: `(N, 3, 112, 112)` normalised BGR images to `(N, 512)` features; 22.67 M parameters.

    Parameter names of the published `sphere20a_20171020.pth` (clcarwin/sphereface_pytorch, LFW 99.22%); its angular
    classifier `fc6` is no part of the features. It was trained on BGR images of 112×96, whose faces are aligned to the
    five points of ArcFace less 8 pixels in x: its image is columns 8 to 103 of an aligned 112×112 face, and it takes
    such a face, as the other networks do.

    Source: Liu et al. 2017, "SphereFace: deep hypersphere embedding for face recognition", table 2 (20 layers).
    """

    def __init__(self) -> None:
        super().__init__()
        for i, (inputs, outputs) in enumerate(pairwise((3, *_CHANNELS)), start=1):
            self._add(f"{i}_1", inputs, outputs, stride=2)
            for j in range(2, 2 * _UNITS[i - 1] + 2):
                self._add(f"{i}_{j}", outputs, outputs, stride=1)
                if j % 2:
                    self.add_module(f"sum{i}_{j}", _Sum())
        self.fc5 = nn.Linear(512 * 7 * 6, 512)

    def _add(self, number: str, inputs: int, outputs: int, *, stride: int) -> None:
        self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, 3, stride, padding=1))
        self.add_module(f"relu{number}", nn.PReLU(outputs))

    def _convolved(self, number: str, x: Tensor) -> Tensor:
        return getattr(self, f"relu{number}")(getattr(self, f"conv{number}")(x))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (-8, -8))  # a slice would give the gradient back in another memory layout
        for i, units in enumerate(_UNITS, start=1):
            x = self._convolved(f"{i}_1", x)
            for j in range(2, 2 * units + 2, 2):
                branch = self._convolved(f"{i}_{j + 1}", self._convolved(f"{i}_{j}", x))
                x = getattr(self, f"sum{i}_{j + 1}")(x, branch)
        return self.fc5(x.flatten(1))
