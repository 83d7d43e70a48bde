"""Networks with random batch norms, and what they compute: shared by the tests of folding."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """With batch norms of random statistics and weights, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for values, low in ((norm.running_var, 0.2), (norm.weight, 0.2), (norm.running_mean, -2), (norm.bias, -2)):
                if values is not None:
                    values.data.uniform_(low, 2, generator=generator)
    return network.eval()


def batch_norms(network: nn.Module) -> list[str]:
    return [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def both(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of a fixed combination of it."""
    x = x.clone().requires_grad_()
    y = network(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, x, weights)[0]


def error(got: Tensor, expected: Tensor) -> float:
    return float(((got.double() - expected).norm() / expected.norm()).detach())
