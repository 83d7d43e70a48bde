"""C&W in L0: the fewest pixels of a linear model, and what the engine promises of every attack."""

from functools import partial

import pytest
import small
import torch
from neighbours import assert_alone
from small import SIZE, curved_model, grey_images, predicted

import fastadv as fa
from fastadv.attacks import ClassifyAs, Misclassify
from fastadv.attacks.carlini_wagner_l0 import CarliniWagnerL0
from fastadv.engine import Engine

SHORT = fa.Recipe(CarliniWagnerL0(search_steps=3, inner_steps=60, retries=2))


linear_model = partial(small.linear_model, classes=5, lead=0.8)
faces = partial(grey_images, low=0.3, high=0.7)


def changed(images: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The number of pixels that differ, over all channels."""
    return ((images - x).abs().amax(1) > 0).flatten(1).sum(1)


def fewest(model: fa.FaceModel, image: torch.Tensor, own: int) -> int:
    """The pixels that a linear model needs: those whose way to 0 or 1 gains most, one after the other."""
    counts = []
    with torch.no_grad():
        z = model.logits(image[None])[0]
        for other in range(len(z)):
            if other != own:
                w = (model.head.weight[other] - model.head.weight[own]).view(3, *SIZE)
                gains = torch.where(w > 0, w * (1 - image), -w * image).sum(0).flatten()
                reached = gains.sort(descending=True).values.cumsum(0)
                counts.append(int((reached < z[own] - z[other]).sum()) + 1)
    return min(counts)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_close_to_the_fewest_pixels_of_a_linear_model_at_any_scale_of_the_logits(scale):
    model, x = linear_model(scale=scale), faces(6)
    label = predicted(model, x)
    made = fa.run(SHORT, Misclassify(label), model, x)
    best = torch.tensor([fewest(model, x[i], int(label[i])) for i in range(6)])
    count = changed(made.images, x)
    assert made.success.all()
    assert bool((count >= best).all())
    assert bool((count <= best + 1).all())


def test_an_offset_to_all_logits_changes_nothing():
    model, x = linear_model(), faces(6)
    label = predicted(model, x)
    plain = fa.run(SHORT, Misclassify(label), model, x)
    with torch.no_grad():
        model.head.bias -= 100
    shifted = fa.run(SHORT, Misclassify(label), model, x)
    assert shifted.success.all()
    assert int((changed(shifted.images, x) - changed(plain.images, x)).abs().max()) <= 1


def test_a_wanted_class_is_reached_by_few_pixels_and_with_confidence():
    model, x = curved_model(), faces(4)
    wanted = (predicted(model, x) + 2) % 6
    made = fa.run(SHORT, ClassifyAs(wanted), model, x)
    assert made.success.all()
    assert torch.equal(predicted(model, made.images), wanted)
    assert int(changed(made.images, x).max()) < 30
    sure = fa.run(
        fa.Recipe(CarliniWagnerL0(search_steps=3, inner_steps=60, retries=2, confidence=0.05)),
        ClassifyAs(wanted),
        model,
        x,
    )
    assert bool((sure.score_after >= 0.05).all())
    assert bool((changed(sure.images, x) >= changed(made.images, x) - 1).all())


def test_what_cannot_be_reached_is_reported_as_missed_and_what_is_there_is_left_alone():
    model, x = linear_model(classes=2), faces(2)
    with torch.no_grad():
        model.head.bias[0] += 1000
    attack = CarliniWagnerL0(search_steps=2, inner_steps=10, abort_early=False, initial_constant=1.0)
    made = fa.run(fa.Recipe(attack), Misclassify(torch.tensor([0, 0])), model, x)
    assert not made.success.any()
    assert made.ticks.tolist() == [20, 20]
    with pytest.warns(fa.AttackWarning, match="2 images had reached the goal before"):
        made = fa.run(SHORT, Misclassify(torch.tensor([1, 1])), model, x)
    assert torch.equal(made.images, x)
    assert made.ticks.tolist() == [1, 1]


def test_a_result_does_not_depend_on_slots_order_or_neighbours():
    model, x = curved_model(), faces(11)
    goal = Misclassify(predicted(model, x))
    attack = CarliniWagnerL0(search_steps=1, inner_steps=20, retries=1)
    assert_alone(fa.Recipe(attack), goal, model, x, scores=True, last=Engine(slots=4, batch=4, channels_last=True))


def test_either_memory_layout_gives_the_same_pixels():
    model, x = linear_model(), faces(4)
    goal = Misclassify(predicted(model, x))
    made = [fa.run(SHORT, goal, model, x, engine=Engine(channels_last=layout)) for layout in (True, False)]
    assert torch.equal(changed(made[0].images, x), changed(made[1].images, x))


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("search_steps", 0, "search_steps: expected an integer of at least 1, got 0"),
        ("inner_steps", 0, "inner_steps: expected an integer of at least 1, got 0"),
        ("learning_rate", 0.0, "learning_rate: expected a positive number, got 0.0"),
        ("initial_constant", -1.0, "initial_constant: expected None or a positive number, got -1.0"),
        ("retries", -1, "retries: expected an integer of at least 0, got -1"),
        ("confidence", -1.0, "confidence: expected a number of at least 0, got -1.0"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field, value, text):
    with pytest.raises(ValueError, match=text):
        CarliniWagnerL0(**{field: value})
