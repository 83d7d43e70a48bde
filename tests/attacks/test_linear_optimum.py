"""On a linear model the attacks reach the optimum that one can write down."""

import pytest
import torch
from small import SIZE, linear_model
from small import grey_images as faces
from torch import nn

import fastadv as fa
from fastadv import attacks
from fastadv.attacks import L2, ClassifyAs, Impersonate, Linf, Misclassify, SignGradient

# random labels and noise: some goals are met at once, and that is said
pytestmark = pytest.mark.filterwarnings("ignore:.*had reached the goal:fastadv.AttackWarning")


@pytest.mark.parametrize("make", [attacks.fgsm, attacks.bim, attacks.pgd, attacks.mi_fgsm, attacks.itgsm, attacks.fim])
@pytest.mark.parametrize("targeted", [False, True])
def test_linf_attacks_reach_the_corner_of_the_box(make, targeted):
    """With two classes the margin is linear, so the optimum is ``clip(x + eps * sign(w_other - w_y))``."""
    model, x, eps = linear_model(), faces(5), 8 / 255
    label = torch.tensor([0, 1, 0, 1, 1])
    direction = (model.head.weight[1] - model.head.weight[0]).detach().view(1, 3, *SIZE)
    sign = torch.where(label == (1 if targeted else 0), 1.0, -1.0).view(-1, 1, 1, 1)
    best = torch.minimum(torch.maximum(x + eps * sign * direction.sign(), x - eps), x + eps).clamp(0, 1)
    goal = (ClassifyAs if targeted else Misclassify)(label)
    made = fa.run(make(eps=eps), goal, model, x, seed=3)
    torch.testing.assert_close(made.images, torch.round(best * 255) / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [attacks.pgd_l2, attacks.mi_fgsm_l2])
def test_l2_attacks_reach_the_point_of_the_sphere(make):
    """Away from 0 and 1 the optimum is ``x + eps * w / ||w||_2``.

    On the sphere a step of ``a * eps`` turns the angle t to w by ``tan(t/2) -> tan(t/2) * exp(-a)``: from 110 degrees,
    60 steps with a = 2.5 / 60 leave 13.4 degrees, a cosine of 0.973.
    """
    model, x, eps = linear_model(), faces(4, low=0.4, high=0.6), 1.0
    label = torch.tensor([0, 0, 1, 1])
    direction = (model.head.weight[1] - model.head.weight[0]).detach()
    sign = torch.where(label == 0, 1.0, -1.0).view(-1, 1, 1, 1)
    made = fa.run(make(eps=eps, steps=60), Misclassify(label), model, x)
    along = ((made.images - x) * sign).flatten(1) @ (direction / direction.norm())
    assert float((along / made.l2).min()) > 0.97
    assert float(made.l2.max()) <= eps * (1 + 1e-5)
    assert float(made.l2.min()) > 0.95 * eps


def test_an_impersonation_of_a_point_inside_the_ball_arrives_there():
    """F(x) = x / ||x||: the target itself is in the ball, so the distance falls to that of one grey level."""
    model = fa.FaceModel(nn.Flatten(), input_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), name="flat").eval()
    x = faces(3, low=0.3, high=0.7)
    target = (x + (4 / 255) * torch.where(faces(3) > 0.5, 1.0, -1.0)).clamp(0, 1)
    attack = SignGradient(budget=Linf(8 / 255), steps=40, step_size=1 / 255)
    made = fa.run(fa.Recipe(attack), Impersonate(target, threshold=0.99999), model, x)
    before = (model(x) - model(target)).norm(dim=1)
    after = (model(made.images) - model(target)).norm(dim=1)
    assert bool((after < 0.3 * before).all())


def test_stopping_at_success_takes_the_first_step_that_reaches_the_goal():
    """The margin falls by alpha * ||w||_1 a step: the number of steps is known before the attack runs."""
    model, x, alpha = linear_model(), faces(6, low=0.3, high=0.7), 1 / 255
    with torch.no_grad():
        z = model.logits(x)
        label = z.argmax(1)
        gap = z.gather(1, label[:, None]).squeeze(1) - z.gather(1, 1 - label[:, None]).squeeze(1)
        slope = (model.head.weight[1] - model.head.weight[0]).abs().sum()
    needed = torch.floor(gap / (alpha * slope)).long() + 1
    attack = SignGradient(budget=Linf(64 / 255), steps=64, step_size=alpha, stop_at_success=True)
    made = fa.run(fa.Recipe(attack), Misclassify(label), model, x)
    assert made.success.all()
    assert torch.equal(made.ticks, needed + 1)  # one tick more: the evaluation that sees the success
    torch.testing.assert_close(made.linf, needed * alpha, rtol=0, atol=1e-6)


@pytest.mark.parametrize("budget", [Linf(0.05), L2(0.9)])
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_every_result_is_in_its_ball_and_on_the_grid(budget, random_start, momentum):
    model, x = linear_model(classes=5), faces(9)
    attack = SignGradient(budget=budget, steps=7, step_size=0.02, momentum=momentum, random_start=random_start)
    made = fa.run(fa.Recipe(attack), Misclassify(torch.arange(9) % 5), model, x, seed=11)
    assert bool(budget.inside(made.images, x).all())
    assert torch.equal(torch.round(made.images * 255) / 255, made.images)
    delta = (made.images - x).flatten(1)
    torch.testing.assert_close(made.linf, delta.abs().amax(1))
    torch.testing.assert_close(made.l2, delta.norm(dim=1))
