"""The architectures of published checkpoints, and random values for them: shared by the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NAMES = (
    "se_iresnet50",
    "ir_se50",
    "se_resnet50",
    "inception_resnet_v1",
    "sphereface20",
    "mobilenet_v1",
    "ir50",
    "adaface_ir18",
    "magface_iresnet18",
    "mobilefacenet_linear",
    "cosface_sphere20",
)


def randomise_batch_norms(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for scale in (norm.running_var, norm.weight):
                if scale is not None:
                    scale.data.copy_(torch.rand(scale.shape, generator=generator) + 0.5)
            for shift in (norm.running_mean, norm.bias):
                if shift is not None:
                    shift.data.copy_(torch.randn(shift.shape, generator=generator) * 0.2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
