"""What only a GPU can show of depthwise convolutions in Triton: their place in a network, graph capture, streams."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastadv.models import FaceModel, load, prepare
from fastadv.models.capture import Captured
from fastadv.models.float32_math import float32_math
from fastadv.models.fused_depthwise import FusedDepthwiseConv2d
from fastadv.testing.tolerances import assert_same_bits

pytestmark = pytest.mark.gpu


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def on_gpu(name: str = "mobilefacenet") -> FaceModel:
    return load(name, random_weights_seed=1, device="cuda")


@pytest.mark.parametrize(("name", "layers", "fused"), [("mobilefacenet", 17, 16), ("mobileface_v2", 12, 12)])
def test_installed_by_prepare(name: str, layers: int, fused: int) -> None:
    model = on_gpu(name)
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(4))
    for precision in ("fp32", "bf16"):
        prepared = prepare(model, precision=precision)
        found = [m for m in prepared.modules() if isinstance(m, FusedDepthwiseConv2d)]
        assert (len(found), sum(m.activation is not None for m in found)) == (layers, fused)
        with torch.no_grad():
            expected, got = load(name, random_weights_seed=1)(images), prepared(images.cuda())
            assert bool(((got.cpu() * expected).sum(1) > (0.9999 if precision == "fp32" else 0.99)).all())
            assert torch.equal(prepare(prepared, precision=precision)(images.cuda()), got)
    assert not any(getattr(m, "activation", None) for m in prepare(model, fold=False).modules())
    assert not any(getattr(m, "activation", None) for m in prepare(model, fuse=False).modules())
    assert not any(isinstance(m, FusedDepthwiseConv2d) for m in prepare(model, channels_last=False).modules())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_pass_gives_the_bits_of_the_eager_one(precision: str) -> None:
    model = prepare(on_gpu(), precision=precision)
    images = last(torch.rand(8, 3, 112, 112, device="cuda")).requires_grad_()

    def gradient() -> Tensor:
        return torch.autograd.grad(model(images)[:, 0].sum(), images)[0]

    with float32_math(model.device, tf32=False):  # or cuDNN's own gradients would not repeat their bits
        captured = Captured(gradient)
        for _ in range(2):
            with torch.no_grad():
                images.copy_(torch.rand_like(images))
            assert_same_bits(captured(), gradient())


def test_a_side_stream_orders_the_work() -> None:
    layer = FusedDepthwiseConv2d(nn.Conv2d(64, 64, 3, 2, 1, groups=64).requires_grad_(False), nn.ReLU6()).cuda()
    x = last(torch.randn(4, 64, 28, 28, device="cuda"))

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        y = layer(x)
        return y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]

    expected, late = both(x), torch.zeros_like(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a launch on another stream would see the zeros
        late.copy_(x)
        got = both(late)
    stream.synchronize()
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(a, b)
