"""What Ray costs."""

import pytest

from bench import distributed


def test_a_ratio_is_that_of_whole_runs_and_lies_in_its_interval():
    ratio, low, high = distributed.ratio_of([8.0, 12.0] * 10, [10.0] * 20)
    assert ratio == pytest.approx(2 / (1 / 8 + 1 / 12) / 10)
    assert low < ratio < high < 1.2
    assert distributed.ratio_of([9.0] * 20, [10.0] * 20) == pytest.approx((0.9, 0.9, 0.9))
