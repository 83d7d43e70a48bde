"""Metrics against closed forms, brute force and invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastadv.recognition import (
    accuracy_at,
    auc,
    best_threshold,
    eer,
    kfold_accuracy,
    roc,
    tar_at_far,
    threshold_at_far,
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, of both classes."""
    count = draw(st.integers(2, 30))
    scores = draw(st.lists(st.integers(-6, 6), min_size=count, max_size=count))
    same = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(lambda s: any(s) and not all(s)))
    return np.array(scores, float) / 4, np.array(same)


rates = st.sampled_from([0.0, 1e-3, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0])


@given(pairs())
def test_auc_is_the_chance_of_the_right_order(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, same = data
    positive, negative = scores[same][:, None], scores[~same][None]
    assert auc(scores, same) == pytest.approx(((positive > negative) + 0.5 * (positive == negative)).mean(), abs=1e-12)


@given(pairs())
def test_roc_is_counted(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, same = data
    curve = roc(scores, same)
    assert curve.thresholds[0] == np.inf
    np.testing.assert_array_equal(curve.thresholds[1:], np.unique(scores)[::-1])
    for far, tar, threshold in zip(curve.far, curve.tar, curve.thresholds, strict=True):
        assert far == pytest.approx((scores[~same] >= threshold).mean(), abs=1e-12)
        assert tar == pytest.approx((scores[same] >= threshold).mean(), abs=1e-12)


@given(pairs(), rates)
def test_threshold_at_far_keeps_the_promise_and_is_the_best(data: tuple[np.ndarray, np.ndarray], far: float) -> None:
    scores, same = data
    if far * (~same).sum() < 1 - 1e-9:
        for function in (threshold_at_far, tar_at_far):
            with pytest.raises(
                ValueError, match=f"far: expected a rate that {(~same).sum()} negative pairs can measure, got "
            ):
                function(scores, same, far)
        return
    threshold = threshold_at_far(scores, same, far)
    assert (scores[~same] >= threshold).mean() <= far + 1e-12
    every = [*np.unique(scores), scores.max() + 1]
    best = max((scores[same] >= t).mean() for t in every if (scores[~same] >= t).mean() <= far + 1e-12)
    assert tar_at_far(scores, same, far) == best == (scores[same] >= threshold).mean()
    rounded = np.float32(threshold)  # the decisions survive float32
    np.testing.assert_array_equal(scores.astype(np.float32) >= rounded, scores >= threshold)


def test_threshold_at_far_by_hand() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.35, 0.9])
    same = np.array([False, False, False, False, True, True])
    assert threshold_at_far(scores, same, 0.25) == pytest.approx(0.325)  # above 0.3; 0.4 is accepted
    assert threshold_at_far(scores, same, 1.0) == 0.1
    assert tar_at_far(scores, same, 0.25) == 1.0
    ties = np.array([0.9, 0.9, 0.1])
    assert 0.9 < threshold_at_far(ties, ties == 0.1, 0.5) < 0.9 + 1e-6  # nothing above: the next number
    with pytest.raises(
        ValueError, match=r"far: expected a rate that 4 negative pairs can measure, got 0\.001; needs at least 1,000"
    ):
        threshold_at_far(scores, same, 1e-3)
    with pytest.raises(ValueError, match="far: expected a rate that 4 negative pairs can measure, got 0$"):
        tar_at_far(scores, same, 0.0)


def test_eer_closed_forms() -> None:
    same = np.array([False] * 4 + [True] * 4)
    assert eer(np.arange(8.0), same) == (0.0, 3.5)
    assert eer(-np.arange(8.0), same)[0] == 1.0
    one_each_wrong = np.array([0, 1, 2, 5, 3, 6, 7, 8.0])
    assert eer(one_each_wrong, same) == (0.25, 4.0)
    assert eer(np.zeros(8), same) == (0.5, 0.0)


def test_eer_of_two_gaussians() -> None:
    """Means 0 and 2, deviation 1: the rate is Phi(-1) = 0.158655 at threshold 1; the AUC is Phi(sqrt 2)."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0, 1, 100_000), rng.normal(2, 1, 100_000)])
    same = np.arange(200_000) >= 100_000
    rate, threshold = eer(scores, same)
    assert rate == pytest.approx(0.158655, abs=3e-3)
    assert threshold == pytest.approx(1.0, abs=0.02)
    assert auc(scores, same) == pytest.approx(0.921350, abs=2e-3)


@given(pairs())
def test_eer_lies_between_the_nearest_operating_points(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, same = data
    rate, threshold = eer(scores, same)
    around = [np.nextafter(threshold, -np.inf), threshold, np.nextafter(threshold, np.inf)]
    fars = [(scores[~same] >= t).mean() for t in around]
    frrs = [(scores[same] < t).mean() for t in around]
    assert min(*fars, *frrs) - 1e-12 <= rate <= max(*fars, *frrs) + 1e-12
    assert fars[0] >= frrs[0] - 1e-12  # below: too many accepted
    assert fars[2] <= frrs[2] + 1e-12  # above: too many refused


def monotone(scores: np.ndarray) -> np.ndarray:
    return np.exp(scores) + scores**3 * 2


@given(pairs(), rates)
def test_only_the_order_counts(data: tuple[np.ndarray, np.ndarray], far: float) -> None:
    scores, same = data
    other = monotone(scores)
    assert auc(scores, same) == auc(other, same)
    assert eer(scores, same)[0] == eer(other, same)[0]
    if far * (~same).sum() >= 1:
        assert tar_at_far(scores, same, far) == tar_at_far(other, same, far)
    t, u = best_threshold(scores, same), best_threshold(other, same)
    np.testing.assert_array_equal(scores >= t, other >= u)


@given(pairs())
def test_turning_everything_round_changes_nothing(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, same = data
    assert auc(scores, same) == pytest.approx(auc(-scores, ~same), abs=1e-12)
    assert auc(scores, same) == pytest.approx(1 - auc(scores, ~same), abs=1e-12)
    rate, threshold = eer(scores, same)
    assert eer(-scores, ~same)[0] == pytest.approx(rate, abs=1e-12)
    assert eer(-scores, ~same)[1] == pytest.approx(-threshold, abs=1e-12)


@given(pairs())
def test_best_threshold_is_the_best(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, same = data
    best = max(((scores >= t) == same).mean() for t in [*np.unique(scores), np.inf])
    assert accuracy_at(scores, same, best_threshold(scores, same)) == best


def test_accuracy_at_with_one_threshold_or_one_each() -> None:
    scores, same = np.array([0.1, 0.5, 0.9]), np.array([False, True, True])
    assert accuracy_at(scores, same, 0.5) == 1.0  # a score at the threshold is accepted
    assert accuracy_at(scores, same, [0.0, 0.6, 0.8]) == pytest.approx(1 / 3)
    assert accuracy_at(scores[1:], same[1:], 0.7) == 0.5


def test_kfold_by_hand() -> None:
    """Fold 1 is shifted by one: the threshold of either fold comes from the other."""
    scores = np.array([0, 1, 2, 3, 1, 2, 3, 4.0])
    same = np.array([False, False, True, True] * 2)
    folds = np.array([0] * 4 + [5] * 4)
    result = kfold_accuracy(scores, same, folds)
    assert result.folds == (0, 5)
    assert result.thresholds == (2.5, 1.5)
    assert result.accuracies == (0.75, 0.75)
    assert (result.mean, result.std) == (0.75, 0.0)


@given(st.integers(0, 2**32 - 1))
def test_kfold_is_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    folds, same = np.repeat(np.arange(4), 12), np.tile([True, False], 24)
    scores = rng.normal(same * 1.0, 1.0)
    result = kfold_accuracy(scores, same, folds)
    for fold, threshold, accuracy in zip(result.folds, result.thresholds, result.accuracies, strict=True):
        assert threshold == best_threshold(scores[folds != fold], same[folds != fold])
        assert accuracy == accuracy_at(scores[folds == fold], same[folds == fold], threshold)
    assert result.mean == pytest.approx(np.mean(result.accuracies))
    assert result.std == pytest.approx(np.std(result.accuracies))


@pytest.mark.parametrize("measure", [auc, eer, roc, best_threshold, lambda s, t: threshold_at_far(s, t, 0.1)])
@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        ([], [], "at least one pair"),
        ([0.1, 0.2], [True, True], "both classes, got only positive"),
        ([0.1, 0.2], [0, 0], "both classes, got only negative"),
        ([0.1, np.nan], [True, False], "finite numbers, got nan at 1"),
        ([np.inf, 0.1], [True, False], "finite numbers, got inf at 0"),
        ([0.1, 0.2], [True], r"two \(P,\) arrays, got \(2,\) and \(1,\)"),
        ([[0.1, 0.2]], [[True, False]], r"two \(P,\) arrays"),
        ([0.1, 0.2], [1, 2], "same: expected booleans or 0 and 1"),
    ],
)
def test_bad_pairs(measure, scores: list, same: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(scores, same)


def test_other_bad_arguments() -> None:
    scores, same = [0.1, 0.2, 0.3, 0.4], [False, True, False, True]
    for far in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="far: expected a rate"):
            tar_at_far(scores, same, far)
    with pytest.raises(ValueError, match="threshold: expected one number"):
        accuracy_at(scores, same, [0.1, 0.2])
    with pytest.raises(ValueError, match="threshold: expected one number"):
        accuracy_at(scores, same, float("nan"))
    with pytest.raises(ValueError, match="at least two folds"):
        kfold_accuracy(scores, same, [0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"folds: expected \(4,\) integers"):
        kfold_accuracy(scores, same, [0.0, 0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="without fold 0: same: expected pairs of both classes"):
        kfold_accuracy(scores, [False, True, True, True], [0, 0, 1, 1])
