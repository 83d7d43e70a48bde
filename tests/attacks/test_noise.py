"""Noise: the first size that flips the decision, from forward passes only."""

from functools import partial

import pytest
import small
import torch
from neighbours import assert_alone
from small import SIZE, D, grey_images, predicted
from torch import nn

import fastadv as fa
from fastadv.attacks import Misclassify
from fastadv.attacks.noise import Noise
from fastadv.ops import philox

linear_model = partial(small.linear_model, classes=40)  # many, so that one is near
faces = partial(grey_images, low=0.45, high=0.55)


@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_the_size_is_where_the_line_of_the_noise_crosses_the_border(kind):
    """Inside the range a linear model's logits are linear in sigma: the first crossing is known."""
    model, x = linear_model(), faces(40)
    label = predicted(model, x)
    ids = torch.arange(40)
    if kind == "uniform":
        z = (2 * philox.uniform(5, ids, 0, 0, (3, *SIZE)) - 1) * 3**0.5
    else:
        z = philox.normal(5, ids, 0, 0, (3, *SIZE))
    with torch.no_grad():
        logits, slope = model.logits(x), model.head(z.flatten(1)) - model.head.bias
        gap = logits.gather(1, label[:, None]) - logits
        rise = slope - slope.gather(1, label[:, None])
        sigma = torch.where(rise > 0, gap / rise, torch.inf).amin(1)
    reach = 0.45 / z.abs().flatten(1).amax(1)
    known = sigma < reach  # the others leave the range before
    assert int(known.sum()) >= 3
    made = fa.run(fa.Recipe(Noise(kind=kind, bisections=14)), Misclassify(label), model, x, seed=5)
    length = sigma * z.flatten(1).norm(dim=1)
    assert made.success[known].all()
    # 2 % for the 8 bits, and a part of a level for small ones
    slack = 0.25 / 255 * D**0.5
    assert bool((made.l2[known] <= 1.03 * length[known] + slack).all())
    assert bool((made.l2[known] >= length[known] - slack).all())
    assert not made.flags[0]


def test_no_backward_pass_is_made():
    class NoWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise AssertionError("a gradient was asked for")

    class OneWay(nn.Module):
        def forward(self, x):
            return NoWay.apply(x).flatten(1)

    head = linear_model().head
    model = fa.FaceModel(OneWay(), input_size=SIZE, mean=(0,) * 3, std=(1,) * 3, name="one-way", head=head).eval()
    x = faces(3)
    made = fa.run(fa.Recipe(Noise(kind="gaussian")), Misclassify(predicted(model, x)), model, x)
    assert int(made.ticks.min()) > 1
    assert bool((made.l2 > 0).all())


def test_the_largest_size_is_where_it_ends():
    model, x = linear_model(lead=1000.0), faces(2)
    attack = Noise(kind="uniform", first=0.01, growth=2.0, largest=0.05)
    made = fa.run(fa.Recipe(attack), Misclassify(torch.tensor([0, 0])), model, x)
    assert not made.success.any()
    assert made.ticks.tolist() == [4, 4]  # 0.01, 0.02, 0.04, 0.05
    assert float(made.linf.max()) <= 0.05 * 3**0.5 + 1 / 255
    assert attack.steps >= 4


def test_noise_belongs_to_seed_and_id():
    model, x = linear_model(), faces(1).expand(3, -1, -1, -1)
    goal = Misclassify(predicted(model, x))
    a = fa.run(fa.Recipe(Noise(kind="gaussian")), goal, model, x, seed=1, ids=[7, 8, 7])
    b = fa.run(fa.Recipe(Noise(kind="gaussian")), goal, model, x, seed=2**64 - 1, ids=[7, 8, 7])
    assert torch.equal(a.images[0], a.images[2])
    assert not torch.equal(a.images[0], a.images[1])
    assert not torch.equal(a.images[0], b.images[0])


def test_a_result_does_not_depend_on_slots_order_or_neighbours():
    model, x = linear_model(), faces(11)
    goal = Misclassify(predicted(model, x))
    assert_alone(fa.Recipe(Noise(kind="uniform")), goal, model, x, seed=3)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("kind", "salt", "kind: expected 'uniform' or 'gaussian', got 'salt'"),
        ("first", 0.0, "first: expected a positive number, got 0.0"),
        ("first", 2.0, "first: expected at most largest = 1, got 2"),
        ("growth", 1.0, "growth: expected a number above 1, got 1.0"),
        ("bisections", -1, "bisections: expected an integer of at least 0, got -1"),
        ("largest", float("inf"), "largest: expected a positive number, got inf"),
        ("margin", -0.5, "margin: expected a number of at least 0, got -0.5"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field, value, text):
    with pytest.raises(ValueError, match=text):
        Noise(**{"kind": "uniform", field: value})
