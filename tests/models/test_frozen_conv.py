"""The strided depthwise convolution with the float32 backward pass: same forward bits, same gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastadv.models import load, prepare
from fastadv.models.frozen_conv import FrozenDepthwiseConv2d


def convolution(channels: int, kernel: int, stride: int, padding: int, *, bias: bool) -> nn.Conv2d:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=bias)
    return layer.requires_grad_(False)


def gradient(layer: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    y = layer(x)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return torch.autograd.grad(y, x, direction)[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [13, 14])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (5, 2, 2), (3, 3, 0), (3, 1, 1)])
def test_forward_bits_and_gradient(kernel: int, stride: int, padding: int, size: int, bias: bool) -> None:
    layer = convolution(8, kernel, stride, padding, bias=bias)
    frozen = FrozenDepthwiseConv2d(layer)
    x = torch.randn(3, 8, size, size).contiguous(memory_format=torch.channels_last)
    assert torch.equal(frozen(x), layer(x))
    torch.testing.assert_close(gradient(frozen, x), gradient(layer, x), rtol=1e-6, atol=1e-6)


def test_bf16_gradient_is_the_float64_gradient_rounded_once() -> None:
    layer = convolution(16, 3, 2, 1, bias=True).bfloat16()
    x = torch.randn(2, 16, 14, 14).bfloat16().contiguous(memory_format=torch.channels_last)
    got = gradient(FrozenDepthwiseConv2d(layer), x)
    y = layer(x)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide = x.double().requires_grad_()
    double = copy.deepcopy(layer).double()
    (exact,) = torch.autograd.grad(double(wide), wide, direction.double())
    assert got.dtype == torch.bfloat16
    assert torch.equal(FrozenDepthwiseConv2d(layer)(x), y)
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-6)


def test_installed_by_prepare_for_bf16_on_the_cpu() -> None:
    model = load("mobilefacenet", random_weights_seed=0)

    def installed(precision: str) -> list[str]:
        prepared = prepare(model, precision=precision)
        return [n for n, m in prepared.backbone.named_modules() if isinstance(m, FrozenDepthwiseConv2d)]

    assert installed("fp32") == []
    assert installed("bf16") == [f"features.{i}.conv.1.0" for i in (0, 5, 12)]


# The tracer itself instantiates the function, which is deprecated.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles() -> None:
    frozen = FrozenDepthwiseConv2d(convolution(4, 3, 2, 1, bias=True))
    compiled = torch.compile(frozen, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(gradient(compiled, x), gradient(frozen, x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
    ],
)
def test_refuses_other_convolutions(layer: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match=r"convolution: expected a depthwise one with zero padding"):
        FrozenDepthwiseConv2d(layer)
