"""P-, R- and O-Net of MTCNN, under the parameter names of facenet-pytorch's weights.

R- and O-Net return the probability of a face, then four offsets of the box, in one tensor; P-Net, most of whose windows
are no faces, the features that both are made of. Inputs are ``(x - 127.5) / 128``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.ops.face_windows import prelu_, prelu_max_pool


class PNet(nn.Module):
    """Sees every 12×12 window at a stride of 2: `(N, 3, H, W)` to `(N, 32, pnet_cells(H), pnet_cells(W))` features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 3)
        self.prelu1 = nn.PReLU(10)
        self.conv2 = nn.Conv2d(10, 16, 3)
        self.prelu2 = nn.PReLU(16)
        self.conv3 = nn.Conv2d(16, 32, 3)
        self.prelu3 = nn.PReLU(32)
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor, fences: Iterable[tuple[slice, slice]] = ()) -> Tensor:
        """The features; `fences` are rows and columns of the first convolution's result that no maximum counts."""
        x = self.conv1(x)
        slopes: Tensor | None = self.prelu1.weight
        for rows, columns in fences:
            if slopes is not None:
                x, slopes = prelu_(x, slopes), None
            x[:, :, rows, columns] = -torch.inf
        x = prelu_max_pool(x, slopes, 2)
        return prelu_(self.conv3(prelu_(self.conv2(x), self.prelu2.weight)), self.prelu3.weight)

    def evidence(self, features: Tensor) -> Tensor:
        """The logarithm of the odds that windows are faces, (N, h, w)."""
        weight, bias = self.conv4_1.weight.flatten(1), _bias(self.conv4_1)
        return features.permute(0, 2, 3, 1) @ (weight[1] - weight[0]) + (bias[1] - bias[0])

    def offsets(self, features: Tensor) -> Tensor:
        """How far the boxes of windows move, (n, 4), by their features, (n, 32)."""
        return F.linear(features, self.conv4_2.weight.flatten(1), self.conv4_2.bias)


def pnet_cells(size: int) -> int:
    """How many windows P-Net scores along a side of `size` pixels."""
    return (size - 1) // 2 - 4


class RNet(nn.Module):
    """Scores windows of 24×24: `(N, 3, 24, 24)` to `(N, 5)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 28, 3)
        self.prelu1 = nn.PReLU(28)
        self.conv2 = nn.Conv2d(28, 48, 3)
        self.prelu2 = nn.PReLU(48)
        self.conv3 = nn.Conv2d(48, 64, 2)
        self.prelu3 = nn.PReLU(64)
        self.dense4 = nn.Linear(576, 128)
        self.prelu4 = nn.PReLU(128)
        self.dense5_1 = nn.Linear(128, 2)
        self.dense5_2 = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = prelu_max_pool(self.conv1(x), self.prelu1.weight, 3)
        x = prelu_max_pool(self.conv2(x), self.prelu2.weight, 3)
        x = self.prelu4(self.dense4(_by_columns(prelu_(self.conv3(x), self.prelu3.weight))))
        return torch.cat((_face(self.dense5_1(x)), self.dense5_2(x)), 1)


class ONet(nn.Module):
    """Scores windows of 48×48: `(N, 3, 48, 48)` to `(N, 15)`, the last ten x1 to x5, y1 to y5 of the landmarks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.prelu1 = nn.PReLU(32)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.prelu2 = nn.PReLU(64)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.prelu3 = nn.PReLU(64)
        self.conv4 = nn.Conv2d(64, 128, 2)
        self.prelu4 = nn.PReLU(128)
        self.dense5 = nn.Linear(1152, 256)
        self.prelu5 = nn.PReLU(256)
        self.dense6_1 = nn.Linear(256, 2)
        self.dense6_2 = nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = prelu_max_pool(self.conv1(x), self.prelu1.weight, 3)
        x = prelu_max_pool(self.conv2(x), self.prelu2.weight, 3)
        x = prelu_max_pool(self.conv3(x), self.prelu3.weight, 2)
        x = self.prelu5(self.dense5(_by_columns(prelu_(self.conv4(x), self.prelu4.weight))))
        return torch.cat((_face(self.dense6_1(x)), self.dense6_2(x), self.dense6_3(x)), 1)


class Cascade(nn.Module):
    """The three networks, under the prefixes of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = PNet(), RNet(), ONet()


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None  # as it was built
    return layer.bias


def _face(logits: Tensor) -> Tensor:
    """The probability of the second of two classes, dimension 1 kept."""
    return logits.softmax(1)[:, 1:]


def _by_columns(x: Tensor) -> Tensor:
    """Flattened as the published weights want it: `(N, C, H, W)` in the order width, height, channel."""
    return x.permute(0, 3, 2, 1).reshape(len(x), -1)
