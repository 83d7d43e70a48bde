"""Success apart from what was met before the attack."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastadv.recognition import count_success, mean_of


def test_a_case_by_hand() -> None:
    hits = [True, True, True, False, False]
    met = [True, False, False, True, False]
    found = count_success(hits, met)
    assert (found.success, found.met_before, found.success_of_rest) == (0.6, 0.4, pytest.approx(2 / 3))
    assert found.rates() == {
        "images": 5,
        "success": 0.6,
        "met_before": 0.4,
        "met_before_images": 2,
        "success_of_rest": 2 / 3,
        "rest_successes": 2,
    }


def test_nothing_left_is_none() -> None:
    found = count_success([True, True], [True, True])
    assert (found.success, found.met_before, found.success_of_rest) == (1.0, 1.0, None)
    empty = count_success(np.zeros(0, bool), np.zeros(0, bool))
    assert (empty.success, empty.met_before, empty.success_of_rest) == (None, None, None)
    assert mean_of([1.0, 2.0], np.zeros(2, bool)) is None
    assert mean_of([1.0, 4.0], np.array([False, True])) == 4.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_the_parts_make_the_whole(rows: list[tuple[bool, bool]]) -> None:
    hits, met = zip(*rows, strict=True)
    found = count_success(hits, met)
    again = sum(h and m for h, m in rows)
    assert found.rest_successes + again == found.successes
    if found.success_of_rest is not None:
        assert 0 <= found.success_of_rest <= 1


def test_arrays_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"hits, met: expected two \(N,\) arrays, got \(2,\) and \(3,\)"):
        count_success([True, False], [True, False, True])
