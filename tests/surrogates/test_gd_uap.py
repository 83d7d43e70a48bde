"""GD-UAP: its objective in float64, the ball, and that it rises and repeats."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fastadv.models import FaceModel, freeze, load
from fastadv.ops import philox
from fastadv.surrogates.gd_uap import RangePrior, activation_objective, gd_uap

EPS = 10 / 255


class Small(nn.Module):
    """A convolution outside, a residual block, and another convolution outside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.branch(x))
        return self.fc(self.last(x).mean((2, 3)))


def small() -> FaceModel:
    return FaceModel(
        Small(), input_size=(10, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), name="small", layers=("branch",)
    ).eval()


def fired(model: FaceModel, images: Tensor) -> Tensor:
    """The objective of every image in float64, layer by layer."""
    double = freeze(copy.deepcopy(model).double())
    net = double.backbone
    x = (images.double() - double.mean) / double.std
    a = net.first(x)
    y = torch.relu(a)
    b = y + net.branch(y)
    c = net.last(torch.relu(b))
    return sum(values.flatten(1).norm(dim=1).log() for values in (a, b, c))


def start(model: FaceModel, seed: int) -> Tensor:
    u = philox.uniform(seed, torch.zeros(1, dtype=torch.int64), 0, 0, (3, *model.input_size))
    return (2 * u - 1) * EPS


def test_objective():
    a, b = torch.full((2, 3, 4), 2.0), torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    expected = [math.log(math.sqrt(48)) + math.log(5), math.log(math.sqrt(48)) + math.log(10)]
    torch.testing.assert_close(activation_objective([a, b]), torch.tensor(expected))
    assert activation_objective([torch.ones(1, 4, dtype=torch.bfloat16)]).dtype == torch.float32
    assert bool(activation_objective([torch.zeros(1, 4)]).isfinite())


def test_history_is_the_objective_of_the_iterates():
    model = small()
    made = gd_uap(model, eps=EPS, seed=5, steps=1)
    base = model.mean.expand(1, 3, 10, 8)
    first = float(fired(model, base + start(model, 5)))
    assert made.history[0] == pytest.approx(first, rel=1e-6)
    assert made.objective == max(made.history)
    assert float(fired(model, base + made.delta)) == pytest.approx(made.objective, rel=1e-6)


def test_the_first_step_goes_up_the_gradient():
    """Adam's first step is the learning rate along the sign of the gradient."""
    model, size = small(), 1e-4
    made = gd_uap(model, eps=EPS, seed=5, steps=1, step_size=size)
    leaf = start(model, 5).double().requires_grad_()
    (gradient,) = torch.autograd.grad(fired(model, model.mean + leaf), leaf)
    expected = (leaf.detach() + size * gradient.sign()).clamp(-EPS, EPS)
    clear = gradient.abs() > 1e-6 * gradient.abs().max()
    torch.testing.assert_close(made.delta[None][clear].double(), expected[clear], rtol=0, atol=1e-8)


@pytest.mark.parametrize("prior", [None, RangePrior(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), count=4)])
def test_rises_stays_in_the_ball_and_repeats(prior):
    model = small()
    made, again = (gd_uap(model, eps=EPS, seed=1, steps=60, prior=prior) for _ in range(2))
    assert torch.equal(made.delta, again.delta)
    assert made.history == again.history
    assert made.delta.shape == (3, 10, 8)
    assert made.delta.dtype == torch.float32
    assert float(made.delta.abs().max()) <= EPS * (1 + 1e-6)
    assert made.objective > made.history[0] + 0.1
    assert not torch.equal(made.delta, gd_uap(model, eps=EPS, seed=2, steps=60, prior=prior).delta)


def test_the_prior_is_what_the_network_sees():
    """Noise of next to no deviation is its mean."""
    model = small()
    made = gd_uap(model, eps=EPS, seed=5, steps=1, prior=RangePrior(mean=(0.9, 0.1, 0.2), std=(1e-9,) * 3, count=3))
    base = torch.tensor([0.9, 0.1, 0.2]).view(1, 3, 1, 1)
    assert made.history[0] == pytest.approx(float(fired(model, base + start(model, 5))), rel=1e-5)


def test_saturation_halves_and_then_stops():
    model, seen = small(), []
    # in a step or two, every pixel is at the edge
    made = gd_uap(
        model,
        eps=EPS,
        seed=0,
        steps=400,
        step_size=EPS,
        patience=2,
        on_step=lambda step, value: seen.append((step, value)),
    )
    assert made.saturations >= 3
    assert len(made.history) < 401
    assert seen == list(enumerate(made.history))
    assert float((made.delta.abs() > 0.999 * EPS).float().mean()) > 0.5


def test_a_shipped_network_and_bf16():
    model = load("synth-vgg")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    full, rounded = (gd_uap(model, eps=EPS, seed=0, steps=5, precision=precision) for precision in ("fp32", "bf16"))
    assert full.history[-1] > full.history[0]
    assert rounded.history[0] == pytest.approx(full.history[0], rel=0.01)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 0.0}, r"eps: expected a number in \(0, 1\], in pixels of \[0, 1\], got 0\.0"),
        ({"eps": 10}, r"eps: expected a number in \(0, 1\], in pixels of \[0, 1\], got 10"),
        ({"step_size": float("nan")}, r"step_size: expected a number in \(0, 1\], in pixels of \[0, 1\], got nan"),
        ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
        ({"steps": 2**20}, r"steps: expected a number below 2\*\*20, got 1048576"),
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        ({"patience": 0}, "patience: expected an integer of at least 1, got 0"),
        ({"precision": "fp16"}, "precision: expected one of"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        gd_uap(small(), **{"eps": EPS, "seed": 0, "steps": 2, **changes})


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (Branching(), "model: expected a backbone that can be traced, to find its layers, got 'm', which cannot"),
        (Flat(), "model: expected a backbone with convolutions to fire, got 'm' without"),
    ],
    ids=["branch", "flat"],
)
def test_refuses_backbones(backbone, message):
    model = FaceModel(backbone, input_size=(4, 4), mean=(0, 0, 0), std=(1, 1, 1), name="m").eval()
    with pytest.raises(ValueError, match=message):
        gd_uap(model, eps=EPS, seed=0, steps=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5, 0.5, 1.5)}, "mean: expected three numbers"),
        ({"std": (0.1, 0.1, 0.0)}, "std: expected three positive"),
        ({"count": 0}, "count: expected an integer of at least 1, got 0"),
    ],
)
def test_refuses_priors(changes, message):
    with pytest.raises(ValueError, match=message):
        RangePrior(**{"mean": (0.5,) * 3, "std": (0.1,) * 3, **changes})


def test_refuses_no_activations():
    with pytest.raises(ValueError, match="activations: expected at least one tensor, got none"):
        activation_objective([])
