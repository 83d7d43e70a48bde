"""Goals: losses against closed forms, thresholds, and what a wrong field says."""

import pytest
import torch
from torch.nn import functional as F

from fastadv.attacks import ClassifyAs, Evade, Impersonate, Misclassify, Rows


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def test_distance_and_cosine_are_two_faces_of_one_number():
    a, b = unit(5, 16, 0), unit(5, 16, 1)
    rows = Rows(reference=b)
    d = Evade(references=b, threshold=0.5, metric="euclidean").score(a, rows)
    cos = Evade(references=b, threshold=0.5).score(a, rows)
    torch.testing.assert_close(cos, 1 - d**2 / 2)
    torch.testing.assert_close(Evade(references=b, threshold=0.5).loss(a, rows), d)
    torch.testing.assert_close(Impersonate(b, threshold=0.5).loss(a, rows), -d)


def test_the_gradient_at_the_reference_itself_is_zero_not_nan():
    a = unit(2, 8, 0).requires_grad_(True)
    loss = Evade(references=a.detach(), threshold=0.5).loss(a, Rows(reference=a.detach()))
    (g,) = torch.autograd.grad(loss.sum(), a)
    assert torch.equal(g, torch.zeros_like(g))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_achieved_is_exactly_the_verifiers_decision(metric):
    reference = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    angle = torch.tensor([0.5, 1.0, 1.5])
    x = torch.stack([angle.cos(), angle.sin()], 1)
    threshold = float(torch.cos(angle[1]))
    if metric == "euclidean":
        threshold = float((x[1] - reference[1]).norm())
    rows = Rows(reference=reference)
    impersonate = Impersonate(reference, threshold=threshold, metric=metric)
    evade = Evade(references=reference, threshold=threshold, metric=metric)
    assert impersonate.achieved(x, rows).tolist() == [True, True, False]
    assert evade.achieved(x, rows).tolist() == [False, False, True]
    assert impersonate.achieved(x, rows, 0.2).tolist() == [True, False, False]
    assert evade.achieved(x, rows, 0.2).tolist() == [False, False, True]


def test_label_goals_are_cross_entropy_and_the_margin():
    z = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    rows = Rows(label=torch.tensor([0, 2]))
    expected = -torch.log_softmax(z, 1)[[0, 1], [0, 2]]
    miss, hit = Misclassify(torch.tensor([0, 2])), ClassifyAs(torch.tensor([0, 2]))
    torch.testing.assert_close(miss.loss(z, rows), expected)
    torch.testing.assert_close(hit.loss(z, rows), -expected)
    torch.testing.assert_close(miss.score(z, rows), torch.tensor([1.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(miss.score(z - 100, rows), miss.score(z, rows))
    assert miss.achieved(z, rows).tolist() == [False, True]
    assert hit.achieved(z, rows).tolist() == [True, False]
    assert hit.achieved(z, rows, 1.5).tolist() == [False, False]


def test_the_shortfall_is_what_is_missing_in_the_unit_of_the_score():
    a, b = unit(6, 16, 0), unit(6, 16, 1)
    rows = Rows(reference=b)
    d = (a - b).norm(dim=1)
    for metric, over in (("cosine", 1 - d**2 / 2 - 0.2), ("euclidean", 0.2 - d)):
        evade = Evade(references=b, threshold=0.2, metric=metric)
        impersonate = Impersonate(b, threshold=0.2, metric=metric)
        torch.testing.assert_close(evade.shortfall(a, rows), over)
        torch.testing.assert_close(impersonate.shortfall(a, rows), -over)
        assert torch.equal(evade.achieved(a, rows), evade.shortfall(a, rows) < 0)
        assert torch.equal(impersonate.achieved(a, rows), impersonate.shortfall(a, rows) <= 0)
        torch.testing.assert_close(evade.rivals(a, rows, 3)[:, 0], over)
        assert torch.isinf(evade.rivals(a, rows, 3)[:, 1:]).all()


def test_the_shortfall_of_a_label_is_the_margin_whatever_the_offset():
    z = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    rows = Rows(label=torch.tensor([0, 2]))
    miss, hit = Misclassify(torch.tensor([0, 2])), ClassifyAs(torch.tensor([0, 2]))
    expected = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for offset in (0, -100):
        torch.testing.assert_close(miss.shortfall(z + offset, rows), expected)
        torch.testing.assert_close(hit.shortfall(z + offset, rows), -expected)


def test_the_rivals_are_the_other_classes_in_order_and_have_gradients():
    z = torch.tensor([[2.0, 1.0, -1.0, 1.5]], dtype=torch.float64, requires_grad=True)
    rows = Rows(label=torch.tensor([0]))
    miss, hit = Misclassify(torch.tensor([0])), ClassifyAs(torch.tensor([0]))
    assert miss.rivals(z, rows, 2).tolist() == [[0.5, 1.0]]
    assert miss.rivals(z, rows, 5).tolist() == [[0.5, 1.0, 3.0, float("inf"), float("inf")]]
    assert hit.rivals(z, rows, 2).tolist() == [[-0.5, float("inf")]]
    (gradient,) = torch.autograd.grad(miss.rivals(z, rows, 5)[0, 1], z)
    assert gradient.tolist() == [[1.0, -1.0, 0.0, 0.0]]


def test_a_row_is_the_goal_of_one_image():
    goal = Impersonate(unit(4, 8, 0).float(), threshold=0.3, metric="cosine")
    assert torch.equal(goal.row(2).targets, goal.targets[2:3])
    assert goal.row(2).threshold == 0.3
    assert Misclassify(torch.tensor([4, 5])).row(1).labels.tolist() == [5]
    assert Evade(threshold=0.2).row(3).own_reference


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Impersonate(torch.zeros(3), threshold=0.3),
            r"targets: expected float images .* got torch.float32 \(3,\)",
        ),
        (lambda: Impersonate(None, threshold=0.3), "targets: expected images"),
        (
            lambda: Impersonate(torch.ones(2, 8), threshold=2.0),
            r"threshold: expected a cosine value in \[-1, 1\], got 2.0",
        ),
        (lambda: Evade(threshold=float("nan")), "threshold: expected a cosine value"),
        (
            lambda: Evade(threshold=2.5, metric="euclidean"),
            r"threshold: expected a euclidean value in \[0, 2\]",
        ),
        (
            lambda: Evade(threshold=0.1, metric="manhattan"),
            "metric: expected one of cosine, euclidean, got 'manhattan'",
        ),
        (
            lambda: Evade(references=torch.zeros(2, 8, dtype=torch.int64), threshold=0.1),
            "references: expected float",
        ),
        (lambda: Misclassify(torch.zeros(2)), "labels: expected integer class indices"),
        (lambda: ClassifyAs(torch.tensor([[1]])), "labels: expected integer class indices"),
        (
            lambda: ClassifyAs(torch.tensor([-1])),
            r"labels: expected integer class indices \(N,\) of at least 0, got -1",
        ),
    ],
)
def test_a_wrong_field_is_refused_by_name(make, text):
    with pytest.raises(ValueError, match=text):
        make()
