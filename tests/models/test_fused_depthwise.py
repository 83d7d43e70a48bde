"""Depthwise convolutions in Triton with their activation: against float64, and where they take a network's place."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastadv import backends
from fastadv.models import fold_batch_norms, freeze, load, prepare
from fastadv.models.frozen_activation import FrozenPReLU
from fastadv.models.fused_depthwise import FusedDepthwiseConv2d, fuse_depthwise
from fastadv.testing.tolerances import assert_same_bits

interpreter = pytest.mark.skipif(
    not (importlib.util.find_spec("triton") and backends.interpreted()), reason="needs Triton's interpreter"
)


@pytest.fixture(params=[pytest.param("cpu", marks=interpreter), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def convolution(channels: int, kernel: Any, stride: int, padding: Any, *, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=bias)
    return layer.requires_grad_(False).eval()


def prelu(channels: int) -> nn.PReLU:
    layer = nn.PReLU(channels).requires_grad_(False).eval()
    layer.weight.data = draw(channels, seed=5).abs()
    return layer


ACTIVATIONS: dict[str, Callable[[int], nn.Module | None]] = {
    "none": lambda channels: None,
    "relu": lambda channels: nn.ReLU(),
    "relu6": lambda channels: nn.ReLU6(inplace=True),
    "prelu": prelu,
    "prelu of one slope": lambda channels: FrozenPReLU(prelu(1)),
}


def exact(layer: FusedDepthwiseConv2d, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Result and gradient in float64; the activation sees the sum rounded to the type of the layer, as in PyTorch."""
    wide = x.double().requires_grad_()
    bias = None if layer.bias is None else layer.bias.double()
    sums = torch.conv2d(wide, layer.weight.double(), bias, layer.stride, layer.padding, 1, layer.groups)
    y, gradient = sums, direction.double()
    if layer.activation is not None:
        activation = copy.deepcopy(layer.activation).double()
        seen = sums.detach().to(x.dtype).double().requires_grad_()
        y = activation(sums.clone())
        (gradient,) = torch.autograd.grad(activation(seen.clone()), seen, gradient)
    return y.detach(), torch.autograd.grad(sums, wide, gradient)[0]


def both(layer: nn.Module, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    return y.detach(), torch.autograd.grad(y, x, direction)[0]


# channels, kernel, stride, padding, (height, width)
CASES: dict[str, tuple[int, Any, int, Any, tuple[int, int]]] = {
    "3x3 on an odd map": (24, 3, 1, 1, (9, 7)),
    "3x3, stride 2, odd and even": (5, 3, 2, 1, (9, 6)),
    "3x3, stride 2, over several tiles": (1, 3, 2, 1, (48, 3)),
    "3x3 without padding": (64, 3, 1, 0, (7, 11)),
    "3x3, stride 2, without padding": (66, 3, 2, 0, (8, 9)),
    "3x3 with more padding than reach": (6, 3, 1, 3, (4, 5)),
    "3x3, stride 2, with more padding than reach": (6, 3, 2, 3, (4, 5)),
    "3x3 of one pixel": (8, 3, 2, 1, (1, 1)),
    "5x5": (33, 5, 1, 2, (5, 9)),
    "5x5, stride 2": (5, 5, 2, 2, (7, 10)),
    "7x7, padding 3": (5, 7, 1, 3, (8, 9)),
    "7x7, stride 2, padding 3": (5, 7, 2, 3, (9, 8)),
    "global 7x7": (9, 7, 1, 0, (7, 7)),
    "global 4x4, stride 2": (9, 4, 2, 0, (4, 4)),
    "3x5, other paddings": (4, (3, 5), 1, (0, 2), (6, 7)),
    "1x1": (4, 1, 2, 0, (5, 4)),
}


def example(case: str, activation: str, device: str, dtype: torch.dtype = torch.float32, count: int = 2) -> Any:
    channels, kernel, stride, padding, size = CASES[case]
    layer = convolution(channels, kernel, stride, padding, bias=case != "5x5")
    layer = FusedDepthwiseConv2d(layer, ACTIVATIONS[activation](channels)).to(device, dtype)
    layer.arrange()
    x = last((3 * draw(count, channels, *size)).to(device, dtype))
    with torch.no_grad():
        direction = last(draw(*layer(x).shape, seed=1).to(device, dtype))
    return layer, x, direction


PAIRS = [(case, "relu6") for case in CASES]
PAIRS += [(case, kind) for case in ("3x3 on an odd map", "global 7x7") for kind in ACTIVATIONS if kind != "relu6"]
# an activation does not know the convolution: with a stride and a larger window, two each of the others
PAIRS += [("3x3, stride 2, odd and even", kind) for kind in ("none", "prelu")]
PAIRS += [("5x5", kind) for kind in ("relu", "prelu of one slope")]
# Triton's interpreter takes seconds for each
SOME = {("3x3 on an odd map", "relu6"), ("3x3, stride 2, odd and even", "prelu"), ("global 7x7", "none")}
EACH_PAIR = [pytest.param(*pair, marks=[] if pair in SOME else pytest.mark.slow) for pair in PAIRS]


@pytest.mark.parametrize(("case", "activation"), EACH_PAIR)
def test_result_and_gradient_are_those_of_float64(case: str, activation: str, device: str) -> None:
    layer, x, direction = example(case, activation, device)
    for got, expected in zip(both(layer, x, direction), exact(layer, x, direction), strict=True):
        assert got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("case", ["3x3 on an odd map", "3x3, stride 2, odd and even", "5x5", "global 7x7"])
@pytest.mark.parametrize("activation", ["relu6", "prelu"])
def test_bf16_is_rounded_once(case: str, activation: str, device: str) -> None:
    layer, x, direction = example(case, activation, device, torch.bfloat16)
    y, gradient = both(layer, x, direction)
    expected, expected_gradient = exact(layer, x, direction)
    assert y.dtype == gradient.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("case", ["3x3 on an odd map", "3x3, stride 2, odd and even", "global 7x7"])
def test_memory_orders_give_the_same_bits(case: str, device: str) -> None:
    layer, x, direction = example(case, "relu6", device)
    expected = both(layer, x, direction)
    wide = torch.zeros(*x.shape[:3], 2 * x.shape[3], device=device)
    wide[..., ::2] = x
    layer.weight.data = layer.weight.data.contiguous()  # a model that was loaded anew
    for same in (x.contiguous(), wide[..., ::2]):
        for got, right in zip(both(layer, same, direction.contiguous()), expected, strict=True):
            assert_same_bits(got, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["3x3, stride 2, odd and even", "global 7x7"])
def test_an_image_has_the_same_bits_in_any_slot_and_batch(case: str, dtype: torch.dtype, device: str) -> None:
    layer, x, direction = example(case, "relu6", device, dtype, count=3)
    expected = both(layer, x, direction)
    order = torch.tensor([2, 0, 1], device=device)
    for chosen in (order, order[2:]):
        for got, right in zip(both(layer, x[chosen], direction[chosen]), expected, strict=True):
            assert_same_bits(got, right[chosen])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_empty_batch(activation: str, device: str) -> None:
    for case in ("3x3, stride 2, odd and even", "global 7x7"):  # kernels both ways, and the product
        layer, x, direction = example(case, activation, device, count=0)
        y, gradient = both(layer, x, direction)
        assert y.shape == direction.shape
        assert gradient.shape == x.shape


@pytest.mark.parametrize("activation", list(ACTIVATIONS)[:4])
def test_nan_infinity_and_the_ends_of_an_activation_are_treated_as_in_pytorch(activation: str, device: str) -> None:
    layer = convolution(1, 1, 1, 0, bias=False)
    layer.weight.data.fill_(1)
    values = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 6.0, -6.0, 7.0, 5.9999995, 1e-40]
    x = torch.tensor(values, device=device).view(1, 1, 2, 5)
    kind = ACTIVATIONS[activation](1)
    ours = FusedDepthwiseConv2d(layer, kind).to(device)
    theirs = nn.Sequential(layer.to(device), *([] if kind is None else [kind])).to(device)
    for got, expected in zip(both(ours, x, torch.ones_like(x)), both(theirs, x, torch.ones_like(x)), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@interpreter
def test_what_is_kept_for_the_backward_pass() -> None:
    for activation, expected in (("none", 1), ("relu6", 2)):
        layer, x, _ = example("3x3 on an odd map", activation, "cpu")
        kept: list[Tensor] = []

        def keep(tensor: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = layer(x.requires_grad_())
        assert len(kept) == expected
        assert x.data_ptr() not in {t.data_ptr() for t in kept}
        assert (y.data_ptr() in {t.data_ptr() for t in kept}) == (activation == "relu6")


@interpreter
def test_there_is_no_second_derivative() -> None:
    layer, x, direction = example("3x3 on an odd map", "relu6", "cpu")
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x), x, direction.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@interpreter
def test_what_the_kernel_does_not_take_goes_through_pytorch() -> None:
    layer, x, direction = example("3x3, stride 2, odd and even", "relu6", "cpu")
    alone = layer(x)[0]
    torch.testing.assert_close(layer(x[0]), alone, rtol=1e-6, atol=1e-6)  # an image without a batch
    wide, expected = both(layer.double(), x.double(), direction.double()), exact(layer, x, direction)
    torch.testing.assert_close(wide[0], expected[0])
    torch.testing.assert_close(wide[1], expected[1], rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match="expected input.* to have 5 channels"):
        layer(x[:, :4].double())
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        FusedDepthwiseConv2d(convolution(2, 3, 1, 0))(torch.zeros(1, 2, 2, 5))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, 3, groups=4),
        nn.Conv2d(4, 4, 3, (1, 2), groups=4),
        nn.Conv2d(4, 4, 3, dilation=2, groups=4),
        nn.Conv2d(4, 4, 9, groups=4),
    ],
)
def test_refuses_other_convolutions(layer: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match=r"convolution: expected stride 1 or 2, no dilation and at most 7 x 7 weights"):
        FusedDepthwiseConv2d(layer)
    with pytest.raises(ValueError, match="convolution: expected a depthwise one with zero padding"):
        FusedDepthwiseConv2d(nn.Conv2d(4, 4, 3))


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.PReLU(init=-0.1), nn.PReLU(2)])
def test_refuses_other_activations(activation: nn.Module) -> None:
    wanted = "ReLU, ReLU6 or a PReLU of 1 or 4 slopes, none negative"
    with pytest.raises(ValueError, match=f"activation: expected {wanted}, got "):
        FusedDepthwiseConv2d(convolution(4, 3, 1, 1), activation)


# -- where it takes a network's place --


class Net(nn.Module):
    """Depthwise convolutions and activations, and a forward pass given by the test."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = convolution(3, 3, 1, 1), convolution(3, 3, 2, 1)
        self.act, self.bn, self.other = nn.ReLU6(), nn.Identity(), prelu(3)
        self.run = run
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


RUNS: dict[str, tuple[Callable[[Any, Tensor], Tensor], set[str]]] = {
    # what runs, and the activations that are fused
    "plain": (lambda m, x: m.other(m.two(m.act(m.one(x)))), {"act", "other"}),
    "through an identity": (lambda m, x: m.two(m.act(m.bn(m.one(x)))), {"act"}),
    "convolution read twice": (lambda m, x: m.two(m.act(y := m.one(x)) + y), set()),
    "convolution called twice": (lambda m, x: m.two(m.act(m.one(m.one(x)))), set()),
    "activation called twice": (lambda m, x: m.act(m.two(m.act(m.one(x)))), set()),
    "identity read twice": (lambda m, x: m.two(m.act(y := m.bn(m.one(x))) + y), set()),
    "something between": (lambda m, x: m.two(m.act(m.one(x) + 1)), set()),
    "a branch on values": (lambda m, x: m.two(m.act(m.one(x))) if x.sum() > -1e9 else x, set()),
    "result changed in place": (lambda m, x: m.two(m.act(m.one(x)).add_(1)), set()),
    "inside of another type": (lambda m, x: m.other(m.two(m.act(m.one(x).double().float()))), {"other"}),
}


@interpreter
@pytest.mark.parametrize("case", RUNS)
def test_fuses_only_where_it_is_right(case: str) -> None:
    run, expected = RUNS[case]
    network = Net(run)
    fused = copy.deepcopy(network)
    fuse_depthwise(fused, (3, 6, 7))
    kinds = {name: type(module) for name, module in fused.named_modules()}
    assert {name for name in ("act", "other") if kinds[name] is nn.Identity} == expected
    for got, right in zip(*(both(n, draw(2, 3, 6, 7), draw(2, 3, 3, 4)) for n in (fused, network)), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)
    if case != "result changed in place":  # whose derivative needs what was changed: all stay PyTorch's
        assert kinds["one"] is kinds["two"] is FusedDepthwiseConv2d


@interpreter
def test_what_must_not_be_fused() -> None:
    def fused(change: Callable[[Net], object], **options: Any) -> tuple[bool, bool]:
        network = Net(RUNS["through an identity"][0])
        change(network)
        fuse_depthwise(network, (3, 6, 7), **options)
        return type(network.one) is FusedDepthwiseConv2d, type(network.act) is nn.Identity

    def nothing(*_: object) -> None:
        return None

    assert fused(nothing) == (True, True)
    assert fused(nothing, activations=False) == (True, False)
    assert fused(nothing, keep=("one",)) == fused(nothing, keep=("bn",)) == (True, False)
    assert fused(nothing, keep=("act",)) == (True, True)
    assert fused(lambda n: n.act.register_forward_hook(nothing)) == (True, False)
    assert fused(lambda n: n.bn.register_forward_pre_hook(nothing)) == (True, False)
    assert fused(lambda n: n.one.register_forward_hook(nothing)) == (False, False)
    assert fused(lambda n: setattr(n.one, "forward", n.one.forward)) == (False, False)
    assert fused(lambda n: setattr(n, "act", nn.PReLU(init=-0.1))) == (True, False)
    assert fused(lambda n: setattr(n, "act", nn.SiLU())) == (True, False)
    assert fused(lambda n: setattr(n, "one", convolution(3, 3, 1, 1).double())) == (False, False)  # it cannot run


@interpreter
def test_a_convolution_of_two_names_is_replaced_under_both() -> None:
    layer = convolution(3, 3, 1, 1)
    network = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU()).eval()
    expected = network(x := draw(1, 3, 6, 6))
    fuse_depthwise(network, (3, 6, 6))
    assert [type(m) for m in network] == [FusedDepthwiseConv2d, nn.ReLU] * 2
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


@interpreter
@pytest.mark.parametrize("wrong", [True, False])
def test_kernels_that_fail_or_are_wrong_are_not_used(
    wrong: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fastadv.kernels.triton import depthwise_conv

    def launch(x: Tensor, *tensors: Any, **_: Any) -> None:
        if not wrong:
            raise RuntimeError("no C compiler")
        tensors[-1].fill_(1)

    monkeypatch.setattr(depthwise_conv, "launch", launch)
    network = Net(RUNS["plain"][0])
    with caplog.at_level(logging.WARNING, "fastadv"):
        fuse_depthwise(network, (3, 6, 7))
    assert type(network.one) is nn.Conv2d
    assert type(network.act) is nn.ReLU6
    assert ("PyTorch's are used, since Triton's fail: no C compiler" in caplog.text) == (not wrong)


@interpreter
def test_a_network_of_the_zoo() -> None:
    model = freeze(load("synth-mobile", random_weights_seed=1))
    fold_batch_norms(model.backbone, keep=model.layers)
    fused = copy.deepcopy(model.backbone)
    before = {name: value.clone() for name, value in fused.state_dict().items() if "depthwise" in name}
    fuse_depthwise(fused, (3, 112, 112), keep=model.layers)
    found = {n: m for n, m in fused.named_modules() if isinstance(m, FusedDepthwiseConv2d)}
    assert list(found) == ["depthwise", *(f"blocks.{i}.depthwise" for i in range(6)), "pool"]
    assert [type(m.activation) for m in found.values()] == [nn.PReLU] * 7 + [type(None)]
    after = fused.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name in after)


def test_prepare_on_a_cpu_leaves_them_alone() -> None:
    prepared = prepare(load("synth-mobile", random_weights_seed=1))
    assert not any(isinstance(m, FusedDepthwiseConv2d) for m in prepared.modules())
