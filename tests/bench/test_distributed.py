"""What Ray costs."""

import pytest

from bench import distributed, tables


def test_a_ratio_is_that_of_whole_runs_and_lies_in_its_interval():
    ratio, low, high = distributed.ratio_of([8.0, 12.0] * 10, [10.0] * 20)
    assert ratio == pytest.approx(2 / (1 / 8 + 1 / 12) / 10)
    assert low < ratio < high < 1.2
    assert distributed.ratio_of([9.0] * 20, [10.0] * 20) == pytest.approx((0.9, 0.9, 0.9))


def test_each_case_has_a_row():
    row = {"case": "one worker", "images": 12_345, "direct images/s": 40.0, "Ray images/s": 39.0, "ratio": 0.975}
    text = tables.KINDS["distributed"]({"rows": [row | {"low": 0.97, "high": 0.9801}]})
    assert text.endswith("| one worker | 12,345 | 40 | 39 | 0.975 (0.970 to 0.980) |\n")
