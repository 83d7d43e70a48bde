"""The frozen PReLU: the bits of PyTorch's own, forward and backward."""

import pytest
import torch
from torch import nn

from fastadv.models import load, prepare
from fastadv.models.frozen_prelu import FrozenPReLU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 7, 6), (2, 5), (4, 5, 3)])
@pytest.mark.parametrize("slopes", [1, 5])
@pytest.mark.parametrize("last", [False, True])
def test_output_and_gradient_are_those_of_prelu(dtype, shape, slopes, last):
    torch.manual_seed(0)
    plain = nn.PReLU(slopes).to(dtype)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(slopes))
    plain.requires_grad_(False)
    x = torch.randn(shape).to(dtype)
    x.view(-1)[:4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    if last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    g = torch.randn(shape).to(dtype)
    results = []
    for layer in (plain, FrozenPReLU(plain)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(True)
        y = layer(leaf)
        y.backward(g)
        results.append((y.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_prepared_network_has_no_other_prelu_and_the_same_gradient():
    model = load("iresnet18", random_weights_seed=0).eval()
    ready = prepare(model)
    kinds = {type(m) for m in ready.modules() if isinstance(m, nn.PReLU)}
    assert kinds == {FrozenPReLU}
    assert {type(m) for m in model.modules() if isinstance(m, nn.PReLU)} == {nn.PReLU}
    x = torch.rand(2, 3, 112, 112, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    (got,) = torch.autograd.grad(ready(x)[:, 0].sum(), x)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()) + 1e-9)
