"""C&W inside a ball: the margin of the softmax in closed form, its border, and where it stops."""

from dataclasses import replace

import pytest
import torch
from small import SIZE, curved_model, grey_images, linear_model, predicted

import fastadv as fa
from fastadv.attacks import (
    CarliniWagnerBall,
    ClassifyAs,
    Impersonate,
    Linf,
    Misclassify,
    PairClassifier,
    Rows,
    SignGradient,
    pgd_cw,
)

EPS = 8 / 255
ATTACK = CarliniWagnerBall(budget=Linf(EPS), steps=20, step_size=1 / 255)


def test_the_papers_parameters():
    made = pgd_cw(eps=4 / 255)
    wanted = CarliniWagnerBall(
        budget=Linf(4 / 255), steps=40, step_size=2.5 * (4 / 255) / 40, random_start=True, name="pgd-cw"
    )
    assert made == fa.Recipe(wanted)
    assert (made.attack.stop_at_success, made.attack.margin) == (True, 0.0)


def test_the_margin_of_two_classes_is_a_hyperbolic_tangent():
    """Of two classes ``p_1 - p_0 = tanh((Z_1 - Z_0) / 2)``, and its derivative is ``(1 - tanh^2) / 2``."""
    z = torch.tensor([[0.3, 1.7], [2.0, -1.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    label = torch.zeros(3, dtype=torch.int64)
    margin = torch.tanh((z[:, 1] - z[:, 0]) / 2)
    for goal, sign in ((Misclassify(label), 1), (ClassifyAs(label), -1)):
        value = ATTACK.objective(goal, z, Rows(label=label), None)
        torch.testing.assert_close(value, sign * margin)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        torch.testing.assert_close(gradient[:, 1], sign * (1 - margin.detach() ** 2) / 2)
        torch.testing.assert_close(gradient[:, 0], -gradient[:, 1])


def test_the_best_other_class_counts_and_a_shift_of_the_logits_does_not():
    z = torch.tensor([[1.0, 3.0, 2.0, -1.0]], dtype=torch.float64)
    p = z.softmax(1)[0]
    for label, best in ((1, 2), (0, 1)):
        rows = Rows(label=torch.tensor([label]))
        away, to = Misclassify(rows.named), ClassifyAs(rows.named)
        assert float(ATTACK.objective(away, z, rows, None)) == pytest.approx(float(p[best] - p[label]))
        assert float(ATTACK.objective(to, z + 50, rows, None)) == pytest.approx(float(p[label] - p[best]))


def test_of_a_pair_it_is_half_the_difference_of_the_two_probabilities():
    embeddings = torch.nn.functional.normalize(torch.eye(3, 4, dtype=torch.float64) + 0.2, dim=1)
    rows = Rows(reference=embeddings.roll(1, 0))
    for wanted, sign in (("different", -1), ("same", 1)):
        goal = PairClassifier(references=torch.ones(3, 4), threshold=0.9, wanted=wanted)
        same = goal.score(embeddings, rows)
        torch.testing.assert_close(ATTACK.objective(goal, embeddings, rows, None), sign * (same - (1 - same)) / 2)


def test_the_image_ends_where_a_linear_border_is_crossed():
    """Every step of a linear model is along one sign, a grey level long; the first image over the border is the result.

    The classes are two, so that the softmax changes no sign.
    """
    model, x = linear_model(lead=0.8), grey_images(4, low=0.3, high=0.7)
    label = predicted(model, x)
    w = (model.head.weight[1] - model.head.weight[0]).detach().view(1, 3, *SIZE)
    towards = torch.where(label == 0, 1.0, -1.0).view(-1, 1, 1, 1) * w.sign()
    steps = [torch.round((x + k / 255 * towards) * 255) / 255 for k in range(65)]
    over = torch.stack([predicted(model, step) != label for step in steps])
    assert bool(over.any(0).all())
    made = fa.run(fa.Recipe(replace(ATTACK, budget=Linf(64 / 255), steps=64)), Misclassify(label), model, x)
    for i, first in enumerate(over.int().argmax(0).tolist()):
        torch.testing.assert_close(made.images[i], steps[first][i], rtol=0, atol=1e-6)
        assert int(made.ticks[i]) == first + 1


def test_it_stays_in_the_ball_and_stops_with_the_margin():
    model, x = curved_model(), grey_images(6)
    label = predicted(model, x)
    for margin in (0.0, 0.05):
        recipe = replace(pgd_cw(eps=0.1, steps=30), attack=replace(pgd_cw(eps=0.1).attack, margin=margin))
        made = fa.run(recipe, Misclassify(label), model, x, seed=4)
        assert bool(Linf(0.1).inside(made.images, x).all())
        assert bool(made.success.all())
        with torch.no_grad():
            z = model.logits(made.images)
        others = z.scatter(1, label[:, None], -torch.inf).amax(1)
        assert float((others - z.gather(1, label[:, None])[:, 0]).min()) > margin - 0.01
        assert int(made.ticks.max()) < 30


def test_on_embeddings_its_steps_are_those_of_pgd():
    """The gradients of the shortfall and of the distance have one direction, so that the signs are the same."""
    model, x = curved_model(), grey_images(4)
    goal = Impersonate(x.roll(1, 0), threshold=1.0)
    settings = {"budget": Linf(EPS), "steps": 5, "step_size": 2 / 255, "random_start": True}
    own = fa.run(fa.Recipe(CarliniWagnerBall(**settings)), goal, model, x, seed=2)
    other = fa.run(fa.Recipe(SignGradient(**settings)), goal, model, x, seed=2)
    assert float((own.images == other.images).float().mean()) > 0.99
