"""The ratio of two means, with its interval."""

import math

import numpy as np
import pytest

from fastadv.core.statistics import mean_ratio


def test_closed_form() -> None:
    found = mean_ratio([2.0, 4.0], [1.0, 1.0, 1.0])
    assert found.ratio == 3.0
    # the variance of 2 and 4 is 2: the standard error of the logarithm is sqrt(2 / (2 * 9))
    width = math.exp(1.959963984540054 / 3)
    assert (found.low, found.high) == pytest.approx((3 / width, 3 * width))


def test_the_other_way_round_is_the_inverse() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.gamma(4, 1, 30), rng.gamma(9, 1, 20)
    found, inverse = mean_ratio(one, other), mean_ratio(other, one)
    assert (found.ratio, found.low, found.high) == pytest.approx((1 / inverse.ratio, 1 / inverse.high, 1 / inverse.low))


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [mean_ratio(rng.gamma(4, 0.5, 40), rng.gamma(9, 1, 60)) for _ in range(2000)]
    assert np.mean([each.low < 2 / 9 < each.high for each in found]) == pytest.approx(0.95, abs=0.02)


def test_too_few_and_wrong_numbers() -> None:
    assert mean_ratio([1.0], [1.0, 2.0]) is None
    assert mean_ratio([1.0, 2.0], []) is None
    for bad in ([0.0, 1.0], [1.0, math.nan], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="first, second: expected finite numbers above 0, got others"):
            mean_ratio(bad, [1.0, 2.0])
