"""Tracing, and what counts as a residual block."""

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


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.a(x) if x.sum() > 0 else m.b(x),
        lambda m, x: torch.stack([m.a(image) for image in x]),  # a loop over the batch is as long as the probe's
    ],
    ids=["branch", "batch"],
)
def test_what_cannot_be_traced(run):
    assert flow.trace(Net(run), PROBE) is None


def test_calls():
    net = Net(lambda m, x: m.a(m.a(x)) + m.b(x) * m.c.weight.sum() + m.c(x))
    found = flow.calls(net, flow.trace(net, PROBE))
    assert [found[id(layer)] for layer in (net.a, net.b, net.c, net.bn)] == [2, 1, 2, 0]
