"""A goal class of one's own: ``loss`` alone is enough, a field replaces a default, and mistakes have a sentence."""

from dataclasses import dataclass

import pytest
import torch
from small import curved_model, grey_images, linear_model, predicted
from torch import Tensor
from torch.nn.functional import log_softmax

import fastadv as fa
from fastadv.attacks import Rows
from fastadv.engine import Engine, Job, stream_jobs

pytestmark = pytest.mark.filterwarnings("ignore:.*had reached the goal:fastadv.AttackWarning")
MODEL, X = curved_model(), grey_images(5)
LABELS = predicted(MODEL, X)


@dataclass(frozen=True, kw_only=True)
class LessSure(fa.Goal):
    output = "logits"
    labels: Tensor
    border: float

    def loss(self, outputs, rows):
        return -log_softmax(outputs, 1).gather(1, rows.named[:, None])[:, 0]


@dataclass(frozen=True)
class Along(fa.Goal):
    """A direction that all images share."""

    direction: Tensor

    def loss(self, outputs, rows):
        return outputs @ self.direction


@dataclass(frozen=True)
class Scalar(fa.Goal):
    def loss(self, outputs, rows):
        return outputs.mean()


@dataclass(frozen=True)
class Computed(fa.Goal):
    classes: Tensor

    @property
    def labels(self):
        return self.classes + 0

    def loss(self, outputs, rows):
        return outputs[:, 0]


class Bare(fa.Goal):
    def loss(self, outputs, rows):
        return outputs[:, 0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pgd", {"steps": 5}),
        ("bim", {"steps": 60, "eps": 0.2, "stop_at_success": True}),
        ("cw-l2", {"search_steps": 2, "inner_steps": 40}),
        ("deepfool", {}),
    ],
)
def test_a_loss_is_enough(name, options):
    with torch.no_grad():
        border = -log_softmax(MODEL.logits(X), 1).amax(1).amin().item() + 0.1
    made = fa.attack(
        name, MODEL, X, goal=LessSure(labels=LABELS, border=border), engine=fa.Engine(success_float=True), **options
    )
    with torch.no_grad():
        after = -log_softmax(MODEL.logits(made.images), 1).gather(1, LABELS[:, None])[:, 0]
    assert torch.equal(made.success, after > border)
    torch.testing.assert_close(made.score_after, after)
    if name == "bim":
        assert made.success.all()
    elif name != "pgd":
        assert made.success_float.all()


def test_it_gives_the_images_of_the_goal_with_the_same_loss():
    own = fa.attack("pgd", MODEL, X, goal=LessSure(labels=LABELS, border=1e9), steps=5, seed=3)
    assert torch.equal(own.images, fa.attack("pgd", MODEL, X, LABELS, steps=5, seed=3).images)


def test_the_defaults():
    goal, z = Along(torch.tensor([1.0, -1.0])), torch.tensor([[3.0, 1.0], [0.5, 0.25], [0.0, 1.0]])
    assert (goal.output, goal.metric, goal.border, goal.references, goal.labels) == ("embedding", "loss", 0, None, None)
    assert (goal.own_reference, goal.held, goal.parts, goal.row_count) == (False, (), (goal,), None)
    assert goal.score(z, Rows()).tolist() == [2.0, 0.25, -1.0]
    assert goal.achieved(z, Rows()).tolist() == [True, True, False]
    assert goal.achieved(z, Rows(), 0.25).tolist() == [True, False, False]
    assert goal.shortfall(z, Rows()).tolist() == [-2.0, -0.25, 1.0]
    assert goal.rivals(z, Rows(), 2).tolist() == [[-2.0, torch.inf], [-0.25, torch.inf], [1.0, torch.inf]]


def test_a_field_without_a_default_stays_required():
    with pytest.raises(TypeError, match="missing 2 required keyword-only arguments: 'labels' and 'border'"):
        LessSure()


def test_what_is_not_labels_or_references_is_shared():
    torch.manual_seed(0)
    goal = Along(torch.randn(12))
    assert goal.row(1).direction is goal.direction
    made = fa.run(fa.attacks.bim(steps=3), goal, MODEL, X, engine=Engine(batch=2))
    with torch.no_grad():
        assert torch.equal(made.success, MODEL(made.images) @ goal.direction > 0)

    def jobs(*directions):
        return [Job(name=str(i), id=i, image=X[i], goal=Along(d)) for i, d in enumerate(directions)]

    assert len(list(stream_jobs(fa.attacks.fgsm(), jobs(goal.direction, goal.direction.clone()), MODEL))) == 2
    with pytest.raises(ValueError, match="goal of '1': expected one like the first"):
        list(stream_jobs(fa.attacks.fgsm(), jobs(goal.direction, -goal.direction), MODEL))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fa.Goal(), TypeError, "abstract .*loss"),
        (
            lambda: fa.attack("pgd", MODEL, X, goal=LessSure),
            TypeError,
            "goal: expected a goal .*, got LessSure; call it",
        ),
        (
            lambda: fa.attack("pgd", MODEL, X, goal=Bare()),
            TypeError,
            "goal: expected a frozen dataclass, got Bare; write",
        ),
        (
            lambda: fa.attack("pgd", MODEL, X, goal=Scalar()),
            ValueError,
            r"loss of Scalar: expected one number for each of 5 images, got shape \(\)",
        ),
        (
            lambda: fa.attack("pgd", MODEL, X, goal=Computed(LABELS)),
            ValueError,
            "goal: expected Computed to have its references and labels in fields, got computed ones; write its row",
        ),
        (
            lambda: list(stream_jobs(fa.attacks.fgsm(), [Job(name="a", id=0, image=X[0], goal=len)], linear_model())),
            TypeError,
            "goal: expected a goal such as .*, got a function; use fa.Objective",
        ),
    ],
)
def test_mistakes_have_a_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()
