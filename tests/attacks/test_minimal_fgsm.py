"""Minimal FGSM: the smallest signed step of a linear model, one gradient an image."""

from functools import partial

import pytest
import small
import torch
from neighbours import assert_alone
from small import grey_images, predicted

import fastadv as fa
from fastadv.attacks import Misclassify
from fastadv.attacks.minimal_fgsm import MinimalFGSM

linear_model = partial(small.linear_model, lead=0.8)
faces = partial(grey_images, low=0.3, high=0.7)


def test_the_smallest_step_of_a_linear_model_in_whole_levels():
    """With two classes ``eps = gap / ||w_1 - w_0||_1``; every pixel moves by as much, so 8 bits take the next level."""
    model, x = linear_model(), faces(8)
    with torch.no_grad():
        z = model.logits(x)
        eps = (z[:, 0] - z[:, 1]) / (model.head.weight[1] - model.head.weight[0]).abs().sum()
    made = fa.run(fa.Recipe(MinimalFGSM(bisections=12)), Misclassify(predicted(model, x)), model, x)
    assert made.success.all()
    assert torch.equal(torch.round(made.linf * 255), torch.ceil(eps * 255))


def test_the_largest_size_is_where_it_ends():
    model, x = linear_model(lead=8.0), faces(2)
    attack = MinimalFGSM(first=0.01, growth=2.0, largest=0.05)
    made = fa.run(fa.Recipe(attack), Misclassify(torch.tensor([0, 0])), model, x)
    assert not made.success.any()
    assert made.ticks.tolist() == [5, 5]  # the gradient, then 0.01, 0.02, 0.04, 0.05
    torch.testing.assert_close(made.linf, torch.full((2,), 13 / 255))
    assert attack.steps >= 5


def test_what_is_there_already_is_left_alone_and_what_has_no_gradient_is_named():
    model, x = linear_model(), faces(2)
    with pytest.warns(fa.AttackWarning, match="2 images had reached the goal before"):
        made = fa.run(fa.Recipe(MinimalFGSM()), Misclassify(torch.tensor([1, 1])), model, x)
    assert torch.equal(made.images, x)
    assert made.ticks.tolist() == [1, 1]
    with torch.no_grad():
        model.head.weight[:] = 0
    with pytest.warns(fa.AttackWarning, match="2 images had an all-zero gradient"):
        made = fa.run(fa.Recipe(MinimalFGSM()), Misclassify(torch.tensor([0, 0])), model, x)
    assert made.ticks.tolist() == [1, 1]


def test_a_result_does_not_depend_on_slots_order_or_neighbours():
    model, x = linear_model(classes=4), faces(11)
    goal = Misclassify(predicted(model, x))
    assert_alone(fa.Recipe(MinimalFGSM()), goal, model, x, varied=False)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("first", -1.0, "first: expected a positive number, got -1.0"),
        ("growth", float("nan"), "growth: expected a number above 1, got nan"),
        ("margin", -0.5, "margin: expected a number of at least 0, got -0.5"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field, value, text):
    with pytest.raises(ValueError, match=text):
        MinimalFGSM(**{field: value})
