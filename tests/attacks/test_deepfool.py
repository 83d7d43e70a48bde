"""DeepFool: the nearest border of a linear model, few evaluations, any number of classes."""

from functools import partial

import pytest
import small
import torch
from neighbours import assert_alone
from small import SIZE, D, curved_model, grey_images, predicted
from torch import nn

import fastadv as fa
from fastadv.attacks import ClassifyAs, Evade, Impersonate, Misclassify
from fastadv.attacks.deepfool import DeepFool
from fastadv.attacks.pair_classifier import anonymisation, impersonation
from fastadv.engine import Engine

LEVEL = 1 / 255


linear_model = partial(small.linear_model, lead=0.8)
faces = partial(grey_images, low=0.3, high=0.7)


def borders(model: fa.FaceModel, x: torch.Tensor, order: float) -> torch.Tensor:
    """The distance to each class's border in the norm whose dual has the order: inf for the image's own class."""
    with torch.no_grad():
        z = model.logits(x)
        own = z.argmax(1)
        gaps = z.gather(1, own[:, None]) - z
        slopes = (model.head.weight[None] - model.head.weight[own][:, None]).norm(order, dim=2)
        return torch.where(slopes > 0, gaps / slopes, torch.inf)


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2.0), ("linf", 1.0)])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_smallest_perturbation_of_a_linear_model(norm, dual, classes):
    model, x = linear_model(classes), faces(12)
    made = fa.run(
        fa.Recipe(DeepFool(norm=norm)), Misclassify(predicted(model, x)), model, x, engine=fa.Engine(success_float=True)
    )
    best = borders(model, x, dual).amin(1)
    length = made.l2 if norm == "l2" else made.linf
    assert made.success.all()
    assert made.success_float.all()
    # 2 % overshoot, 2 % for the 8 bits, and in L-infinity up to one level
    slack = 0.0 if norm == "l2" else LEVEL
    assert bool((length <= 1.05 * best + slack).all())
    assert bool((length >= best).all())


def test_a_targeted_attack_reaches_its_class_and_with_two_classes_its_border():
    model, x = linear_model(2), faces(6)
    assert predicted(model, x).tolist() == [0] * 6
    wanted = 1 - predicted(model, x)
    made = fa.run(fa.Recipe(DeepFool()), ClassifyAs(wanted), model, x)
    assert made.success.all()
    assert bool((made.l2 <= 1.05 * borders(model, x, 2.0).amin(1)).all())
    many = linear_model(7)
    wanted = (predicted(many, x) + 3) % 7
    made = fa.run(fa.Recipe(DeepFool()), ClassifyAs(wanted), many, x)
    assert made.success.all()
    assert torch.equal(predicted(many, made.images), wanted)


def test_one_move_does_for_a_linear_model_and_each_costs_the_candidates_that_could_be_nearer():
    """Two evaluations with one candidate; all of them, and the one that sees the success, where none is ruled out."""
    model, x = linear_model(10), faces(5)
    goal = Misclassify(predicted(model, x))
    alone = fa.run(fa.Recipe(DeepFool(candidates=1)), goal, model, x)
    everything = fa.run(fa.Recipe(DeepFool(candidates=9, reach=float("inf"))), goal, model, x)
    few = fa.run(fa.Recipe(DeepFool()), goal, model, x)
    assert alone.ticks.tolist() == [2] * 5
    assert everything.ticks.tolist() == [10] * 5
    assert int(few.ticks.max()) < 10
    torch.testing.assert_close(few.l2, everything.l2, rtol=0, atol=1e-5)


def test_a_steep_class_is_nearer_than_the_one_with_the_smallest_gap():
    model = linear_model(3)
    with torch.no_grad():
        model.head.weight[:] = 0
        model.head.weight[1, :45], model.head.weight[2, 45:] = 0.1, 1.0
        model.head.bias[:] = torch.tensor([10.0, 0.0, 0.0])
    x = torch.full((1, 3, *SIZE), 128 / 255)
    with torch.no_grad():
        model.head.bias[1:] = torch.tensor([9.0, 8.0]) - model.logits(x)[0, 1:]
    gaps = torch.tensor([1.0, 2.0])
    slopes = model.head.weight[1:].detach().norm(dim=1)
    assert bool(gaps[0] / slopes[0] > gaps[1] / slopes[1])
    nearest = fa.run(fa.Recipe(DeepFool(reach=float("inf"))), Misclassify(torch.tensor([0])), model, x)
    assert predicted(model, nearest.images).tolist() == [2]
    # the second gap is twice the first: within a reach of 1.2 the steep class is not looked at, nor with one candidate
    for attack in (DeepFool(candidates=1), DeepFool(reach=1.2)):
        assert predicted(
            model, fa.run(fa.Recipe(attack), Misclassify(torch.tensor([0])), model, x).images
        ).tolist() == [1]


def test_ten_thousand_classes_cost_no_more_evaluations():
    model, x = linear_model(10_000, lead=3.0), faces(4)
    made = fa.run(fa.Recipe(DeepFool()), Misclassify(predicted(model, x)), model, x)
    assert made.success.all()
    assert int(made.ticks.max()) <= 11
    assert bool((made.l2 <= 1.05 * borders(model, x, 2.0).amin(1)).all())


def test_an_offset_to_all_logits_changes_nothing():
    model, x = linear_model(10), faces(8)
    label = predicted(model, x)
    plain = fa.run(fa.Recipe(DeepFool()), Misclassify(label), model, x)
    with torch.no_grad():
        model.head.bias -= 100
    shifted = fa.run(fa.Recipe(DeepFool()), Misclassify(label), model, x)
    assert torch.equal(plain.ticks, shifted.ticks)
    # float32 logits near 100 have a spacing of 8e-6
    torch.testing.assert_close(shifted.images, plain.images, rtol=0, atol=LEVEL + 1e-6)
    torch.testing.assert_close(shifted.l2, plain.l2, rtol=1e-3, atol=0)


def test_embeddings_and_pairs_are_taken_over_their_threshold_by_little():
    model, x, other = curved_model(), faces(6), faces(6, seed=2)
    with torch.no_grad():
        d = (model(x) - model(other)).norm(dim=1)
    for made in (
        fa.run(fa.Recipe(DeepFool()), anonymisation(other, threshold=1.3 * float(d.max())), model, x),
        fa.run(
            fa.Recipe(DeepFool()), Evade(references=other, threshold=1.3 * float(d.max()), metric="euclidean"), model, x
        ),
        fa.run(fa.Recipe(DeepFool()), impersonation(other, threshold=0.7 * float(d.min())), model, x),
        fa.run(fa.Recipe(DeepFool()), Impersonate(other, threshold=0.7 * float(d.min()), metric="euclidean"), model, x),
        fa.run(fa.Recipe(DeepFool()), Evade(references=other, threshold=float((1 - d**2 / 2).min()) - 0.02), model, x),
    ):
        assert made.success.all()
        assert int(made.ticks.max()) <= 12
        assert bool(((made.score_after - made.score_before).abs() > 0).all())
        assert float(made.l2.max()) < 3.0


def test_the_margin_is_cleared():
    model, x = linear_model(5), faces(6)
    label = predicted(model, x)
    made = fa.run(fa.Recipe(DeepFool(margin=0.1)), Misclassify(label), model, x)
    assert bool((made.score_after < -0.1).all())


def test_what_is_there_already_is_left_alone():
    model, x = linear_model(4), faces(3)
    with pytest.warns(fa.AttackWarning, match="3 images had reached the goal before"):
        made = fa.run(fa.Recipe(DeepFool()), Misclassify((predicted(model, x) + 1) % 4), model, x)
    assert torch.equal(made.images, x)
    assert made.ticks.tolist() == [1, 1, 1]


def test_without_a_gradient_it_stops_and_says_so():
    model, x = linear_model(3), faces(2)
    with torch.no_grad():
        model.head.weight[:] = 0
        model.head.bias[:] = torch.tensor([1.0, 0.0, -1.0])
    with pytest.warns(fa.AttackWarning, match="2 images had an all-zero gradient"):
        made = fa.run(fa.Recipe(DeepFool()), Misclassify(torch.tensor([0, 0])), model, x)
    assert not made.success.any()
    assert torch.equal(made.images, x)
    assert int(made.ticks.max()) <= 3


def test_the_steps_bound_the_moves():
    model, x = curved_model(), faces(4)
    label = predicted(model, x)
    made = fa.run(fa.Recipe(DeepFool(steps=1, candidates=1, overshoot=0.0)), Misclassify(label), model, x)
    assert made.ticks.tolist() == [2] * 4


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_return_to_a_straight_border_has_nothing_to_gain(norm):
    model, x = linear_model(5), faces(6)
    goal = Misclassify(predicted(model, x))
    plain, back = (fa.run(fa.Recipe(DeepFool(norm=norm, returns=r)), goal, model, x) for r in (0, 3))
    assert torch.equal(plain.images, back.images)
    assert torch.equal(plain.ticks, back.ticks)


class Ellipsoid(nn.Module):
    """Two classes: inside of ``sum a_i u_i^2 = 1``, ``u = x - 1/2``, and outside."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.logspace(-1, 1, D))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = (x.flatten(1) - 0.5).square() @ self.a
        return torch.stack([torch.ones_like(q), q], 1)

    def distance(self, x: torch.Tensor) -> torch.Tensor:
        """From inside: ``r = -l a u / (1 + l a)`` with the l in (-1 / max a, 0) that ends on the border."""
        u, a = (x.flatten(1) - 0.5).double(), self.a.double()
        low, high = torch.full((len(x), 1), -1 / float(a.max())).double(), torch.zeros(len(x), 1).double()
        for _ in range(100):
            middle = (low + high) / 2
            outside = (a * (u / (1 + middle * a)).square()).sum(1, keepdim=True) > 1
            low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
        return (u - u / (1 + high * a)).norm(dim=1).float()


def test_returns_come_nearer_to_a_curved_border():
    border = Ellipsoid()
    head = nn.Identity()
    model = fa.FaceModel(border, input_size=SIZE, mean=(0,) * 3, std=(1,) * 3, name="ellipsoid", head=head).eval()
    x = faces(8, low=0.4, high=0.6)
    goal = Misclassify(predicted(model, x))
    assert goal.labels.tolist() == [0] * 8
    ratio = {}
    for returns in (0, 1, 4):
        made = fa.run(fa.Recipe(DeepFool(returns=returns)), goal, model, x)
        assert made.success.all()
        ratio[returns] = made.l2 / border.distance(x)
    assert float(ratio[0].min()) > 1.1
    assert bool((ratio[1] < ratio[0]).all())
    assert float(ratio[4].max()) < 1.1
    assert float(ratio[4].min()) >= 1.0


def test_a_result_does_not_depend_on_slots_order_or_neighbours():
    model, x = curved_model(), faces(13)
    goal = Misclassify(predicted(model, x))
    for attack in (DeepFool(), DeepFool(norm="linf"), DeepFool(returns=2)):
        assert_alone(fa.Recipe(attack), goal, model, x, varied=False)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("steps", 0, "steps: expected an integer of at least 1, got 0"),
        ("overshoot", -0.1, "overshoot: expected a number of at least 0, got -0.1"),
        ("norm", "l1", "norm: expected 'l2' or 'linf', got 'l1'"),
        ("candidates", 0, "candidates: expected an integer of at least 1, got 0"),
        ("reach", 0.5, "reach: expected a number of at least 1, got 0.5"),
        ("reach", float("nan"), "reach: expected a number of at least 1"),
        ("returns", -1, "returns: expected an integer of at least 0, got -1"),
        ("margin", float("inf"), "margin: expected a number of at least 0, got inf"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field, value, text):
    with pytest.raises(ValueError, match=text):
        DeepFool(**{field: value})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_picture_that_is_to_leave_its_own_embedding_is_left_alone_and_named(precision):
    """The similarity is at its maximum there: what gradient there is, is rounding, and large in bfloat16."""
    model = fa.load("synth-mobile")
    x = fa.data.SyntheticFaces(identities=4, per_identity=1)
    images = torch.stack([x.load(name).image for name in x.names])
    with pytest.warns(fa.AttackWarning, match="all-zero gradient"):
        made = fa.run(fa.attacks.deepfool(), Evade(threshold=0.3), model, images, engine=Engine(precision=precision))
    assert torch.equal(made.images, images)
    assert set(made.flags) == {("zero_gradient",)}
