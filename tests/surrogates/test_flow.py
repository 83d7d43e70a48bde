"""The graph of a network, and what counts as a residual block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastadv.models import load
from fastadv.surrogates import flow

PROBE = torch.rand(1, 4, 6, 6)
KEPT = torch.rand(4, 1, 1)


class Net(nn.Module):
    """Some layers, and a forward pass given by the test."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.slim = nn.Conv2d(2, 2, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(6, 6)
        self.bias = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.run = run
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def split_and_add(m: Any, x: Tensor) -> Tensor:
    parts = x.chunk(2, 1)
    made = [m.slim(parts[0])]
    for part in parts[1:]:  # a loop over a value
        made.append(m.slim(made[-1] + part))
    return torch.cat(made, 1)


def in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y += x
    return y


RESIDUAL: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "identity": (lambda m, x: x + m.a(x), 1),
    "either_order": (lambda m, x: m.a(x) + x, 1),
    "torch.add": (lambda m, x: torch.add(m.a(x), x), 1),
    "method": (lambda m, x: m.a(x).add(x), 1),
    "in_place": (in_place, 1),
    "linear": (lambda m, x: x + m.fc(x), 1),
    "functional": (lambda m, x: x + F.linear(x, m.fc.weight), 1),
    "behind_a_layer": (lambda m, x: (y := m.a(x)) + m.b(y), 1),
    "projection": (lambda m, x: m.bn(m.a(x)) + m.c(F.relu(m.b(x))), 1),
    "pooled_shortcut": (lambda m, x: F.avg_pool2d(x, 3, 1, 1) + m.c(x), 1),
    "scaled_branch": (lambda m, x: x + 0.2 * torch.cat((m.slim(x[:, :2]), x[:, 2:]), 1), 1),
    "gated_branch": (lambda m, x: x + (y := m.a(x)) * torch.sigmoid(m.b(y)), 1),
    "two_in_a_row": (lambda m, x: (y := x + m.a(x)) + m.b(y), 2),
    "nested": (lambda m, x: x + m.b((y := m.a(x)) + m.c(y)), 2),
    "plain": (lambda m, x: m.b(m.a(x)), 0),
    "constant": (lambda m, x: m.a(x) + m.bias + 1.0, 0),
    "polynomial": (lambda m, x: m.a(x + 0.1 * x**3), 0),
    "doubled": (lambda m, x: (y := m.a(x)) + y, 0),
    "equal_sides": (lambda m, x: m.a(x) + m.b(x), 0),
    "split": (split_and_add, 0),
    "concatenated": (lambda m, x: torch.cat((x, m.a(x)), 1), 0),
}


@pytest.mark.parametrize("case", RESIDUAL)
def test_residual_blocks(case):
    run, expected = RESIDUAL[case]
    net = Net(run)
    graph = flow.trace(net, PROBE)
    assert graph is not None
    x = torch.rand(3, 4, 6, 6)
    assert torch.equal(fx.GraphModule(net, graph)(x), net(x))
    found = flow.residuals(net, graph)
    assert len(found) == expected
    for block in found:
        assert block.branch in block.inside
        assert block.branch in block.total.args
        assert block.total not in block.inside


def test_what_is_inside():
    net = Net(lambda m, x: (y := m.c(x)) + m.b(F.relu(m.a(y))))
    (block,) = flow.residuals(net, flow.trace(net, PROBE))
    assert {node.name for node in block.inside} == {"a", "relu", "b"}
    assert block.branch.name == "b"


# From the tables of the architectures: two blocks per unit of stride 1, ...
BLOCKS = {
    "mobilefacenet": 4 + 6 + 2,
    "mobileface_v2": 8,
    "iresnet18": 2 + 2 + 2 + 2,
    "iresnet50": 3 + 4 + 14 + 3,
    "edgeface_xs": 3 + 3 + 9 + 3 + 3,  # and one more in each of the three attention blocks
    "synth-mobile": 3,
    "synth-resnet": 6,
    "synth-vgg": 0,
    "synth-shuffle": 0,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_architectures(name):
    backbone = load(name, random_weights_seed=0).backbone
    graph = flow.trace(backbone, torch.full((1, 3, 112, 112), 0.5))
    assert len(flow.residuals(backbone, graph)) == BLOCKS[name]


class Doubled(torch.autograd.Function):
    """The identity with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def unseen(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():  # as a C++ extension would
        return x * 2.0


NO_GRAPH: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "branch": lambda m, x: m.a(x) if x.sum() > 0 else m.b(x),
    "number": lambda m, x: m.a(x) * x.sum().item(),
    "batch": lambda m, x: torch.stack([m.a(image) for image in x]),  # as long as the probe's
    "length": lambda m, x: m.a(x).reshape(len(x), -1),
    "unseen": lambda m, x: m.a(x) + unseen(x),
    "fails": lambda m, x: m.a(x) @ m.bias,
}


@pytest.mark.parametrize("case", NO_GRAPH)
def test_what_has_no_graph(case):
    assert flow.trace(Net(NO_GRAPH[case]), PROBE) is None


def without_gradient(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(m.b(x))
    return m.a(x) * gate


def windows(m: Any, x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    parts = x.view(count * channels, height // 2, 2, -1).transpose(1, 2)
    made = m.fc(parts.reshape(parts.size(0) * 2, height * width // 12, 6))
    return m.a(made.reshape(*x.shape[:2], height, width).clone()) / x.shape[0]


def assigned(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(m.a(x), dtype=x.dtype, device=x.device)
    y[:, :2] = m.slim(x[:, 2:])
    return m.c(y + torch.full((x.shape[0], 4, 1, 1), 0.5))


GRAPH: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "sizes": windows,
    "assignment": assigned,
    "no_gradient": without_gradient,
    "constant": lambda m, x: m.a(x) * KEPT,
    "several": lambda m, x: torch.cat([m.slim(v).mul_(2) for v in x.max(0).values.expand_as(x).split([2, 2], 1)], 1),
    "named": lambda m, x: torch.nn.functional.interpolate(m.a(x), size=x.shape[2:], mode="nearest"),
    "power": lambda m, x: 1 - (1.0 + m.a(x)) ** 2 / 3,
}


@pytest.mark.parametrize("case", GRAPH)
def test_the_graph_is_the_network(case):
    net = Net(GRAPH[case])
    before = set(vars(net))
    graph = flow.trace(net, PROBE, gradients=True)
    assert graph is not None
    assert set(vars(net)) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    made = fx.GraphModule(net, graph)
    x = torch.rand(3, 4, 6, 6, requires_grad=True)
    (expected, slope), (got, other) = ((y := f(x), *torch.autograd.grad(y.square().sum(), x)) for f in (net, made))
    assert torch.equal(got, expected)
    assert torch.equal(other, slope)


def test_a_gradient_of_its_own_has_no_graph():
    net = Net(lambda m, x: m.a(x) + Doubled.apply(m.b(x)))
    assert flow.trace(net, PROBE, gradients=True) is None


def test_a_length_is_a_number_again_when_the_pass_is_over():
    kept = []

    def run(m: Any, x: Tensor) -> Tensor:
        kept.append(x.shape[0])
        return m.a(x).reshape(kept[0] * 1, -1) if len(kept) == 1 else m.a(x)

    flow.trace(Net(run), PROBE)
    assert kept[0] + 1 == 2
    assert type(kept[0] * 3) is int


def test_calls():
    net = Net(lambda m, x: m.a(m.a(x)) + m.b(x) * m.c.weight.sum() + m.c(x))
    found = flow.calls(net, flow.trace(net, PROBE))
    assert [found[id(layer)] for layer in (net.a, net.b, net.c, net.bn)] == [2, 1, 2, 0]
