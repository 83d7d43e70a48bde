"""Frozen activations: the bits of PyTorch's own, forwards and backwards."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.models import load, prepare
from fastadv.models.frozen_activation import FrozenActivation, FrozenPReLU

BIAS = torch.linspace(-1, 1, 5) / 3
SLOPES = torch.linspace(-0.5, 1.5, 5)


def prelu(slopes: Tensor, dtype: torch.dtype = torch.float32) -> nn.PReLU:
    made = nn.PReLU(len(slopes)).to(dtype)
    made.weight.data.copy_(slopes)
    return made.eval().requires_grad_(False)


def evaluated(function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> list[Tensor]:
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(leaf)
    return [y.detach(), torch.autograd.grad(y, leaf, grad)[0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 7, 6), (2, 5), (4, 5, 3)])
@pytest.mark.parametrize("slopes", [1, 5])
@pytest.mark.parametrize("last", [False, True])
def test_output_and_gradient_are_those_of_prelu(dtype: torch.dtype, shape: Any, slopes: int, last: bool) -> None:
    torch.manual_seed(0)
    plain = prelu(torch.randn(slopes), dtype)
    x = torch.randn(shape).to(dtype)
    x.view(-1)[:4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    if last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    g = torch.randn(shape).to(dtype)
    assert all(map(torch.equal, evaluated(FrozenPReLU(plain), x, g), evaluated(plain, x, g)))


LAYERS: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky": nn.LeakyReLU(0.2),
    "prelu": prelu(SLOPES),
    "prelu, no slope negative": prelu(SLOPES.abs()),
    "prelu of one slope": prelu(SLOPES[:1]),
}


@pytest.mark.parametrize("keep_result", [False, True])
@pytest.mark.parametrize("shape", [(5,), (5, 6, 7)], ids=["tied", "untied"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradient_are_those_of_the_layer_behind_a_shift(
    name: str, last: bool, shape: Any, keep_result: bool
) -> None:
    layer, shift = LAYERS[name], torch.randn(shape)
    x, grad = (3 * torch.randn(2, 5, 6, 7) for _ in range(2))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    expected = evaluated(lambda t: layer(t + shift.view(1, 5, *shape[1:] or (1, 1))), x, grad)
    assert all(map(torch.equal, evaluated(FrozenActivation(layer, shift, keep_result=keep_result), x, grad), expected))
    fused = FrozenActivation(layer, shift, keep_result=keep_result, overwrite=(True, True))
    made = evaluated(lambda t: fused(t.clone(memory_format=torch.preserve_format)), x, grad.clone())
    assert all(map(torch.equal, made, expected))


def test_bfloat16_is_rounded_once() -> None:
    x = torch.randn(2, 5, 6, 7).bfloat16()
    expected = F.prelu(x.float() + BIAS.view(1, 5, 1, 1), SLOPES).bfloat16()
    assert torch.equal(FrozenActivation(prelu(SLOPES), BIAS)(x), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_computes_the_same(copied: Callable[[Any], Any]) -> None:
    x = torch.randn(2, 5, 6, 7)
    for layer in (FrozenActivation(prelu(SLOPES), BIAS), FrozenPReLU(prelu(SLOPES)), FrozenPReLU(prelu(SLOPES[:1]))):
        assert torch.equal(copied(layer)(x), layer(x))


def test_what_it_is_made_of_may_change() -> None:
    x, layer, shift = torch.randn(2, 5, 6, 7), prelu(SLOPES), BIAS.clone()
    made = FrozenActivation(layer, shift)
    expected = made(x)
    layer.weight.data.zero_()
    shift.zero_()
    assert torch.equal(made(x), expected)


def test_a_prepared_network_has_no_other_prelu_and_the_same_gradient() -> None:
    model = load("iresnet18", random_weights_seed=0).eval()
    ready = prepare(model, fuse=False)
    assert {type(m) for m in ready.modules() if isinstance(m, nn.PReLU)} == {FrozenPReLU}
    assert {type(m) for m in model.modules() if isinstance(m, nn.PReLU)} == {nn.PReLU}
    x = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    (expected,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    (got,) = torch.autograd.grad(ready(x)[:, 0].sum(), x)
    # by its norm: of millions of sums, the one that rounding moves over 0 changes the gradient around a pixel
    assert (got - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYERS)
def test_it_follows_its_network_to_a_device_and_back(name: str) -> None:
    x, grad = torch.randn(2, 5, 6, 7), torch.randn(2, 5, 6, 7)
    made = FrozenActivation(LAYERS[name], BIAS, keep_result=True)
    expected = evaluated(made, x, grad)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(evaluated(made, x.cuda(), grad.cuda()), expected, strict=True))
    assert all(map(torch.equal, evaluated(made, x, grad), expected))
