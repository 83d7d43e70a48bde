"""Small networks whose borders are known, and images of whole grey levels: shared by the tests."""

from typing import Any

import torch
from torch import Tensor, nn

import fastadv as fa

SIZE = (6, 5)
D = 3 * SIZE[0] * SIZE[1]
LAYERED_SIZE = (16, 16)


def linear_model(
    classes: int = 2, *, lead: float = 0.0, shift: float = 0.0, scale: float = 1.0, seed: int = 0
) -> fa.FaceModel:
    """Logits that are linear in the pixels.

    Args:
        classes: K.
        lead: Added to the logit of class 0: with 0.8 it wins by so much that the borders are many grey levels away.
        shift: Added to every logit.
        scale: Factor of all logits.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    head = nn.Linear(D, classes)
    with torch.no_grad():
        head.bias[0] += lead
        head.bias += shift
        head.weight *= scale
        head.bias *= scale
    return fa.FaceModel(nn.Flatten(), input_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), name="linear", head=head).eval()


def curved_model(classes: int = 6, *, seed: int = 0) -> fa.FaceModel:
    """A convolution, a PReLU and a linear layer."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(8), nn.Flatten(), nn.Linear(8 * 30, 12))
    head = nn.Linear(12, classes)
    return fa.FaceModel(net, input_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, name="curved", head=head).eval()


def strided_net(seed: int = 0) -> nn.Module:
    """Two convolutions of stride 2 with a batch norm and PReLUs, and a linear layer of 12 outputs."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.PReLU(16),
        nn.Flatten(),
        nn.Linear(256, 12),
    )


def strided_model(**kwargs: Any) -> fa.FaceModel:
    return fa.FaceModel(
        strided_net(), input_size=LAYERED_SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), name="small", **kwargs
    ).eval()


class Layered(nn.Module):
    """Layers with names: one that does not run, one whose output is no tensor, and a count of the passes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.PReLU(8))
        self.body = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.unused = nn.Linear(3, 3)
        self.pair = nn.LSTM(4, 4)
        self.end = nn.Linear(96, 12)
        self.ran = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.stem(x))
        self.ran += 1
        self.pair(y[:, :4, 0])
        return self.end(y.flatten(1))


def layered_model(seed: int = 0) -> fa.FaceModel:
    return fa.FaceModel(
        Layered(seed), input_size=LAYERED_SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, name="net", layers=("stem", "body")
    ).eval()


class ResidualBlock(nn.Module):
    """A block of 8 channels with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.prelu = nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.prelu(self.bn(self.conv(x)))


def grey_images(n: int, seed: int = 1, *, low: float = 0.0, high: float = 1.0, size: tuple[int, int] = SIZE) -> Tensor:
    """``(n, 3, H, W)`` of whole grey levels, uniform from ``low`` to ``high``."""
    x = torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed)) * (high - low) + low
    return torch.round(x * 255) / 255


def predicted(model: fa.FaceModel, x: Tensor) -> Tensor:
    """The class of each image."""
    with torch.no_grad():
        return model.logits(x).argmax(1)
