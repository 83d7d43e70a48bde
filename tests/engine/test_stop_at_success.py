"""An image that stops at success reaches its goal as it is saved: at 8 bits, on the bare model."""

from dataclasses import replace

import pytest
import torch
from small import curved_model, grey_images
from torch import nn

import fastadv as fa
from fastadv.attacks import APGD, L2, Impersonate, Linf, Misclassify, SignGradient
from fastadv.attacks.attack import depends_on_success
from fastadv.attacks.budget import to_levels
from fastadv.engine import Engine
from fastadv.surrogates import FeatureDropout, InputDiversity, Surrogate

STEPS = 60
# a radius and a step that are no whole number of grey levels
SIGNED = SignGradient(budget=Linf(20.4 / 255), steps=STEPS, step_size=0.37 / 255, stop_at_success=True)
ATTACKS = {
    "bim": SIGNED,
    "mi-fgsm": replace(SIGNED, momentum=1.0),
    "from a random start": replace(SIGNED, random_start=True),
    "pgd-l2": replace(SIGNED, budget=L2(3.0), step_size=0.03),
    # every trial is at the border, where the nearest levels are a tenth of the radius outside
    "pgd-l2 from a random start": replace(SIGNED, budget=L2(0.3), step_size=0.03, random_start=True),
    "apgd": APGD(budget=Linf(20.4 / 255), steps=STEPS),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("on_levels", [True, False])
def test_no_success_is_lost_to_rounding(name, on_levels):
    model, x = curved_model(), grey_images(48)
    x = x if on_levels else (x * 0.97 + 0.01)
    label = model.logits(x).argmax(1)
    made = fa.run(fa.Recipe(ATTACKS[name]), Misclassify(label), model, x, engine=Engine(batch=16))
    stopped = made.ticks < (ATTACKS[name].steps)
    assert int(stopped.sum()) > 10
    assert bool(made.success[stopped].all())


def test_it_stops_at_the_first_trial_whose_rounded_image_succeeds():
    model, x = curved_model(), grey_images(16)
    label = model.logits(x).argmax(1)
    goal = Misclassify(label)
    made = fa.run(fa.Recipe(SIGNED), goal, model, x, engine=Engine(batch=16))
    origin, trial = x, x.clone()
    ticks = torch.zeros(len(x), dtype=torch.int64)
    at_work = torch.ones(len(x), dtype=torch.bool)
    for _ in range(STEPS):
        seen = SIGNED.budget.round8(trial, origin).requires_grad_()
        logits = model.logits(seen)
        (gradient,) = torch.autograd.grad(-torch.nn.functional.cross_entropy(logits, label, reduction="sum"), seen)
        ticks += at_work
        at_work &= logits.argmax(1) == label
        moved = SIGNED.budget.clip(trial - SIGNED.step_size * gradient.sign(), origin)
        trial = torch.where(at_work.view(-1, 1, 1, 1), moved, trial)
    assert torch.equal(made.ticks, ticks)
    assert torch.equal(made.images, SIGNED.budget.round8(trial, origin))


@pytest.mark.parametrize(
    "surrogate",
    [Surrogate(dropout=FeatureDropout(rate=0.3)), Surrogate(diversity=InputDiversity(probability=1.0))],
    ids=["dropout", "diversity"],
)
@pytest.mark.parametrize("classes", [False, True], ids=["embedding", "logits"])
def test_success_is_that_of_the_bare_model_where_the_surrogate_is_random(surrogate, classes):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(),
        nn.Linear(512, 12),
    )  # fmt: skip
    half = (0.5, 0.5, 0.5)
    head = nn.Linear(12, 5) if classes else None
    model = fa.FaceModel(net, input_size=(16, 16), mean=half, std=half, name="small", head=head).eval()
    x, targets = grey_images(40, size=(16, 16)), grey_images(40, seed=2, size=(16, 16))
    goal = Misclassify(model.logits(x).argmax(1)) if classes else Impersonate(targets, threshold=0.9)
    recipe = fa.Recipe(replace(SIGNED, step_size=1 / 255), surrogate=surrogate)
    made = fa.run(recipe, goal, model, x, engine=Engine(batch=8))
    stopped = made.ticks < STEPS
    assert int(stopped.sum()) > 10
    assert bool(made.success[stopped].all())


def test_an_attack_that_prefers_a_success_tests_it_on_the_bare_model_too():
    assert depends_on_success(APGD(budget=Linf(0.1), stop_at_success=False))
    assert not depends_on_success(replace(SIGNED, stop_at_success=False))


@pytest.mark.parametrize("budget", [Linf(0.1), Linf(0.3 / 255)], ids=str)
def test_levels_lie_in_the_budget(budget):
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    low, high = budget.level_bounds(x)
    assert bool((low <= high).all())
    far = to_levels(torch.ones_like(x), low, high)
    assert torch.equal((far * 255).round(), high)
    assert torch.equal(far, budget.round8(torch.ones_like(x), x))
