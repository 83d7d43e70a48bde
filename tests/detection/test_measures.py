"""Areas against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from fastadv.core import statistics
from fastadv.detection import auc, auc_interval, measures

SCORES = st.lists(st.integers(-6, 6).map(lambda n: n / 4), min_size=1, max_size=30)
ALSO = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=30)


@given(SCORES | ALSO, SCORES | ALSO)
def test_the_area_is_a_chance(natural, adversarial):
    n, a = np.array(natural)[:, None], np.array(adversarial)[None]
    assert auc(natural, adversarial) == pytest.approx(((n < a) + 0.5 * (n == a)).mean(), abs=1e-12)


def test_a_sentence_for_each_rate_that_cannot_be_measured():
    sentence = "false-alarm rate 0.001: not measurable from 42 natural images; needs at least 1,000"
    assert measures.rate_notes(42, (0.001, 0.05)) == (sentence,)


def test_the_bootstrap_covers_and_is_as_wide_as_theory_says(monkeypatch):
    monkeypatch.setattr(measures, "_CELLS", 50_000)  # several chunks of draws
    random = np.random.default_rng(3)
    natural, adversarial = random.normal(0, 1, 300), random.normal(1, 1, 200)
    made = auc_interval(natural, adversarial, draws=2000, level=0.9, seed=5)
    statistic = mannwhitneyu(adversarial, natural).statistic
    assert made.value == pytest.approx(statistic / (300 * 200))
    assert made.low < made.value < made.high
    # Hanley and McNeil's standard error; 1.645 of it on each side.
    a = made.value
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt((a * (1 - a) + 199 * (q1 - a * a) + 299 * (q2 - a * a)) / (300 * 200))
    assert (made.high - made.low) / (2 * 1.645 * error) == pytest.approx(1, abs=0.15)
    assert auc_interval(natural, adversarial, draws=2000, level=0.9, seed=5) == made
    assert auc_interval(natural, adversarial, draws=2000, level=0.9, seed=6) != made


def test_copies_of_a_persons_images_tell_nothing_new():
    random = np.random.default_rng(4)
    people = np.arange(60)
    natural = random.normal(0, 1, 60)
    adversarial = random.normal(1, 1, 60)
    one = auc_interval(natural, adversarial, people=(people, people))
    copied = [np.repeat(values, 5) for values in (natural, adversarial, people)]
    many = auc_interval(copied[0], copied[1], people=(copied[2], copied[2]))
    assert (many.value, many.low, many.high) == pytest.approx((one.value, one.low, one.high), abs=1e-12)
    apart = auc_interval(copied[0], copied[1])
    assert apart.high - apart.low < 0.7 * (many.high - many.low)


def test_people_are_drawn_with_all_their_images():
    random = np.random.default_rng(5)
    calm, moved = random.normal(0, 1, 40), random.normal(1, 1, 50)
    whose = random.integers(0, 12, 40), random.integers(0, 12, 50)
    made = auc_interval(calm, moved, people=([f"p{k}" for k in whose[0]], [f"p{k}" for k in whose[1]]), draws=4000)
    found = []
    for _ in range(4000):
        drawn = random.integers(0, 12, 12)
        first = np.concatenate([calm[whose[0] == person] for person in drawn])
        second = np.concatenate([moved[whose[1] == person] for person in drawn])
        found.append(float((second[:, None] > first).mean()))
    assert (made.low, made.high) == pytest.approx(tuple(np.quantile(found, (0.025, 0.975))), abs=0.01)


def test_an_interval_of_scores_that_are_apart():
    made = auc_interval([0.0, 1.0], [2.0, 3.0], draws=10)
    assert (made.low, made.value, made.high, made.level) == (1.0, 1.0, 1.0, 0.95)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [1.0]), r"natural: expected shape \(N,\) with N >= 1, got \(0,\)"),
        (([1.0], [[1.0]]), r"adversarial: expected .*, got \(1, 1\)"),
        (([1.0, np.nan], [1.0]), "natural: expected finite scores, got NaN or infinity"),
    ],
)
def test_mistakes(arguments, message):
    for function in (auc, auc_interval):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


def test_mistakes_of_options():
    for options in ({"draws": 0}, {"level": 1.0}, {"seed": -1}):
        with pytest.raises(
            ValueError, match=r"draws, level, seed: expected at least 1, a share in \(0, 1\) and at least 0, got .*"
        ):
            auc_interval([1.0], [2.0], **options)
    with pytest.raises(
        ValueError, match=r"people: expected shape \(2,\) for adversarial, one for each score, got \(1,\)"
    ):
        auc_interval([1.0], [2.0, 3.0], people=([1], [1]))
    with pytest.raises(ValueError, match="people: expected more people with images of both kinds"):
        auc_interval([1.0], [2.0], people=([1], [2]), draws=1, seed=0)


def test_intervals_of_shares_found_hold_the_share():
    random = np.random.default_rng(0)
    natural, adversarial = random.normal(0, 1, 400), random.normal(2, 1, 300)
    people = np.arange(400) // 4, np.arange(300) // 3
    rates = (0.01, 0.05, 1.0)
    made = measures.found_intervals(natural, adversarial, rates=rates, people=people)
    scores, flags = [*natural, *adversarial], [False] * 400 + [True] * 300
    shares = [statistics.tar_at_far(scores, flags, rate) for rate in rates]
    for (low, high), share in zip(made, shares, strict=True):
        exact = statistics.wilson(round(share * 300), 300)
        assert 0 <= low <= exact[0] <= share <= exact[1] <= high <= 1
    # the threshold at 1 % hangs on four images, that at 5 % on twenty
    assert made[0][1] - made[0][0] > made[1][1] - made[1][0]
    assert made == measures.found_intervals(natural, adversarial, rates=rates, people=people)
    assert measures.found_intervals(natural, adversarial, rates=(), people=people) == ()


def test_an_interval_of_all_found_is_not_empty():
    (made,) = measures.found_intervals([0.0] * 20, [1.0] * 10, rates=(0.05,), people=(range(20), range(10)))
    assert made == statistics.wilson(10, 10)
    with pytest.raises(ValueError, match="rates: expected a rate that 20 natural images can measure, got 0.01"):
        measures.found_intervals([0.0] * 20, [1.0], rates=(0.01,), people=(range(20), range(1)))


def test_people_widen_the_interval_of_a_share():
    """Ten people, of whom five are found in all of their images: that is ten trials, not a thousand."""
    natural = [0.0] * 100
    adversarial = [1.0] * 500 + [-1.0] * 500
    owner = np.arange(1000) // 100
    (wide,) = measures.found_intervals(natural, adversarial, rates=(0.01,), people=(np.arange(100) % 10, owner))
    (narrow,) = measures.found_intervals(
        natural, adversarial, rates=(0.01,), people=(100 + np.arange(100), np.arange(1000))
    )
    assert wide[1] - wide[0] > 4 * (narrow[1] - narrow[0])
