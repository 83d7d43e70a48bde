"""Identification against counts by hand: ranks, TPIR at FPIR, what an attack makes of both."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv.recognition import (
    UNKNOWN,
    evaluate_identification,
    identification_under_attack,
    open_set_curve,
    ranks,
)


def case(seed, people=6, mated=11, unmated=9, levels=None):
    """Scores of probes; with ``levels`` coarse ones, so that there are ties."""
    rng = np.random.default_rng(seed)
    scores = rng.random((mated + unmated, people))
    if levels:
        scores = np.round(scores * levels) / levels
    labels = np.concatenate([rng.integers(0, people, mated), np.full(unmated, UNKNOWN)])
    return scores, labels, mated


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), levels=st.sampled_from([None, 3, 20]))
def test_a_rank_is_the_place_in_a_sorted_list_and_a_tie_is_lost(seed, levels):
    scores, labels, mated = case(seed, levels=levels)
    for row, own, place in zip(scores[:mated], labels[:mated], ranks(scores[:mated], labels[:mated]), strict=True):
        others = sorted((s for t, s in enumerate(row) if t != own), reverse=True)
        assert place == 1 + sum(other >= row[own] for other in others)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), levels=st.sampled_from([None, 5]), fpir=st.sampled_from([0.0, 0.12, 0.5, 1.0]))
def test_the_open_set_rate_is_the_best_that_its_false_positives_allow(seed, levels, fpir):
    scores, labels, mated = case(seed, levels=levels)
    report = evaluate_identification(scores, labels, fpirs=(fpir,))
    (rate,) = report.open_set
    if fpir * (len(labels) - mated) < 1:
        assert (rate.threshold, rate.tpir) == (None, None)
        assert report.notes[0].startswith(f"TPIR at FPIR {fpir:g}: not measurable from 9 faces")
        return
    assert report.notes == ()
    best, right = scores.max(1), ranks(scores[:mated], labels[:mated]) == 1

    def at(threshold):
        return (best[mated:] >= threshold).mean(), (right & (best[:mated] >= threshold)).mean()

    false, true = at(rate.threshold)
    assert false <= fpir
    assert rate.tpir == true
    allowed = [at(t)[1] for t in (*best, best.max() + 1, best.min() - 1) if at(t)[0] <= fpir]
    assert true == max(allowed)
    # the curve says the same
    fpirs, tpirs = open_set_curve(scores[:mated], labels[:mated], best[mated:])
    assert tpirs[fpirs <= fpir].max() == pytest.approx(true)
    assert (np.diff(fpirs) > 0).all()
    assert (np.diff(tpirs) >= 0).all()
    assert (fpirs[0], fpirs[-1]) == (0.0, 1.0)


def test_shares_of_a_case_by_hand():
    scores = [[0.9, 0.1, 0.0], [0.2, 0.8, 0.3], [0.5, 0.6, 0.4], [0.1, 0.2, 0.7], [0.3, 0.2, 0.1], [0.75, 0.1, 0.2]]
    labels = [0, 1, 0, 2, UNKNOWN, UNKNOWN]
    report = evaluate_identification(scores, labels, named=[0, 1, 0, 1, 2, 2], fpirs=(0.01, 0.5))
    assert (report.people, report.mated, report.unmated) == (3, 4, 2)
    assert (report.rank1, report.rank5, report.neighbours) == (0.75, 1.0, 0.75)
    assert [(o.fpir, o.tpir) for o in report.open_set] == [(0.01, None), (0.5, 0.75)]
    assert 0.3 < report.open_set[1].threshold <= 0.6
    assert report.notes == (
        "TPIR at FPIR 0.01: not measurable from 2 faces of people not enrolled; needs at least 100",
    )
    after = identification_under_attack(
        report,
        [[0.2, 0.9, 0.0], [0.1, 0.2, 0.55], [0.9, 0.1, 0.2], [0.6, 0.1, 0.4]],
        [0, 1, 0, 2],
        targets=[1, 2, 1, 0],
        named=[1, 2, 0, 2],
    )
    assert (after.probes, after.rank1, after.rank5, after.neighbours) == (4, 0.25, 1.0, 0.5)
    assert [o.tpir for o in after.open_set] == [None, 0.25]
    assert [o.threshold for o in after.open_set] == [o.threshold for o in report.open_set]
    assert after.target is not None
    assert (after.target.rank1, after.target.neighbours) == (0.75, 0.5)
    assert after.target.accepted == ((0.01, None), (0.5, 0.75))


def test_what_is_not_asked_or_not_there_is_left_out():
    report = evaluate_identification([[0.9, 0.1], [0.4, 0.6]], [0, 1])
    assert (report.neighbours, report.open_set, report.unmated) == (None, (), 0)
    after = identification_under_attack(report, [[0.1, 0.9]], [0])
    assert (after.target, after.neighbours, after.open_set, after.rank1) == (None, None, (), 0.0)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ranks([0.1, 0.2], [0]), r"scores: expected \(P, T\) numbers"),
        (lambda: ranks(np.zeros((0, 3)), []), "at least one probe and one template"),
        (lambda: ranks([[np.nan, 1.0]], [0]), "scores: expected finite numbers"),
        (lambda: ranks([[0.1, 1.0]], [0, 1]), r"labels: expected \(1,\) integers, got \(2,\)"),
        (lambda: ranks([[0.1, 1.0]], [0.0]), r"labels: expected \(1,\) integers, got \(1,\) float64"),
        (lambda: ranks([[0.1, 1.0]], [2]), "labels: expected 0 to 1, or -1, got 2 to 2"),
        (lambda: ranks([[0.1, 1.0]], [UNKNOWN]), "labels: expected columns of the 2 templates, got -1"),
        (lambda: evaluate_identification([[0.1, 1.0]], [UNKNOWN]), "at least one probe of an enrolled person"),
        (lambda: evaluate_identification([[0.1, 1.0]], [0], named=[0, 1]), r"named: expected \(1,\) integers"),
        (
            lambda: evaluate_identification([[0.1, 1.0]] * 2, [0, UNKNOWN], fpirs=(2.0,)),
            "fpirs: expected rates from 0 to 1, got 2",
        ),
        (
            lambda: identification_under_attack(evaluate_identification([[0.1, 1.0]], [0]), [[0.1, 0.2, 0.3]], [0]),
            "scores: expected a column for each of 2 people, got 3",
        ),
        (lambda: open_set_curve([[0.1, 1.0]], [0], []), r"unmated_best: expected \(U,\) finite numbers"),
    ],
)
def test_a_users_error_is_one_clear_sentence(call, text):
    with pytest.raises(ValueError, match=text):
        call()
