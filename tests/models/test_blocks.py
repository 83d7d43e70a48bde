"""Blocks of the architectures of published checkpoints, in closed form."""

from __future__ import annotations

import pytest
import torch
from architectures import noise, randomise_batch_norms
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.models import load


def fresh(name: str, block: str) -> nn.Module:
    network = load(name, random_weights_seed=0)
    randomise_batch_norms(network)
    return network.backbone.get_submodule(block).requires_grad_(False)


def constant_branch(norm: nn.Module, values: Tensor) -> None:
    """Makes a block's branch, up to and including this batch norm, give `values` per channel everywhere."""
    norm.weight.zero_()
    norm.bias.copy_(values)


@pytest.mark.parametrize(
    ("name", "last"), [("se_iresnet50", "res_layer.5"), ("ir_se50", "res_layer.4")], ids=["paper", "published"]
)
def test_se_ir_blocks(name: str, last: str) -> None:
    body = fresh(name, "body")
    c = torch.linspace(-2, 2, 64)
    for i in (0, 1):
        block = body[i]
        constant_branch(block.get_submodule(last), c)
        gate = block.res_layer[-1]
        w1, w2 = gate.fc1.weight.flatten(1), gate.fc2.weight.flatten(1)
        branch = c * torch.sigmoid(w2 @ (w1 @ c).relu())  # the mean of a constant is the constant
        x = noise(2, 64, 6, 6) - 0.5
        shortcut = x if i else x[:, :, ::2, ::2]
        torch.testing.assert_close(block(x), shortcut + branch.view(64, 1, 1), rtol=1e-5, atol=1e-5)


def test_the_papers_block_is_bn_conv_bn_prelu_conv_bn() -> None:
    def kinds(name: str) -> list[str]:
        layers = load(name, random_weights_seed=0).backbone.get_submodule("body.5.res_layer")
        return [type(layer).__name__ for layer in layers][:-1]

    paper = ["BatchNorm2d", "Conv2d", "BatchNorm2d", "PReLU", "Conv2d", "BatchNorm2d"]
    assert kinds("se_iresnet50") == paper
    assert kinds("ir_se50") == paper[:2] + paper[3:]


def test_se_resnet_blocks() -> None:
    for at, shortcut_of in (("layer1.1", lambda _b, x: x), ("layer2.0", lambda b, x: b.downsample(x))):
        block = fresh("se_resnet50", at)
        channels = block.bn3.num_features
        c = torch.linspace(-2, 2, channels)
        constant_branch(block.bn3, c)
        hidden = (block.conv4.weight.flatten(1) @ c + block.conv4.bias).relu()
        gate = torch.sigmoid(block.conv5.weight.flatten(1) @ hidden + block.conv5.bias)
        x = noise(2, 256, 6, 6) - 0.5
        expected = (shortcut_of(block, x) + (c * gate).view(-1, 1, 1)).relu()
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("block", "scale"), [("repeat_1.2", 0.17), ("repeat_2.9", 0.10), ("repeat_3.4", 0.20), ("block8", 1.0)]
)
def test_inception_residuals_are_scaled(block: str, scale: float) -> None:
    residual = fresh("inception_resnet_v1", block)
    c = torch.linspace(-1, 1, residual.conv2d.out_channels)
    residual.conv2d.weight.zero_()
    residual.conv2d.bias.copy_(c)
    x = noise(2, len(c), 4, 4) - 0.5
    expected = x + scale * c.view(-1, 1, 1)
    torch.testing.assert_close(residual(x), expected if block == "block8" else expected.relu())


def test_inception_branches_are_joined_in_the_published_order() -> None:
    block = fresh("inception_resnet_v1", "repeat_2.0")
    seen: list[Tensor] = []
    block.conv2d.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    x = noise(1, 896, 5, 5) - 0.5
    block(x)

    def basic(layer: nn.Module, y: Tensor, padding: tuple[int, int]) -> Tensor:
        norm = layer.bn
        y = F.conv2d(y, layer.conv.weight, padding=padding)
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3).relu()

    first = basic(block.branch0, x, (0, 0))
    second = basic(block.branch1[0], x, (0, 0))
    second = basic(block.branch1[2], basic(block.branch1[1], second, (0, 3)), (3, 0))
    torch.testing.assert_close(seen[0], torch.cat((first, second), 1), rtol=1e-4, atol=1e-5)


def test_sphereface_is_its_published_formula() -> None:
    model = load("sphereface20", random_weights_seed=0)
    state = model.backbone.state_dict()
    x = noise(1, 3, 112, 112)

    def convolved(number: str, y: Tensor, stride: int = 1) -> Tensor:
        y = F.conv2d(y, state[f"conv{number}.weight"], state[f"conv{number}.bias"], stride, padding=1)
        return F.prelu(y, state[f"relu{number}.weight"])

    y = (x.flip(1)[..., 8:104] * 255 - 127.5) / 128  # the published network takes 112 x 96
    for stage, units in ((1, 1), (2, 2), (3, 4), (4, 1)):
        y = convolved(f"{stage}_1", y, stride=2)
        for j in range(units):
            y = y + convolved(f"{stage}_{2 * j + 3}", convolved(f"{stage}_{2 * j + 2}", y))
    expected = F.linear(y.flatten(1), state["fc5.weight"], state["fc5.bias"])
    with torch.no_grad():
        torch.testing.assert_close(model.features(x), expected, rtol=1e-4, atol=1e-5)
