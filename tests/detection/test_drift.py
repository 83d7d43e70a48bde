"""Drift of scores: the test against SciPy's, what it calls a shift, and a window that forgets and is shared."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fastadv.core.statistics import kolmogorov_smirnov
from fastadv.detection import DriftWindow

SCORES = st.lists(st.integers(-6, 6).map(lambda n: n / 4) | st.floats(-3, 3), min_size=1, max_size=40)


def sorted_normal(count, seed=0, mean=0.0):
    values = np.random.default_rng(seed).normal(mean, 1, count)
    return torch.from_numpy(np.sort(values.astype(np.float32)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the chance, which SciPy computes too
@given(SCORES, SCORES)
def test_the_statistic_is_scipys(first, second):
    found = kolmogorov_smirnov(first, sorted(second))[0]
    assert found == pytest.approx(stats.ks_2samp(first, second, method="asymp").statistic, abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(20, 200), (60, 50), (300, 1000)])
def test_the_chance_is_near_the_exact_one(first, second):
    """Also a small one: within a sixth of it."""
    for shift in (0.0, 0.2, 0.4, 0.6):
        a, b = np.random.default_rng(first).normal(shift, 1, first), sorted_normal(second).numpy()
        exact = stats.ks_2samp(a, b, method="exact").pvalue
        if exact > 1e-6:
            assert kolmogorov_smirnov(a, b)[1] == pytest.approx(exact, rel=1 / 6)


def test_the_same_distribution_is_called_drift_as_rarely_as_it_says():
    random = np.random.default_rng(1)
    found = [kolmogorov_smirnov(random.normal(size=200), np.sort(random.normal(size=300)))[1] for _ in range(8000)]
    for level in (0.01, 0.05, 0.2):
        assert (np.array(found) <= level).mean() == pytest.approx(level, abs=4 * math.sqrt(level / 8000))


def test_a_shift_is_drift_and_none_is_not():
    same, moved = DriftWindow(sorted_normal(500), size=400), DriftWindow(sorted_normal(500), size=400)
    same.add(sorted_normal(400, seed=3).tolist())
    moved.add(sorted_normal(400, seed=3, mean=0.5).tolist())
    assert same.test().p_value > 0.05
    assert moved.test().p_value < 1e-6
    assert moved.test().statistic > 0.15 > same.test().statistic


def test_the_window_holds_the_last_scores():
    calibration = sorted_normal(500)
    window = DriftWindow(calibration, size=100)
    assert window.test() is None
    window.add([9.0] * 19)
    assert window.test() is None
    window.add([9.0, math.nan, math.inf])
    assert (window.test().images, window.test().statistic) == (20, 1.0)
    later = sorted_normal(250, seed=4).tolist()
    for begin in range(0, 250, 7):
        window.add(later[begin : begin + 7])
    expected = stats.ks_2samp(later[-100:], calibration.numpy()).statistic
    assert window.test().images == 100
    assert window.test().statistic == pytest.approx(expected)
    assert len(window._scores) == 100


def test_threads_share_a_window():
    window = DriftWindow(sorted_normal(500), size=5000)

    def work(seed):
        for score in sorted_normal(500, seed=seed).tolist():
            window.add([score])
            if seed == 0:
                window.test()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    everything = np.concatenate([sorted_normal(500, seed=k).numpy() for k in range(8)])
    assert window.test().images == 4000
    assert window.test().statistic == pytest.approx(stats.ks_2samp(everything, sorted_normal(500).numpy()).statistic)


def test_mistakes():
    for size in (19, 2**20 + 1, 100.0):
        with pytest.raises(ValueError, match=f"size: expected an integer from 20 to 1048576, got {size}"):
            DriftWindow(sorted_normal(30), size=size)
    with pytest.raises(ValueError, match="first, second: expected scores in both, got 0 and 1"):
        kolmogorov_smirnov([], [1.0])
