"""APGD: the published schedule, loss and invariances, and the optimum of a linear model."""

from functools import partial

import pytest
import small
import torch
from neighbours import assert_alone
from small import SIZE, curved_model, grey_images, predicted

import fastadv as fa
from fastadv.attacks import L2, ClassifyAs, Evade, Impersonate, Linf, Misclassify, Rows
from fastadv.attacks.apgd import APGD, checkpoints
from fastadv.attacks.attack import Evaluation

EPS = 8 / 255


linear_model = partial(small.linear_model, classes=4)
faces = partial(grey_images, low=0.3, high=0.7)


def test_the_papers_checkpoints():
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(10) == (3, 5, 6, 7, 8, 9, 10)
    assert checkpoints(1) == (1,)


@pytest.mark.parametrize("budget", [Linf(EPS), L2(0.8)])
def test_the_optimum_of_a_linear_model(budget):
    """With two classes the margin is linear: the corner of the box, or the end of the radius."""
    model, x = linear_model(classes=2, lead=3.0), faces(4)
    label = torch.zeros(4, dtype=torch.int64)
    w = (model.head.weight[1] - model.head.weight[0]).detach().view(1, 3, *SIZE)
    best = x + (EPS * w.sign() if isinstance(budget, Linf) else 0.8 * w / w.norm())
    made = fa.run(fa.Recipe(APGD(budget=budget, steps=40)), Misclassify(label), model, x, seed=3)
    if isinstance(budget, Linf):
        torch.testing.assert_close(made.images, torch.round(best * 255) / 255, rtol=0, atol=1e-6)
    along = ((made.images - x).flatten(1) @ w.flatten()) / ((best - x).flatten(1) @ w.flatten())
    assert float(along.min()) > 0.97
    assert bool(budget.inside(made.images, x).all())


def evaluated(model, goal, rows, attack, state):
    """What the engine does at a tick."""
    leaf = state.trial.detach().requires_grad_(True)
    outputs = model.logits(leaf)
    loss = attack.objective(goal, outputs, rows, None)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    reached = goal.achieved(outputs.detach(), rows)
    return Evaluation(loss=loss.detach(), achieved=reached, gradient=gradient, outputs=outputs.detach())


def test_the_published_algorithm_step_by_step():
    """Algorithm 1 written out for one image at a time, against the slots' iterates."""
    model, x = curved_model(), faces(3)
    label = predicted(model, x)
    goal, rows = Misclassify(label), Rows(label=label)
    steps, eps = 30, 0.1
    attack = APGD(budget=Linf(eps), steps=steps, random_start=False, stop_at_success=False)
    state = attack.allocate(x)
    attack.start(state, torch.arange(3), x, ids=torch.arange(3), seed=0)

    def loss_and_sign(point):
        leaf = point[None].requires_grad_(True)
        loss = goal.loss(model.logits(leaf), own)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return float(loss.detach()), gradient[0].sign()

    def project(point, origin):
        return torch.minimum(torch.maximum(point, origin - eps), origin + eps).clamp(0, 1)

    iterates = [[] for _ in range(3)]
    for _ in range(steps + 1):
        for i in range(3):
            iterates[i].append(state.trial[i].clone())
        attack.tick(state, evaluated(model, goal, rows, attack, state))
    assert not state.active.any()
    for i in range(3):
        own, origin = Rows(label=label[i : i + 1]), x[i]
        point, previous, size = origin, origin, 2 * eps
        top, top_point, top_sign = -float("inf"), origin, None
        last, rises, checked, halved, mark = None, 0, -float("inf"), False, 0
        for k in range(steps + 1):
            torch.testing.assert_close(iterates[i][k], point, rtol=0, atol=1e-5)
            loss, sign = loss_and_sign(point)
            if loss > top:
                top, top_point, top_sign = loss, point, sign
            rises += last is not None and loss > last
            last = loss
            if k in checkpoints(steps):
                halve = rises < 0.75 * (k - mark) or (not halved and top <= checked)
                mark, rises, checked, halved = k, 0, top, halve
                if halve:
                    size, point, sign = size / 2, top_point, top_sign
            z = project(point + size * sign, origin)
            weight = 1.0 if k == 0 else 0.75
            following = project(point + weight * (z - point) + (1 - weight) * (point - previous), origin)
            point, previous = following, point
        torch.testing.assert_close(state.trial[i], top_point, rtol=0, atol=1e-5)


def test_the_difference_of_logits_ratio_and_its_invariances():
    z = torch.tensor([[3.0, 1.0, 0.0, -1.0, 2.0]], dtype=torch.float64)
    attack = APGD(budget=Linf(EPS), loss="dlr")
    rows = Rows(label=torch.tensor([0]))
    miss, hit = Misclassify(torch.tensor([0])), ClassifyAs(torch.tensor([1]))
    assert float(attack.objective(miss, z, rows, None)) == pytest.approx(-(3 - 2) / (3 - 1))
    wanted = Rows(label=torch.tensor([1]))
    assert float(attack.objective(hit, z, wanted, None)) == pytest.approx(-(3 - 1) / (3 - (1 + 0) / 2))
    for goal, own in ((miss, rows), (hit, wanted)):
        torch.testing.assert_close(
            attack.objective(goal, 10 * z - 100, own, None), attack.objective(goal, z, own, None)
        )


def test_dlr_says_what_it_cannot_do():
    x = faces(2)
    attack = APGD(budget=Linf(EPS), loss="dlr", steps=2)
    with pytest.raises(
        ValueError, match="loss: expected a goal on logits of at least 3 classes with 'dlr', got Evade on embeddings"
    ):
        fa.run(fa.Recipe(attack), Evade(threshold=0.5), linear_model(), x)
    with pytest.raises(ValueError, match="at least 3 classes with 'dlr', got 2 classes"):
        fa.run(fa.Recipe(attack), Misclassify(torch.tensor([0, 0])), linear_model(classes=2), x)
    with pytest.raises(ValueError, match="at least 4 classes with 'dlr', got 3 classes"):
        fa.run(fa.Recipe(attack), ClassifyAs(torch.tensor([0, 0])), linear_model(classes=3, lead=-50.0), x)


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_it_stops_at_the_first_success_and_restarts_only_what_has_none(loss):
    model, x = curved_model(), faces(8)
    goal = Misclassify(predicted(model, x))
    eps = 0.035
    once = fa.run(
        fa.Recipe(APGD(budget=Linf(eps), steps=10, loss=loss)),
        goal,
        model,
        x,
        seed=1,
        engine=fa.Engine(success_float=True),
    )
    again = fa.run(
        fa.Recipe(APGD(budget=Linf(eps), steps=10, restarts=3, loss=loss)),
        goal,
        model,
        x,
        seed=1,
        engine=fa.Engine(success_float=True),
    )
    assert once.success_float.any()
    assert not once.success_float.all()
    assert bool((again.success_float | ~once.success_float).all())
    first = once.ticks < 11
    assert torch.equal(again.ticks[first], once.ticks[first])
    assert torch.equal(again.images[first], once.images[first])
    assert bool((again.ticks[~again.success_float] == 33).all())
    assert bool(Linf(eps).inside(again.images, x).all())


def test_an_embedding_is_brought_nearer():
    model, x = curved_model(), faces(4)
    goal = Impersonate(faces(8)[4:], threshold=0.9999)
    made = fa.run(fa.Recipe(APGD(budget=Linf(EPS), steps=20)), goal, model, x)
    assert bool((made.score_after > made.score_before).all())


def test_a_result_does_not_depend_on_slots_order_or_neighbours():
    model, x = curved_model(), faces(11)
    goal = Misclassify(predicted(model, x))
    for budget in (Linf(0.05), L2(0.4)):
        assert_alone(fa.Recipe(APGD(budget=budget, steps=8, restarts=2)), goal, model, x, seed=3)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("budget", 0.1, r"budget: expected Linf\(eps\) or L2\(eps\), got 0.1"),
        ("steps", 0, "steps: expected an integer of at least 1, got 0"),
        ("restarts", 0, "restarts: expected an integer of at least 1, got 0"),
        ("loss", "hinge", "loss: expected one of ce, dlr, got 'hinge'"),
        ("margin", -1.0, "margin: expected a number of at least 0, got -1.0"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field, value, text):
    with pytest.raises(ValueError, match=text):
        APGD(**{"budget": Linf(EPS), field: value})
