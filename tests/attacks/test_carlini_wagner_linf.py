"""C&W in L-infinity: the optimum of a linear model, and what the engine promises of every attack."""

from functools import partial

import pytest
import small
import torch
from neighbours import assert_alone
from small import curved_model, grey_images, predicted

import fastadv as fa
from fastadv.attacks import ClassifyAs, Misclassify
from fastadv.attacks.carlini_wagner_linf import CarliniWagnerLinf
from fastadv.attacks.pair_classifier import anonymisation

LEVEL = 1 / 255
SHORT = fa.Recipe(CarliniWagnerLinf(search_steps=2, inner_steps=50))


linear_model = partial(small.linear_model, classes=5, lead=0.8)
faces = partial(grey_images, low=0.3, high=0.7)


def nearest(model: fa.FaceModel, x: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """The L-infinity distance to the nearest border, or to the points that are beyond it by a margin."""
    with torch.no_grad():
        z = model.logits(x)
        own = z.argmax(1)
        gaps = z.gather(1, own[:, None]) - z + margin
        slopes = (model.head.weight[None] - model.head.weight[own][:, None]).abs().sum(2)
        return torch.where(slopes > 0, gaps / slopes, torch.inf).amin(1)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_smallest_perturbation_of_a_linear_model_at_any_scale_of_the_logits(scale):
    model, x = linear_model(scale=scale), faces(6)
    made = fa.run(
        fa.Recipe(CarliniWagnerLinf(search_steps=3, inner_steps=100)), Misclassify(predicted(model, x)), model, x
    )
    best = nearest(model, x)
    assert made.success.all()
    # 5 % tolerance, 2 % for the 8 bits, and up to one level
    assert bool((made.linf <= 1.07 * best + LEVEL).all())
    assert bool((made.linf >= best).all())


def test_a_constant_a_rate_and_no_early_end_get_there_too():
    model, x = linear_model(), faces(3)
    attack = CarliniWagnerLinf(
        search_steps=2, inner_steps=100, learning_rate=0.01, initial_constant=10.0, abort_early=False
    )
    made = fa.run(fa.Recipe(attack), Misclassify(predicted(model, x)), model, x)
    assert made.success.all()
    assert bool((made.linf <= 1.1 * nearest(model, x) + LEVEL).all())


def test_a_confidence_is_reached_and_paid_for():
    model, x = linear_model(), faces(4)
    attack = CarliniWagnerLinf(search_steps=2, inner_steps=100, confidence=0.3)
    made = fa.run(fa.Recipe(attack), Misclassify(predicted(model, x)), model, x)
    assert bool((made.score_after <= -0.3).all())
    assert bool((made.linf <= 1.1 * nearest(model, x, margin=0.3) + LEVEL).all())


def test_an_offset_to_all_logits_changes_nothing():
    model, x = linear_model(), faces(6)
    label = predicted(model, x)
    plain = fa.run(SHORT, Misclassify(label), model, x)
    with torch.no_grad():
        model.head.bias -= 100
    shifted = fa.run(SHORT, Misclassify(label), model, x)
    assert shifted.success.all()
    torch.testing.assert_close(shifted.linf, plain.linf, rtol=0.05, atol=LEVEL + 1e-6)


def test_a_wanted_class_and_a_pair_are_reached():
    model, x, other = curved_model(), faces(4), faces(4, seed=2)
    wanted = (predicted(model, x) + 2) % 6
    made = fa.run(SHORT, ClassifyAs(wanted), model, x)
    assert made.success.all()
    assert torch.equal(predicted(model, made.images), wanted)
    with torch.no_grad():
        far = 1.3 * float((model(x) - model(other)).norm(dim=1).max())
    made = fa.run(SHORT, anonymisation(other, threshold=far), model, x)
    assert made.success.all()
    assert float(made.linf.max()) < 0.5


def test_what_cannot_be_reached_is_reported_as_missed_and_what_is_there_is_left_alone():
    model, x = linear_model(classes=2), faces(2)
    with torch.no_grad():
        model.head.bias[0] += 1000
    made = fa.run(
        fa.Recipe(CarliniWagnerLinf(search_steps=2, inner_steps=10)),
        Misclassify(torch.tensor([0, 0])),
        model,
        x,
        engine=fa.Engine(success_float=True),
    )
    assert not made.success.any()
    assert not made.success_float.any()
    assert int(made.ticks.max()) <= 20
    with pytest.warns(fa.AttackWarning, match="2 images had reached the goal before"):
        made = fa.run(SHORT, Misclassify(torch.tensor([1, 1])), model, x)
    assert torch.equal(made.images, x)
    assert made.ticks.tolist() == [1, 1]


def test_a_result_does_not_depend_on_slots_order_or_neighbours():
    model, x = curved_model(), faces(11)
    goal = Misclassify(predicted(model, x))
    assert_alone(fa.Recipe(CarliniWagnerLinf(search_steps=2, inner_steps=30)), goal, model, x, scores=True)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("search_steps", 0, "search_steps: expected an integer of at least 1, got 0"),
        ("inner_steps", -1, "inner_steps: expected an integer of at least 1, got -1"),
        ("learning_rate", 0.0, "learning_rate: expected None or a positive number, got 0.0"),
        ("initial_constant", -1.0, "initial_constant: expected None or a positive number, got -1.0"),
        ("tolerance", 0.0, "tolerance: expected a positive number, got 0.0"),
        ("confidence", float("nan"), "confidence: expected a number of at least 0, got nan"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field, value, text):
    with pytest.raises(ValueError, match=text):
        CarliniWagnerLinf(**{field: value})
