"""The score of a predicted label among its neighbours: closed forms, float64, zero distances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv import ops
from fastadv.testing.tolerances import assert_same_bits

WEIGHTINGS = ["uniform", "rank", "inverse_square"]
SIZES = [(1, 1), (0, 4), (3, 2), (5, 17), (2, 300), (40, 33), (2, 1000)]


@pytest.fixture(autouse=True)
def _poisoned(poisoned):
    """What is not written is NaN."""


def draw(rows, neighbours, device="cpu", zeros=0):
    make = torch.Generator().manual_seed(rows + neighbours)
    distances = (torch.rand(rows, neighbours, generator=make) + 0.1).sort(1).values
    distances[:, :zeros] = 0.0
    labels = torch.randint(-2, 3, (rows, neighbours), generator=make)
    predicted = torch.randint(-2, 3, (rows,), generator=make)
    return distances.to(device), labels.to(device), predicted.to(device)


def by_definition(distances, labels, predicted, weighting):
    scores = []
    for d, c, p in zip(distances.double().tolist(), labels.tolist(), predicted.tolist(), strict=True):
        weights = {"uniform": [1.0] * len(d), "rank": [1 / (i + 1) for i in range(len(d))]}.get(weighting)
        if weights is None:
            weights = [float(x == 0) for x in d] if 0.0 in d else [1 / (x * x) for x in d]
        same = math.fsum(w for w, label in zip(weights, c, strict=True) if label == p)
        scores.append(same / math.fsum(weights))
    return torch.tensor(scores, dtype=torch.float32)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("zeros", [0, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_backend_against_the_definition(size, zeros, weighting, target):
    inputs = draw(*size, target.device, zeros)
    actual = ops.knn_score(*inputs, weighting=weighting, backend=target.backend)
    expected = by_definition(*(value.cpu() for value in inputs), weighting)
    torch.testing.assert_close(actual.cpu(), expected, rtol=2**-23, atol=0)


def test_by_hand(backend):
    distances = torch.tensor([[1.0, 2.0, 4.0, 4.0]])
    labels = torch.tensor([[7, 8, 7, 9]])
    made = [
        ops.knn_score(distances, labels, torch.tensor([label]), weighting=weighting, backend=backend).item()
        for weighting in WEIGHTINGS
        for label in (7, 8, 5)
    ]
    rank, square = 1 + 1 / 2 + 1 / 3 + 1 / 4, 1 + 1 / 4 + 1 / 8
    expected = [0.5, 0.25, 0, (4 / 3) / rank, 0.5 / rank, 0, (17 / 16) / square, 0.25 / square, 0]
    assert made == pytest.approx(expected, rel=1e-7)


def test_zero_distances_vote_alone_and_alike(backend):
    distances = torch.tensor([[0.0, 0.0, 0.0, 1e-30, 1.0], [1e-30, 1.0, 2.0, 3.0, 4.0]])
    labels = torch.tensor([[1, 2, 1, 2, 2], [2, 1, 1, 1, 1]])
    made = ops.knn_score(distances, labels, torch.tensor([1, 2]), weighting="inverse_square", backend=backend)
    assert made.tolist() == [pytest.approx(2 / 3), 1.0]


def test_the_limit_of_small_distances_is_the_score_at_zero():
    labels = torch.tensor([[1, 2, 1, 2]])
    small = torch.tensor([[1e-30, 1e-30, 1.0, 2.0]])
    scores = [
        ops.knn_score(d, labels, torch.tensor([1]), weighting="inverse_square").item()
        for d in (small, torch.where(small < 1, torch.zeros(()), small))
    ]
    assert scores == [0.5, 0.5]


def test_infinite_and_missing_distances(backend):
    distances = torch.tensor([[1.0, float("inf")], [float("inf"), float("inf")], [1.0, float("nan")]])
    labels = torch.tensor([[1, 2]] * 3)
    made = ops.knn_score(distances, labels, torch.tensor([1, 1, 1]), weighting="inverse_square", backend=backend)
    assert made[0] == 1.0
    assert made[1:].isnan().all()


@pytest.mark.parametrize("size", [(6, 16), (6, 47), (6, 1000)], ids=str)
def test_odd_distances_in_long_rows(size, target):
    distances, labels, predicted = draw(*size)
    distances[0, 0] = 0.0
    distances[1, -size[1] // 3 :] = float("inf")
    distances[2, 7] = float("nan")
    distances[3, :] = float("inf")
    distances[4, :3], distances[4, -3:] = 1e-45, 3.4e38  # whose squares are the smallest and the largest
    actual = ops.knn_score(
        *(value.to(target.device) for value in (distances, labels, predicted)),
        **{"weighting": "inverse_square", "backend": target.backend},
    ).cpu()
    keep = torch.tensor([0, 1, 4, 5])
    expected = by_definition(distances[keep], labels[keep], predicted[keep], "inverse_square")
    torch.testing.assert_close(actual[keep], expected, rtol=2**-23, atol=0)
    assert actual[2:4].isnan().all()


def test_a_row_has_the_same_bits_in_any_batch():
    for weighting in WEIGHTINGS:
        inputs = draw(9, 61)
        together = ops.knn_score(*inputs, weighting=weighting, backend="cpu")
        for i in range(9):
            alone = ops.knn_score(*(value[i : i + 1] for value in inputs), weighting=weighting, backend="cpu")
            assert_same_bits(alone, together[i : i + 1])


def test_rows_of_larger_tensors(backend):
    distances, labels, predicted = draw(4, 9)
    wide = torch.full((4, 20), -1.0)
    wide[:, 5:14] = distances
    columns = labels.T.contiguous().T
    every_second = torch.stack([predicted, predicted], 1)[:, 0]
    made = ops.knn_score(wide[:, 5:14], columns, every_second, weighting="rank", backend=backend)
    torch.testing.assert_close(made, by_definition(distances, labels, predicted, "rank"), rtol=2**-23, atol=0)


@given(
    st.integers(1, 50).flatmap(
        lambda k: st.tuples(
            st.lists(st.floats(0, 2.0**100, width=32), min_size=k, max_size=k),
            st.lists(st.integers(-(2**62), 2**62) | st.integers(0, 3), min_size=k, max_size=k),
        )
    ),
    st.sampled_from(WEIGHTINGS),
)
@settings(max_examples=80, deadline=None)
def test_the_scores_of_all_labels_add_up_to_one(row, weighting):
    distances = torch.tensor([sorted(row[0])])
    labels = torch.tensor([row[1]])
    each = labels.unique()
    scores = ops.knn_score(distances.expand(len(each), -1), labels.expand(len(each), -1), each, weighting=weighting)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    assert scores.double().sum().item() == pytest.approx(1, abs=1e-5)


def test_there_is_no_derivative(backend):
    distances, labels, predicted = draw(2, 5)
    made = ops.knn_score(distances.requires_grad_(True), labels, predicted, weighting="rank", backend=backend)
    with pytest.raises(NotImplementedError, match="knn_score has no derivative"):
        made.sum().backward()
