"""C&W in L2: the optimum of a linear model, any scale of logits, embeddings and pairs, pixels at the ends."""

from functools import partial

import pytest
import small
import torch
from neighbours import assert_alone
from small import SIZE, D, curved_model, grey_images, predicted
from torch import nn

import fastadv as fa
from fastadv.attacks import ClassifyAs, Evade, Impersonate, Misclassify
from fastadv.attacks.adam import Moments
from fastadv.attacks.carlini_wagner import CarliniWagner
from fastadv.attacks.pair_classifier import anonymisation

LEVEL = 1 / 255
SHORT = fa.Recipe(CarliniWagner(search_steps=3, inner_steps=60))


linear_model = partial(small.linear_model, lead=0.8)
faces = partial(grey_images, low=0.3, high=0.7)


def nearest(model: fa.FaceModel, x: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """The L2 distance to the nearest border, or to the points that are beyond it by a margin."""
    with torch.no_grad():
        z = model.logits(x)
        own = z.argmax(1)
        gaps = z.gather(1, own[:, None]) - z + margin
        slopes = (model.head.weight[None] - model.head.weight[own][:, None]).norm(dim=2)
        return torch.where(slopes > 0, gaps / slopes, torch.inf).amin(1)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_smallest_perturbation_of_a_linear_model_at_any_scale_of_the_logits(scale):
    model, x = linear_model(5, scale=scale), faces(6)
    made = fa.run(
        fa.Recipe(CarliniWagner(search_steps=3, inner_steps=100)),
        Misclassify(predicted(model, x)),
        model,
        x,
        engine=fa.Engine(success_float=True),
    )
    assert made.success.all()
    assert made.success_float.all()
    assert bool((made.l2 <= 1.1 * nearest(model, x)).all())
    assert bool((made.l2 >= nearest(model, x)).all())


def test_the_papers_constant_and_rate_get_there_too():
    model, x = linear_model(5), faces(3)
    attack = CarliniWagner(search_steps=6, inner_steps=150, learning_rate=0.01, initial_constant=0.01)
    made = fa.run(fa.Recipe(attack), Misclassify(predicted(model, x)), model, x)
    assert made.success.all()
    assert bool((made.l2 <= 1.1 * nearest(model, x)).all())


def test_a_confidence_is_reached_and_paid_for():
    model, x = linear_model(5), faces(4)
    attack = CarliniWagner(search_steps=3, inner_steps=100, confidence=0.3)
    made = fa.run(fa.Recipe(attack), Misclassify(predicted(model, x)), model, x)
    best = nearest(model, x, margin=0.3)
    assert bool((made.score_after <= -0.3).all())
    assert bool((made.l2 <= 1.1 * best).all())


def test_an_offset_to_all_logits_changes_nothing():
    model, x = linear_model(5), faces(6)
    label = predicted(model, x)
    plain = fa.run(SHORT, Misclassify(label), model, x)
    with torch.no_grad():
        model.head.bias -= 100
    shifted = fa.run(SHORT, Misclassify(label), model, x)
    assert shifted.success.all()
    # float32 logits near 100 have a spacing of 8e-6
    torch.testing.assert_close(shifted.l2, plain.l2, rtol=1e-2, atol=0)


def test_pixels_at_the_ends_of_the_range_move():
    """Only the first 30 numbers of an image matter, and all of them are 0 or 1."""
    model = linear_model(2)
    with torch.no_grad():
        model.head.weight[:, 30:] = 0
        model.head.bias[:] = 0
        push = (model.head.weight[1] - model.head.weight[0]).view(1, 3, *SIZE)
        x = torch.where(push > 0, 0.0, 1.0)
        x.view(-1)[30:] = 0.5
    x = torch.round(x * 255) / 255
    assert predicted(model, x).tolist() == [0]
    made = fa.run(fa.Recipe(CarliniWagner(search_steps=3, inner_steps=200)), Misclassify(torch.tensor([0])), model, x)
    assert made.success.all()
    assert bool((made.l2 <= 1.1 * nearest(model, x)).all())


def test_a_wanted_class_is_reached():
    model, x = curved_model(), faces(5)
    wanted = (predicted(model, x) + 2) % 6
    made = fa.run(SHORT, ClassifyAs(wanted), model, x)
    assert made.success.all()
    assert torch.equal(predicted(model, made.images), wanted)


def test_embeddings_and_pairs_are_taken_over_their_threshold_by_little():
    model, x, other = curved_model(), faces(5), faces(5, seed=2)
    with torch.no_grad():
        d = (model(x) - model(other)).norm(dim=1)
    far, near = 1.3 * float(d.max()), 0.7 * float(d.min())
    goals = (
        anonymisation(other, threshold=far),
        Evade(references=other, threshold=far, metric="euclidean"),
        Evade(references=other, threshold=1 - far**2 / 2),
    )
    found = [fa.run(SHORT, goal, model, x) for goal in goals]
    assert all(bool(made.success.all()) for made in found)
    # three forms of one border: the same smallest perturbation
    for made in found[1:]:
        torch.testing.assert_close(made.l2, found[0].l2, rtol=0.1, atol=0)
    made = fa.run(SHORT, Impersonate(other, threshold=near, metric="euclidean"), model, x)
    assert made.success.all()
    with torch.no_grad():
        after = (model(made.images) - model(other)).norm(dim=1)
    assert bool((after > 0.9 * near).all())


def test_what_cannot_be_reached_is_reported_as_missed():
    model = linear_model(2)
    with torch.no_grad():
        model.head.bias[0] += 1000
    x = faces(2)
    made = fa.run(
        fa.Recipe(CarliniWagner(search_steps=2, inner_steps=10)),
        Misclassify(torch.tensor([0, 0])),
        model,
        x,
        engine=fa.Engine(success_float=True),
    )
    assert not made.success.any()
    assert not made.success_float.any()


def test_what_is_there_already_is_left_alone():
    model, x = linear_model(4), faces(3)
    with pytest.warns(fa.AttackWarning, match="3 images had reached the goal before"):
        made = fa.run(SHORT, Misclassify(torch.tensor([1, 1, 1])), model, x)
    assert torch.equal(made.images, x)
    assert made.ticks.tolist() == [1, 1, 1]
    assert made.flags == (("met_at_start",),) * 3


def test_an_image_stops_when_its_own_loss_does_not_fall():
    model, x = linear_model(5), faces(6)
    goal = Misclassify(predicted(model, x))
    patient = fa.run(fa.Recipe(CarliniWagner(search_steps=2, inner_steps=200, abort_early=False)), goal, model, x)
    early = fa.run(fa.Recipe(CarliniWagner(search_steps=2, inner_steps=200)), goal, model, x)
    assert patient.ticks.tolist() == [400] * 6
    assert int(early.ticks.max()) < 400
    torch.testing.assert_close(early.l2, patient.l2, rtol=0.05, atol=0)


def test_a_result_does_not_depend_on_slots_order_or_neighbours():
    model, x = curved_model(), faces(11)
    goal = Misclassify(predicted(model, x))
    attack = CarliniWagner(search_steps=2, inner_steps=45)
    assert_alone(fa.Recipe(attack), goal, model, x, scores=True)


def test_gradients_that_are_not_finite_leave_their_pixels():
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            g = g.clone()
            g[..., :2] = float("nan")
            return g

    class Poisoned(nn.Module):
        def forward(self, x):
            return Half.apply(x).flatten(1)

    head = linear_model(5).head
    model = fa.FaceModel(Poisoned(), input_size=SIZE, mean=(0,) * 3, std=(1,) * 3, name="poisoned", head=head).eval()
    x = faces(2)
    with pytest.warns(fa.AttackWarning, match="2 images met gradients that are not finite"):
        made = fa.run(SHORT, Misclassify(predicted(model, x)), model, x)
    assert torch.equal(made.images[..., :2], x[..., :2])
    assert made.success.all()


def test_adam_is_adam_and_forgets_at_the_first_step():
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(12, 2, D, generator=generator)
    moments = Moments.allocate(torch.zeros(2, D))
    for _ in range(2):  # the second round meets the moments of the first
        m, v = torch.zeros(2, 2, D, dtype=torch.float64)
        for k, gradient in enumerate(gradients, start=1):
            m = 0.9 * m + 0.1 * gradient.double()
            v = 0.999 * v + 0.001 * gradient.double() ** 2
            expected = (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
            found = moments.step(gradient.clone(), torch.full((2,), k))
            torch.testing.assert_close(found, expected.float(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("search_steps", 0, "search_steps: expected an integer of at least 1, got 0"),
        ("inner_steps", 1.5, "inner_steps: expected an integer of at least 1, got 1.5"),
        ("learning_rate", 0.0, "learning_rate: expected None or a positive number, got 0.0"),
        ("initial_constant", float("inf"), "initial_constant: expected None or a positive number, got inf"),
        ("confidence", -1.0, "confidence: expected a number of at least 0, got -1.0"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field, value, text):
    with pytest.raises(ValueError, match=text):
        CarliniWagner(**{field: value})
