"""The smallest radius at which an attack succeeds: known for a linear model, for every attack of the family."""

from functools import partial

import pytest
import small
import torch
from neighbours import assert_alone
from small import grey_images, predicted

import fastadv as fa
from fastadv import attacks
from fastadv.attacks import L2, Linf, Misclassify, SignGradient
from fastadv.attacks.apgd import APGD
from fastadv.attacks.minimal_eps import MinimalEps

LEVEL = 1 / 255


LINF = [attacks.fgsm(), attacks.bim(steps=4), attacks.pgd(steps=8), attacks.mi_fgsm(steps=4), attacks.fim(steps=10)]


linear_model = partial(small.linear_model, lead=0.8)
faces = partial(grey_images, low=0.3, high=0.7)


@pytest.mark.parametrize("attack", LINF, ids=lambda a: a.name)
def test_the_smallest_linf_radius_of_a_linear_model(attack):
    model, x = linear_model(), faces(4)
    with torch.no_grad():
        z = model.logits(x)
        best = (z[:, 0] - z[:, 1]) / (model.head.weight[1] - model.head.weight[0]).abs().sum()
    search = MinimalEps(attack=attack.attack, first=LEVEL, largest=0.5, bisections=7)
    made = fa.run(fa.Recipe(search), Misclassify(predicted(model, x)), model, x, seed=4)
    assert search.name == f"minimal-{attack.name}"
    assert made.success.all()
    assert bool((made.linf >= best).all())
    assert bool((made.linf <= 1.03 * best + LEVEL).all())


@pytest.mark.parametrize("attack", [attacks.pgd_l2(steps=20), attacks.mi_fgsm_l2(steps=4)], ids=lambda a: a.name)
def test_the_smallest_l2_radius_of_a_linear_model(attack):
    model, x = linear_model(), faces(4)
    with torch.no_grad():
        z = model.logits(x)
        best = (z[:, 0] - z[:, 1]) / (model.head.weight[1] - model.head.weight[0]).norm()
    search = MinimalEps(attack=attack.attack, first=0.1, largest=8.0, bisections=7, name="smallest")
    made = fa.run(fa.Recipe(search), Misclassify(predicted(model, x)), model, x, seed=4)
    assert search.name == "smallest"
    assert made.success.all()
    # a random start leaves the attack a few degrees beside the gradient
    assert bool((made.l2 <= 1.15 * best).all())
    assert bool((made.l2 >= best).all())


def test_the_largest_radius_is_where_it_ends():
    model, x = linear_model(lead=8.0), faces(2)
    search = MinimalEps(attack=attacks.fgsm().attack, first=0.01, largest=0.05)
    made = fa.run(fa.Recipe(search), Misclassify(torch.tensor([0, 0])), model, x)
    assert not made.success.any()
    assert made.ticks.tolist() == [8, 8]  # two evaluations at each of 0.01, 0.02, 0.04, 0.05
    assert search.steps >= 8
    torch.testing.assert_close(made.linf, torch.full((2,), 13 / 255))


def test_each_run_ends_at_its_first_success():
    model, x = linear_model(), faces(3)
    slow = SignGradient(budget=Linf(8 / 255), steps=50, step_size=8 / 255)
    made = fa.run(
        fa.Recipe(MinimalEps(attack=slow, first=0.4, largest=0.5, bisections=0)),
        Misclassify(predicted(model, x)),
        model,
        x,
    )
    assert made.ticks.tolist() == [2] * 3


@pytest.mark.parametrize("attack", [attacks.pgd(steps=3), attacks.mi_fgsm_l2(steps=3)], ids=lambda a: a.name)
def test_a_result_does_not_depend_on_slots_order_or_neighbours(attack):
    model, x = linear_model(classes=4), faces(11)
    goal = Misclassify(predicted(model, x))
    first = 0.01 if isinstance(attack.budget, Linf) else 0.2
    search = MinimalEps(attack=attack.attack, first=first, largest=100 * first, bisections=3)
    assert_alone(fa.Recipe(search), goal, model, x, seed=3)


def test_a_wrong_field_is_refused_by_name():
    with pytest.raises(TypeError, match="attack: expected a SignGradient, got APGD"):
        MinimalEps(attack=APGD(budget=L2(1.0)), first=0.1, largest=1.0)
    with pytest.raises(ValueError, match="first: expected at most largest = 0.5, got 1"):
        MinimalEps(attack=attacks.fgsm().attack, first=1.0, largest=0.5)
    with pytest.raises(ValueError, match="growth: expected a number above 1, got 0.5"):
        MinimalEps(attack=attacks.fgsm().attack, first=0.1, largest=0.5, growth=0.5)
