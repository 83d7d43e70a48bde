"""Intervals of shares, and differences of paired shares."""

import numpy as np
import pytest

from fastadv.recognition import paired_difference, wilson


def test_wilson_intervals_are_the_roots_of_their_equation():
    z2 = 1.959963984540054**2
    for hits, trials in ((0, 5), (5, 5), (3, 10), (40, 64)):
        low, high = wilson(hits, trials)
        share = hits / trials
        for limit in (low, high):
            assert (share - limit) ** 2 == pytest.approx(z2 * limit * (1 - limit) / trials, abs=1e-12)
    with pytest.raises(ValueError, match="hits, trials: expected 0 <= hits <= trials and trials >= 1, got 3 of 2"):
        wilson(3, 2)


def test_paired_differences_are_mcnemars():
    first = np.array([True] * 9 + [False] * 3)
    second = np.array([True] * 1 + [False] * 8 + [True] + [False] * 2)
    found = paired_difference(first, second)  # 8 against 1
    assert found.difference == pytest.approx(7 / 12)
    assert found.p == pytest.approx(2 * (1 + 9) / 2**9)
    assert found.verdict == "above"
    assert paired_difference(second, first).verdict == "below"
    assert paired_difference(first, first).p == 1.0
    assert paired_difference(first, first).verdict == "undecided"
    with pytest.raises(ValueError, match="two arrays"):
        paired_difference([True], [True, False])
