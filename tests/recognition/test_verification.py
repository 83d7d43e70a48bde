"""Verification reports, clean and under attack."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastadv.data import LFW
from fastadv.recognition import cosine_scores, euclidean_scores, evaluate, roc, under_attack

RNG = np.random.default_rng(0)
SAME = np.tile([True, False], 1000)  # as many negatives as FAR 1e-3 needs
FOLDS = np.repeat(np.arange(10), 200)
CLEAN = RNG.normal(np.where(SAME, 0.6, 0.1), 0.12)


def test_scores_closed_forms() -> None:
    a = np.array([[3.0, 0.0], [1.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
    b = np.array([[5.0, 0.0], [0.0, 7.0], [-4.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(cosine_scores(a, b), [1, np.sqrt(0.5), -1, 0], atol=1e-15)
    np.testing.assert_allclose(euclidean_scores(a, b), [0, -np.sqrt(2 - np.sqrt(2)), -2, -np.sqrt(2)], atol=1e-15)


@given(st.integers(0, 2**32 - 1), st.floats(1e-150, 1e150))
def test_scores_do_not_depend_on_length_and_agree(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 6, 5))
    cosine = cosine_scores(a, b)
    np.testing.assert_allclose(cosine_scores(a * scale, b), cosine, atol=1e-14)
    np.testing.assert_allclose(cosine_scores(b, a), cosine, atol=1e-15)
    np.testing.assert_allclose(euclidean_scores(a, b), -np.sqrt(2 - 2 * cosine), atol=1e-12)


def test_scores_take_tensors_in_float32() -> None:
    a = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(cosine_scores(a, a), 1.0, atol=1e-12)


@pytest.mark.parametrize("scores", [cosine_scores, euclidean_scores])
def test_bad_embeddings(scores) -> None:
    ones = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"two \(P, D\) arrays, got \(2, 3\) and \(2, 4\)"):
        scores(ones, np.ones((2, 4)))
    for bad in (0.0, np.nan, np.inf):
        other = ones.copy()
        other[1] = bad
        with pytest.raises(ValueError, match="second: expected finite embeddings that are not zero, got one at 1"):
            scores(ones, other)


def test_report() -> None:
    report = evaluate(CLEAN, SAME, FOLDS)
    assert (report.pairs, report.metric) == (2000, "cosine")
    assert report.accuracy is not None
    assert 0.9 < report.accuracy <= 1
    assert report.eer == pytest.approx(1 - report.accuracy, abs=0.03)
    assert report.tar_at_far_1e3 <= report.tar_at_far_1e2
    assert [fold for fold, _ in report.fold_thresholds] == list(range(10))
    without = evaluate(CLEAN, SAME, metric="x")
    assert (without.accuracy, without.accuracy_std, without.fold_thresholds) == (None, None, ())
    assert (without.auc, without.eer, without.metric) == (report.auc, report.eer, "x")


def test_a_given_threshold_decides_every_fold() -> None:
    report = evaluate(CLEAN, SAME, FOLDS, threshold=0.2)
    assert report.fold_thresholds == tuple((fold, 0.2) for fold in range(10))
    assert report.accuracy == pytest.approx(((CLEAN >= 0.2) == SAME).mean())
    assert report.eer_threshold == evaluate(CLEAN, SAME, FOLDS).eer_threshold
    one = evaluate(CLEAN, SAME, np.zeros(len(SAME), int), threshold=0.2)  # one fold is enough
    assert (one.accuracy, one.accuracy_std) == (pytest.approx(report.accuracy), 0.0)
    after = under_attack(report, CLEAN + 1, SAME, FOLDS)
    assert (after.impersonation_at_folds, after.evasion_at_folds) == (1.0, 0.0)
    assert evaluate(CLEAN, SAME, threshold=0.2).accuracy is None


@pytest.mark.parametrize(
    ("negatives", "hundredth", "thousandth"),
    [(20, False, False), (99, False, False), (100, True, False), (1000, True, True)],
)
def test_a_rate_below_its_resolution_is_a_sentence(negatives: int, hundredth: bool, thousandth: bool) -> None:
    same = np.arange(negatives + 20) < 20
    scores = RNG.normal(np.where(same, 0.6, 0.1), 0.1)
    report = evaluate(scores, same)
    assert report.negatives == negatives
    assert (report.tar_at_far_1e2 is not None) is hundredth
    assert (report.tar_at_far_1e3 is not None) is thousandth
    assert (report.threshold_at_far_1e3 is not None) is thousandth
    said = f"not measurable from {negatives} negative pairs; needs at least "
    expected = [] if hundredth else [f"TAR at FAR 1e-2: {said}100"]
    expected += [] if thousandth else [f"TAR at FAR 1e-3: {said}1,000"]
    assert list(report.notes) == expected
    after = under_attack(report, scores + 1, same)
    assert (after.impersonation_at_far_1e3 is not None) is thousandth
    assert after.impersonation_at_eer == 1.0


def test_nothing_changed() -> None:
    clean = evaluate(CLEAN, SAME, FOLDS)
    after = under_attack(clean, CLEAN, SAME, FOLDS)
    assert after.accuracy == clean.accuracy
    assert after.accuracy_std == clean.accuracy_std
    assert (after.auc, after.eer, after.eer_threshold) == (clean.auc, clean.eer, clean.eer_threshold)
    assert after.impersonation_at_far_1e3 is not None
    assert after.impersonation_at_far_1e3 <= 1e-3
    assert after.evasion_at_far_1e3 == pytest.approx(1 - clean.tar_at_far_1e3)
    curve = roc(CLEAN, SAME)
    point = int(np.flatnonzero(curve.thresholds >= clean.eer_threshold)[-1])
    assert after.impersonation_at_eer == pytest.approx(curve.far[point])


def test_a_total_attack_swaps_everything_at_the_old_thresholds() -> None:
    clean = evaluate(CLEAN, SAME, FOLDS)
    after = under_attack(clean, np.where(SAME, -1.0, 1.0), SAME, FOLDS)
    assert (after.accuracy, after.auc, after.eer) == (0.0, 0.0, 1.0)
    shares = (
        after.impersonation_at_eer,
        after.impersonation_at_far_1e3,
        after.impersonation_at_folds,
        after.evasion_at_eer,
        after.evasion_at_far_1e3,
        after.evasion_at_folds,
    )
    assert shares == (1.0,) * 6


def test_the_thresholds_are_the_clean_ones() -> None:
    """Adding 2 to all scores separates as before, but a deployed system accepts everybody."""
    clean = evaluate(CLEAN, SAME, FOLDS)
    after = under_attack(clean, CLEAN + 2, SAME, FOLDS)
    assert after.accuracy == 0.5
    assert after.impersonation_at_folds == 1.0
    assert after.evasion_at_folds == 0.0
    assert after.auc == pytest.approx(clean.auc)
    assert after.eer == pytest.approx(clean.eer)


def test_impersonation_alone_has_no_roc() -> None:
    clean = evaluate(CLEAN, SAME, FOLDS)
    after = under_attack(clean, CLEAN[~SAME] + 0.2, SAME[~SAME])
    assert (after.auc, after.eer, after.evasion_at_eer) == (None, None, None)
    assert (after.accuracy, after.impersonation_at_folds) == (None, None)
    wanted = (CLEAN[~SAME] + 0.2 >= clean.threshold_at_far_1e3).mean()
    assert after.impersonation_at_far_1e3 == pytest.approx(wanted)


def test_errors() -> None:
    clean = evaluate(CLEAN, SAME, FOLDS)
    with pytest.raises(ValueError, match=r"folds: expected folds of the clean report .*, got 10"):
        under_attack(clean, CLEAN, SAME, FOLDS + 1)
    with pytest.raises(ValueError, match="finite"):
        under_attack(clean, CLEAN * np.nan, SAME, FOLDS)
    with pytest.raises(ValueError, match="both classes"):
        evaluate(CLEAN[SAME], SAME[SAME])


@pytest.mark.faces
def test_sixty_pairs_of_lfw(data_root: Path) -> None:
    """Alignment, preprocessing and metric together: at most one pair in sixty is judged wrongly."""
    models = pytest.importorskip("fastadv.models")
    lfw = LFW(data_root / "lfw")
    pairs = [pair for pair in lfw.pairs if pair.fold in (0, 1)][::20]
    names = sorted({name for pair in pairs for name in (pair.first, pair.second)})
    model = models.load("mobilefacenet", weights=data_root / "weights" / "mobilefacenet_relu6_ms1m_arcface.safetensors")
    with torch.no_grad():
        rows = model(torch.stack([face.image for face in lfw.stream(names)]))
    embedding = dict(zip(names, rows, strict=True))
    first = torch.stack([embedding[pair.first] for pair in pairs])
    second = torch.stack([embedding[pair.second] for pair in pairs])
    same = np.array([pair.same for pair in pairs])
    assert len(pairs) == 60
    assert ((cosine_scores(first, second) >= 0.277) == same).sum() >= 59
    report = evaluate(cosine_scores(first, second), same, [pair.fold for pair in pairs])
    assert report.auc > 0.99
