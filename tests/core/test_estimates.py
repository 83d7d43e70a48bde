"""Intervals of shares, means and their differences, against published and closed forms; and what is decided by them."""

import math

import numpy as np
import pytest

from fastadv.core.estimates import Estimate, average, drawn, least, mean_of, of_paired, share_of
from fastadv.core.statistics import paired_difference, wilson


@pytest.mark.parametrize(
    ("first", "second", "interval"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((0, 10), (0, 20), (-0.1611, 0.2775)),
        ((10, 10), (0, 10), (0.6075, 1.0)),
    ],
)
def test_the_difference_of_two_shares_is_newcombes(first, second, interval):
    found = share_of(*first) - share_of(*second)
    assert found.value == pytest.approx(first[0] / first[1] - second[0] / second[1])
    assert (found.low, found.high) == pytest.approx(interval, abs=5e-5)


def test_a_share_is_wilsons_and_keeps_its_counts():
    found = share_of(15, 32)
    assert (found.value, found.low, found.high) == (15 / 32, *wilson(15, 32))
    assert found.described() == {"value": 15 / 32, "low": found.low, "high": found.high, "hits": 15, "trials": 32}


def test_a_mean_has_students_interval():
    found = mean_of([1, 2, 3, 4])
    half = 3.182446305284263 * math.sqrt(5 / 3) / 2  # t of 3 degrees of freedom at .975, s / sqrt(n)
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert found.trials == 4


def test_one_number_has_no_interval():
    found = mean_of([0.5])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.verdict == "undecided"
    assert found.described() == {"value": 0.5, "low": None, "high": None, "hits": None, "trials": 1}


def test_the_difference_of_two_means_adds_their_half_widths_in_squares():
    first, second = mean_of([3.0, 4.0, 5.0]), mean_of([1.0, 1.5, 2.0])
    half = math.hypot(first.value - first.low, second.high - second.value)
    found = first - second
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))


def of(low, high):
    return Estimate(value=(low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("estimate", "verdict"),
    [
        (of(0.01, 0.2), "pass"),
        (of(-0.2, -0.01), "fail"),
        (of(-0.1, 0.3), "undecided"),
        (of(0.0, 0.0), "undecided"),
        (of(0.0, 0.2), "undecided"),
        (share_of(30, 32) - 0.5, "pass"),
        (share_of(15, 32) - 0.5, "undecided"),
        (share_of(2, 32) - 0.5, "fail"),
        (-(share_of(2, 32) - 0.5), "pass"),
    ],
)
def test_what_must_be_above_0_passes_fails_or_stays_undecided(estimate, verdict):
    assert estimate.verdict == verdict


def test_the_least_is_below_0_where_one_is_and_the_mean_is_as_wide_as_both():
    good, bad = of(0.1, 0.3), of(-0.5, -0.1)
    assert least([good, bad]).verdict == "fail"
    assert least([good, of(-0.1, 0.5)]).verdict == "undecided"
    assert least([good, good]).verdict == "pass"
    found = average([good, bad])
    assert (found.value, found.low, found.high) == pytest.approx((-0.05, -0.2, 0.1))


def test_a_paired_difference_keeps_its_interval():
    both = paired_difference([True] * 20 + [False] * 4, [True] * 8 + [False] * 16)
    assert of_paired(both).described() == {
        **{"value": both.difference, "low": both.low, "high": both.high},
        **{"hits": None, "trials": None},
    }
    assert of_paired(both).verdict == "pass"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_of([]), "values: expected finite numbers, at least one, got 0"),
        (lambda: mean_of([1.0, math.nan]), "values: expected finite numbers, at least one, got 2"),
        (lambda: average([]), "estimates: expected at least one, got none"),
        (lambda: least([]), "estimates: expected at least one, got none"),
        (lambda: share_of(3, 0), "expected 0 <= hits <= trials"),
    ],
)
def test_what_has_no_estimate_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_number_with_draws_has_their_percentiles_and_holds_itself():
    found = drawn([0.5, *np.linspace(0, 1, 101)])
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.025, 0.975))
    beside = drawn([2.0, 0.0, 1.0, math.nan, 1.0])
    assert (beside.value, beside.high) == (2.0, 2.0)
    assert beside.low == pytest.approx(0.05)
    assert drawn([0.3, math.nan]).low == -math.inf
    with pytest.raises(ValueError, match="values: expected a number and its draws, got none"):
        drawn([])
