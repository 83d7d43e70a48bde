"""The pair classifier: its formula, its border, and the goals that are named after it."""

import pytest
import torch
from torch.nn import functional as F

from fastadv.attacks import Rows
from fastadv.attacks.pair_classifier import PairClassifier, anonymisation, impersonation


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def at_distance(d: float) -> tuple[torch.Tensor, Rows]:
    """An embedding and its reference, d apart on the unit circle."""
    cosine = 1 - d**2 / 2
    a = torch.tensor([[cosine, (1 - cosine**2) ** 0.5]], dtype=torch.float64)
    return a, Rows(reference=torch.tensor([[1.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("d", "probability"), [(0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.875, 0.375), (1.25, 0.25), (2.0, 0.0)]
)
def test_the_probability_is_linear_on_either_side_of_the_threshold(d, probability):
    a, rows = at_distance(d)
    goal = anonymisation(torch.ones(1, 2), threshold=0.5)
    assert float(goal.score(a, rows)) == pytest.approx(probability, abs=1e-9)
    assert float(goal.shortfall(a, rows)) == pytest.approx(probability - 0.5, abs=1e-9)
    other = impersonation(torch.ones(1, 2), threshold=0.5)
    assert float(other.shortfall(a, rows)) == pytest.approx(0.5 - probability, abs=1e-9)
    assert float(other.loss(a, rows)) == pytest.approx(probability - 0.5, abs=1e-9)
    assert bool(goal.achieved(a, rows)) == (probability < 0.5)
    assert bool(other.achieved(a, rows)) == (probability >= 0.5 - 1e-12)


def test_a_smaller_largest_distance_steepens_the_far_side():
    a, rows = at_distance(0.75)
    goal = anonymisation(torch.ones(1, 2), threshold=0.5, max_distance=1.0)
    assert float(goal.score(a, rows)) == pytest.approx(0.25)
    assert bool(goal.achieved(a, rows, 0.2))
    assert not bool(goal.achieved(a, rows, 0.3))


def test_losses_ascend_to_the_wanted_class_with_gradients_on_both_sides():
    reference, a = unit(8, 6, 0), unit(8, 6, 1).requires_grad_(True)
    rows = Rows(reference=reference)
    for goal, sign in ((anonymisation(reference, threshold=1.2), 1), (impersonation(reference, threshold=1.2), -1)):
        (gradient,) = torch.autograd.grad(goal.loss(a, rows).sum(), a)
        away = a.detach() - reference
        assert bool((sign * (gradient * away).sum(1) > 0).all())


def test_there_is_one_way_to_the_other_class():
    reference, a = unit(3, 6, 0), unit(3, 6, 1)
    goal, rows = anonymisation(reference, threshold=1.0), Rows(reference=reference)
    rivals = goal.rivals(a, rows, 4)
    torch.testing.assert_close(rivals[:, 0], goal.shortfall(a, rows))
    assert torch.isinf(rivals[:, 1:]).all()


def test_a_row_is_the_goal_of_one_image():
    goal = impersonation(unit(4, 8, 0).float(), threshold=0.9)
    assert torch.equal(goal.row(2).references, goal.references[2:3])
    assert (goal.row(2).threshold, goal.row(2).wanted) == (0.9, "same")
    assert (goal.metric, goal.output, goal.own_reference, goal.labels) == ("probability_same", "embedding", False, None)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"references": None}, r"references: expected images \(N, 3, H, W\) or embeddings \(N, D\), got None"),
        ({"references": torch.zeros(3)}, r"references: expected float images .* got torch.float32 \(3,\)"),
        ({"wanted": "equal"}, "wanted: expected 'same' or 'different', got 'equal'"),
        ({"threshold": 0.0}, r"threshold: expected a distance in \(0, max_distance = 2\), got 0.0"),
        (
            {"threshold": 1.5, "max_distance": 1.5},
            r"threshold: expected a distance in \(0, max_distance = 1.5\), got 1.5",
        ),
        ({"threshold": "1"}, "threshold: expected a distance"),
        ({"max_distance": 2.5}, r"max_distance: expected a distance in \(0, 2\], got 2.5"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields, text):
    good = {"references": torch.ones(1, 2), "threshold": 1.0, "wanted": "same"}
    with pytest.raises(ValueError, match=text):
        PairClassifier(**{**good, **fields})
