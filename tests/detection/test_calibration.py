"""Thresholds, p-values and what false-alarm rates will be, against their definitions, SciPy and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fastadv.core import statistics
from fastadv.detection import Thresholds, calibrate, expected_rate, images_for
from fastadv.detection.calibration import images_needed, worst_of

SCORES = st.lists(st.integers(-6, 6).map(lambda n: n / 4), min_size=1, max_size=30)
ALSO = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=30)
RATES = st.sampled_from([0.04, 0.05, 0.1, 0.25, 0.29, 0.3, 0.5, 0.75])


@given(SCORES | ALSO, RATES)
def test_an_image_is_flagged_where_its_p_value_is_at_most_the_rate(natural, rate):
    count = len(natural)
    if rate * (count + 1) < 1 - 1e-9:
        with pytest.raises(
            ValueError, match=f"1/{count + 1} or more, got {rate:g}; needs at least {math.ceil(1 / rate - 1)}"
        ):
            calibrate(natural, rates=(rate,))
        return
    made = calibrate(natural, rates=(rate,))
    known = np.array(natural, dtype=np.float32)
    tried = np.concatenate([known, np.nextafter(known, np.float32(9)), np.nextafter(known, np.float32(-9)), [-9, 9]])
    p_values = [(1 + int((known >= s).sum())) / (count + 1) for s in tried]
    found = torch.from_numpy(tried.astype(np.float32))
    assert made.p_values(found).tolist() == p_values
    assert (found >= made.at_false_alarm(rate)).tolist() == [p <= rate for p in p_values]
    assert made.at_false_alarm(rate) == made.false_alarm[0]


@given(ALSO.filter(lambda scores: len(set(scores)) == len(scores)))
def test_p_values_of_exchangeable_images_are_uniform(scores):
    """Each of n + 1 distinct scores against the n others: every multiple of 1 / (n + 1), once."""
    if len(scores) < 2:
        return
    count = len(scores) - 1
    found = []
    for k, score in enumerate(scores):
        made = calibrate([*scores[:k], *scores[k + 1 :]], [0.0], rates=())
        found.append(float(made.p_values(torch.tensor([score]))) * (count + 1))
    assert sorted(round(p) for p in found) == list(range(1, count + 2))


@given(SCORES | ALSO, SCORES | ALSO)
def test_the_equal_error_rate_is_that_of_verification(natural, adversarial):
    scores, flags = [*natural, *adversarial], [False] * len(natural) + [True] * len(adversarial)
    made = calibrate(natural, adversarial, rates=())
    assert made.equal_error_rate == pytest.approx(statistics.eer(scores, flags)[0], abs=1e-12)
    n, a = np.asarray(natural), np.asarray(adversarial)
    alarms, misses = (n >= made.equal_error).mean(), (a < made.equal_error).mean()
    # The two curves cross at the threshold: just above it nothing more is flagged than the rate allows.
    above = (n >= np.nextafter(np.float32(made.equal_error), np.float32(np.inf))).mean()
    assert above <= made.equal_error_rate + 1e-9
    assert alarms >= made.equal_error_rate - 1e-9 or misses == pytest.approx(made.equal_error_rate)


@given(st.lists(ALSO, min_size=1, max_size=4), RATES)
def test_the_threshold_of_the_worst_kind_keeps_the_rate_on_every_kind(kinds, rate):
    made = worst_of(kinds)
    first = np.sort(kinds[0])
    assert len(made) == len(first)
    assert (np.diff(made) <= 0).all()
    if len(kinds) == 1:
        assert (made[::-1] == first).all()
    if rate * (len(first) + 1) < 1:
        return
    threshold = calibrate(made, rates=(rate,)).at_false_alarm(rate)
    used = math.floor(rate * (len(first) + 1) + 1e-9) / (len(first) + 1)  # the rate that so many images can show
    single = [calibrate(own, rates=(max(used, 1 / (len(own) + 1)),)).false_alarm[0] for own in kinds]
    assert threshold == max(single)


def test_scores_that_are_apart():
    made = calibrate([0.0, 1.0, 2.0], [3.0, 4.0], rates=(0.5, 1.0))
    assert (made.equal_error, made.equal_error_rate) == (2.5, 0.0)
    assert made.false_alarm == (np.nextafter(np.float32(1), np.float32(2)), 0.0)
    assert (made.natural, made.adversarial) == (3, 2)
    assert made.scores.tolist() == [0.0, 1.0, 2.0]


def test_half_of_each_is_wrong():
    made = calibrate([0.0, 3.0], [1.0, 4.0])
    assert made.equal_error_rate == 0.5
    assert [(x >= made.equal_error) for x in (0.0, 3.0, 1.0, 4.0)] == [False, True, False, True]


def test_tensors_are_taken():
    natural, adversarial = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 3.0], requires_grad=True)
    assert calibrate(natural, adversarial).equal_error == 1.5


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.001, 999), (0.05, 19), (0.07, 14), (0.5, 1), (1.0, 1)])
def test_how_many_images_a_rate_needs(rate, needed):
    assert images_needed(rate) == needed
    scores = np.arange(float(needed))
    calibrate(scores, rates=(rate,))
    if needed > 1:
        message = f"^rates: expected a rate that {needed - 1:,} natural images can measure, 1/{needed} or more, got "
        with pytest.raises(ValueError, match=f"{message}{rate:g}; needs at least {needed:,}$"):
            calibrate(scores[1:], rates=(rate,))


def test_any_rate_that_the_calibration_set_measures_has_a_threshold():
    made = calibrate(np.arange(42.0), [50.0])
    assert made.false_alarm_rates == (0.05,)
    assert calibrate(np.arange(18.0), [50.0]).false_alarm_rates == ()
    assert calibrate(np.arange(99.0), [200.0]).false_alarm_rates == (0.01, 0.05)
    assert made.at_false_alarm(0.25) == np.nextafter(np.float32(32), np.float32(99))  # above the tenth of 42
    with pytest.raises(
        ValueError, match="^rate: expected a rate that 42 natural images can measure, 1/43 or more, got"
    ):
        made.at_false_alarm(0.001)
    for rate in (-0.1, 1.2):
        with pytest.raises(ValueError, match=rf"rate: expected false-alarm rates in \[0, 1\], got {rate}"):
            made.at_false_alarm(rate)


def test_which_threshold_is_taken_where_none_is_chosen():
    natural, attacked = np.arange(99.0), [50.0, 200.0]
    assert calibrate(natural, attacked).usual_rate == 0.01
    assert calibrate(natural, attacked, rates=(0.05,)).usual_rate is None
    assert calibrate(natural, rates=(0.05, 0.02)).usual_rate == 0.05
    assert calibrate(natural, rates=(0.05, 0.01)).usual_rate == 0.01
    with pytest.raises(ValueError, match="rate: expected a false-alarm rate, got None, the equal error rate, of a"):
        calibrate(natural).at(None)


@pytest.mark.parametrize(("images", "rate"), [(99, 0.01), (199, 0.05), (1000, 0.01), (350, 0.1)])
def test_the_interval_is_the_beta_distributions(images, rate):
    rank = math.floor(rate * (images + 1) + 1e-9)
    exact = stats.beta(rank, images + 1 - rank)
    made = expected_rate(np.arange(float(images)), rate, level=0.9)
    assert (made.low, made.high) == pytest.approx((exact.ppf(0.05), exact.ppf(0.95)), rel=1e-9)
    assert made.mean == pytest.approx(exact.mean())
    assert made.mean <= rate
    assert (made.people, made.level, made.rate) == (None, 0.9, rate)


@pytest.mark.parametrize(("images", "rate"), [(99, 0.01), (200, 0.05)])
def test_thresholds_of_simulated_sets_have_that_rate(images, rate):
    """Uniform scores: the rate of a threshold t on new images is 1 - t."""
    random = np.random.default_rng(7)
    drawn = random.random((3000, images)).astype(np.float32)
    true = 1 - np.array([calibrate(row, rates=(rate,)).false_alarm[0] for row in drawn])
    rank = math.floor(rate * (images + 1) + 1e-9)
    assert stats.kstest(true, stats.beta(rank, images + 1 - rank).cdf).pvalue > 0.01
    made = expected_rate(drawn[0], rate)
    assert float(((true >= made.low) & (true <= made.high)).mean()) == pytest.approx(0.95, abs=0.015)


def test_how_many_images_keep_a_rate_below_twice():
    for rate, within in ((0.01, 2.0), (0.05, 1.5), (0.001, 3.0)):
        images = images_for(rate, within=within)
        assert expected_rate(np.arange(float(images)), rate).high <= within * rate
        fewer = images - round(1 / rate)  # one rank less
        assert expected_rate(np.arange(float(fewer)), rate).high > within * rate
    assert images_for(0.01) == 599


def people_of(random, people, each, share):
    """Scores of variance 1, a share of which is the person's."""
    own = random.normal(0, math.sqrt(share), (people, 1))
    return (own + random.normal(0, math.sqrt(1 - share), (people, each))).ravel(), np.repeat(np.arange(people), each)


def test_people_with_several_images_make_the_interval_wider():
    """60 people with 5 images each, 100 times: the rate on new people lies in the interval that draws people."""
    random = np.random.default_rng(11)
    hits = {"images": 0, "people": 0}
    for _ in range(100):
        scores, whose = people_of(random, 60, 5, 0.8)
        made = expected_rate(scores, 0.05, people=whose, draws=400)
        true = stats.norm.sf(calibrate(scores, rates=(0.05,)).false_alarm[0])
        hits["images"] += made.low <= true <= made.high
        hits["people"] += made.people[0] <= true <= made.people[1]
    assert hits["people"] >= 88
    assert hits["people"] >= hits["images"] + 10


def test_people_are_drawn_with_all_their_images():
    random = np.random.default_rng(5)
    scores, whose = people_of(random, 40, 3, 0.5)
    rate = 0.1
    made = expected_rate(scores, rate, people=[f"p{k}" for k in whose], draws=4000)
    found = []
    for _ in range(4000):
        drawn = np.concatenate([scores[whose == person] for person in random.integers(0, 40, 40)])
        rank = math.floor(rate * (len(drawn) + 1) + 1e-9)
        found.append((1 + (scores > np.sort(drawn)[-rank]).sum()) / (len(scores) + 1))
    assert made.people == pytest.approx(tuple(np.quantile(found, (0.025, 0.975))), abs=0.01)
    assert expected_rate(scores, rate, people=whose, draws=500, seed=3) == expected_rate(
        scores, rate, people=whose, draws=500, seed=3
    )
    assert expected_rate(scores, rate, people=np.arange(120)).people is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibrate([], [1.0]), r"natural: expected shape \(N,\) with N >= 1, got \(0,\)"),
        (lambda: calibrate([1.0], [[1.0]]), r"adversarial: expected .*, got \(1, 1\)"),
        (lambda: calibrate([1.0, math.nan], [1.0]), "natural: expected finite scores, got NaN or infinity"),
        (lambda: calibrate([1.0], [2.0], rates=(1.5,)), "rates: expected .*, got 1.5"),
        (lambda: calibrate([1.0], [2.0], rates=(0.0,)), "natural images can measure, 1/2 or more, got 0$"),
        (lambda: calibrate(np.arange(18.0)), "natural: expected at least 19 scores for a threshold, got 18"),
        (lambda: calibrate(np.zeros(2**20 + 1)), "natural: expected at most 1,048,576 scores, got 1,048,577"),
        (lambda: expected_rate([1.0, 2.0], 0.5, people=[1]), r"people: expected shape \(2,\), one for each score, got"),
        (
            lambda: expected_rate([1.0, 2.0], 0.1),
            "rate: expected a rate that 2 natural images can measure, 1/3 or more",
        ),
        (lambda: expected_rate([1.0], 0.5, draws=0), r"draws, level, seed: expected at least 1, .*, got 0, 0.95, 0"),
        (lambda: expected_rate([1.0], 0.5, level=1.0), r"draws, level, seed: expected .*, got 2000, 1.0, 0"),
        (lambda: images_for(1.0), r"rate, within, level: expected a rate in \(0, 1\), .*, got 1.0, 2.0, 0.95"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_thresholds_that_do_not_fit():
    given = {"equal_error": 0.0, "equal_error_rate": 0.0, "false_alarm_rates": (), "natural": 2, "adversarial": 1}
    with pytest.raises(ValueError, match="false_alarm: expected 0 thresholds, one for each rate, got 1"):
        Thresholds(**given, false_alarm=(1.0,))
    with pytest.raises(ValueError, match="false_alarm: expected a threshold where there is no equal error, got none"):
        Thresholds(**{**given, "equal_error": None}, false_alarm=())
    for wrong in (torch.zeros(3), torch.zeros(2).double(), torch.tensor([1.0, 0.0]), torch.tensor([0.0, math.inf])):
        with pytest.raises(
            ValueError, match=r"scores: expected \(2,\) finite float32 in ascending order, got a Tensor"
        ):
            Thresholds(**given, false_alarm=(), scores=wrong)
    # a file of an older version may hold a threshold that its images cannot measure: it is not used
    old = Thresholds(**{**given, "false_alarm_rates": (0.001,)}, false_alarm=(1.0,))
    with pytest.raises(ValueError, match="got 0.001; needs at least 1,000; calibrated for the equal error rate only"):
        old.at_false_alarm(0.001)
