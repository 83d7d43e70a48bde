"""A function of one's own is a goal: the same images as the goal it stands for; sentences where it cannot be one."""

import pytest
import torch
from small import curved_model, grey_images, linear_model, predicted
from torch.nn import functional as F

import fastadv as fa
from fastadv.engine import Engine

pytestmark = pytest.mark.filterwarnings("ignore:.*had reached the goal:fastadv.AttackWarning")
MODEL, X = curved_model(), grey_images(5)
LABELS = predicted(MODEL, X)


def test_a_loss_of_ones_own_gives_the_images_of_the_goal_with_that_loss():
    own = fa.Objective(lambda z, y: F.cross_entropy(z, y, reduction="none"), border=1e9, labels=LABELS)
    made = fa.attack("pgd", MODEL, X, goal=own, eps=4 / 255, steps=5, seed=3)
    same = fa.attack("pgd", MODEL, X, LABELS, eps=4 / 255, steps=5, seed=3)
    assert torch.equal(made.images, same.images)
    assert not made.success.any()


def test_success_is_the_loss_above_the_border():
    own = fa.Objective(lambda z: z[:, 1] - z[:, 0], border=0.25)
    model = linear_model(2, lead=0.1)
    made = fa.attack("bim", model, X, goal=own, eps=8 / 255, steps=4)
    with torch.no_grad():
        z = model.logits(made.images)
    assert torch.equal(made.success, z[:, 1] - z[:, 0] > 0.25)
    torch.testing.assert_close(made.score_after, z[:, 1] - z[:, 0])


def test_a_plain_function_is_a_goal_in_any_slot():
    def second(logits):
        return logits[:, 2] - logits.amax(1) + 1e-3

    made = fa.run(fa.attacks.pgd(steps=4), second, MODEL, X, engine=Engine(slots=2, batch=2))
    whole = fa.attack("pgd", MODEL, X, goal=second, steps=4)
    with torch.no_grad():
        z = MODEL.logits(whole.images)
    assert torch.equal(whole.success, z[:, 2] - z.amax(1) + 1e-3 > 0)
    torch.testing.assert_close(made.images, whole.images, rtol=0, atol=1.001 / 255)


def test_embeddings_and_minimal_norms():
    away = fa.Objective(lambda e: -(e * e[:1].detach()).sum(1), output="embedding", border=-0.5)
    made = fa.attack("fgsm", MODEL, X[1:2], goal=away)
    assert made.score_before.shape == (1,)
    nearest = fa.attack("deepfool", linear_model(2, lead=0.4), X, goal=lambda z: z[:, 1] - z[:, 0])
    assert nearest.success.all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fa.Objective(3), TypeError, "function: expected a function of the model's output, got 3"),
        (lambda: fa.Objective(len, output="layer:x"), ValueError, "output: expected 'logits' or 'embedding'"),
        (lambda: fa.Objective(len, labels=torch.rand(3)), ValueError, "labels: expected whole numbers"),
        (lambda: fa.attack("pgd", MODEL, X, goal=lambda z: z), ValueError, "function: expected one number for each of"),
        (lambda: fa.attack("pgd", MODEL, X, goal=lambda z: 3.0), ValueError, "expected one number .* got float"),
        (lambda: fa.attack("pgd", MODEL, X, goal=fa.Impersonate), TypeError, "got Impersonate; call it"),
        (lambda: fa.attack("pgd", MODEL, X, goal="evade"), TypeError, "goal: expected a goal such as Impersonate"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
