"""P-, R- and O-Net of MTCNN, under the parameter names of facenet-pytorch's weights.

Inputs are ``(x - 127.5) / 128``. Of the results, `(N, numbers, h, w)`, the first is the logarithm of the odds that a
window is a face, the next four are offsets of its box, and O-Net's last ten x1 to x5, y1 to y5 of the landmarks.
"""

from __future__ import annotations

import torch
from torch import nn

from fastadv.ops.conv_prelu import ConvPrelu, ConvPreluNetwork


class PNet(nn.Module):
    """Sees every 12×12 window at a stride of 2: `(N, 3, H, W)` to `(N, 5, pnet_cells(H), pnet_cells(W))`."""

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

    def network(self) -> ConvPreluNetwork:
        """What it computes, by the weights as they are now."""
        return ConvPreluNetwork(
            [
                _convolution(self.conv1, self.prelu1, pool=2),
                _convolution(self.conv2, self.prelu2),
                _convolution(self.conv3, self.prelu3),
                _heads(self.conv4_1, self.conv4_2),
            ]
        )


def pnet_cells(size: int) -> int:
    """How many windows P-Net scores along a side of `size` pixels."""
    return (size - 1) // 2 - 4


class RNet(nn.Module):
    """Scores windows of 24×24: `(N, 3, 24, 24)` to `(N, 5, 1, 1)`."""

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

    def network(self) -> ConvPreluNetwork:
        """What it computes, by the weights as they are now."""
        return ConvPreluNetwork(
            [
                _convolution(self.conv1, self.prelu1, pool=3),
                _convolution(self.conv2, self.prelu2, pool=3),
                _convolution(self.conv3, self.prelu3),
                _matrix(self.dense4, self.prelu4),
                _heads(self.dense5_1, self.dense5_2),
            ]
        )


class ONet(nn.Module):
    """Scores windows of 48×48: `(N, 3, 48, 48)` to `(N, 15, 1, 1)`."""

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

    def network(self) -> ConvPreluNetwork:
        """What it computes, by the weights as they are now."""
        return ConvPreluNetwork(
            [
                _convolution(self.conv1, self.prelu1, pool=3),
                _convolution(self.conv2, self.prelu2, pool=3),
                _convolution(self.conv3, self.prelu3, pool=2),
                _convolution(self.conv4, self.prelu4),
                _matrix(self.dense5, self.prelu5),
                _heads(self.dense6_1, self.dense6_2, self.dense6_3),
            ]
        )


class Cascade(nn.Module):
    """The three networks, under the prefixes of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = PNet(), RNet(), ONet()


def _convolution(layer: nn.Conv2d, prelu: nn.PReLU, *, pool: int | None = None) -> ConvPrelu:
    assert layer.bias is not None  # as it was built
    return ConvPrelu(weight=layer.weight, bias=layer.bias, slopes=prelu.weight, pool=pool)


def _matrix(layer: nn.Linear, prelu: nn.PReLU) -> ConvPrelu:
    """Of a map of 3×3, which the published weights read in the order width, height, channel."""
    weight = layer.weight.unflatten(1, (3, 3, -1)).permute(0, 3, 2, 1)
    return ConvPrelu(weight=weight, bias=layer.bias, slopes=prelu.weight)


def _heads(classes: nn.Conv2d | nn.Linear, *others: nn.Conv2d | nn.Linear) -> ConvPrelu:
    """The difference of the logits of both classes, and all other numbers."""
    weights = [classes.weight[1:] - classes.weight[:1], *(layer.weight for layer in others)]
    biases = [layer.bias for layer in (classes, *others) if layer.bias is not None]
    biases[0] = biases[0][1:] - biases[0][:1]
    weight = torch.cat(weights).flatten(1)[:, :, None, None]
    return ConvPrelu(weight=weight, bias=torch.cat(biases))
