"""MobileFace v2 (becauseofAI): a MobileNetV2-like network that ends in a fully connected layer."""

from __future__ import annotations

import re

from torch import Tensor, nn

_EPS = 1e-3
# Output channels and expanded channels of the four groups of three blocks; strides 2, 1, 1 in each.
_GROUPS = ((32, 96), (32, 96), (64, 192), (128, 384))

LAYERS = tuple(f"blocks.{i}" for i in range(12))


class _Block(nn.Module):
    """1×1 expansion, depthwise 3×3, linear 1×1 projection; residual where stride = 1."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.expand_bn = nn.BatchNorm2d(hidden, eps=_EPS)
        self.expand_relu = nn.ReLU6()
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(hidden, eps=_EPS)
        self.depthwise_relu = nn.ReLU6()
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(outputs, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand_relu(self.expand_bn(self.expand(x)))
        y = self.depthwise_relu(self.depthwise_bn(self.depthwise(y)))
        y = self.project_bn(self.project(y))
        return x + y if self.residual else y


class MobileFaceV2(nn.Module):
    """MobileFace v2: `(N, 3, 112, 112)` normalised images to `(N, 256)` features; 0.89 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 2, padding=1)
        self.bn1 = nn.BatchNorm2d(32, eps=_EPS)
        self.relu1 = nn.ReLU6()
        blocks: list[nn.Module] = []
        inputs = 32
        for outputs, hidden in _GROUPS:
            for i in range(3):
                width = hidden if i else inputs * 3
                blocks.append(_Block(inputs, width, outputs, 1 if i else 2))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc5 = nn.Linear(128 * 4 * 4, 256, bias=False)
        self.fc5_bn = nn.BatchNorm1d(256, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu1(self.bn1(self.conv1(x))))
        return self.fc5_bn(self.fc5(x.flatten(1)))


_PARTS = ("expand", "depthwise", "project")
_STATISTICS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}


def from_mxnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the published MXNet file (`arg:convolution0_weight`, `aux:bn1_moving_mean`, ...).

    Args:
        state: tensors by MXNet name, or already by the names of `MobileFaceV2`, which are kept.

    Returns:
        Tensors by the names of `MobileFaceV2`; a name that is neither is kept, for the strict loading to
        report.
    """
    return {_renamed(key): value for key, value in state.items()}


def _renamed(key: str) -> str:
    match = re.fullmatch(r"(?:arg|aux):(.+)_(weight|bias|gamma|beta|moving_mean|moving_var)", key, flags=re.ASCII)
    if match is None:
        return key
    module, kind = match.groups()
    numbered = re.fullmatch(r"(convolution|batchnorm)(\d+)", module, flags=re.ASCII)
    if numbered is not None:
        block, part = divmod(int(numbered[2]), 3)
        suffix = "_bn" if numbered[1] == "batchnorm" else ""
        module = f"blocks.{block}.{_PARTS[part]}{suffix}"
    return f"{module}.{_STATISTICS.get(kind, kind)}"
