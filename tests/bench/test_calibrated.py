"""Which people a detector is measured on that no study has, and how rates are counted on them."""

from __future__ import annotations

import pytest
import torch

from bench.calibrated import alarms, flagged_shares, strangers
from fastadv.core.statistics import wilson


def test_everybody_else_with_their_first_image_in_an_order_of_the_seed():
    names = [f"p{k:02d}/{image}" for k in range(30) for image in ("b", "a")]
    known = ["p03/b", "p07/a", "p99/a"]
    found = strangers(names, known)
    assert sorted(found) == [f"p{k:02d}/a" for k in range(30) if k not in (3, 7)]
    assert found == strangers(names[::-1], known) != sorted(found)
    assert strangers(names, known, seed=1) != found


def test_a_score_at_the_threshold_and_one_that_is_no_number_are_flagged():
    scores = torch.tensor([0.0, 1.0, 2.0, torch.nan])
    low, high = wilson(3, 4)
    assert alarms(scores, 1.0) == {"flagged": 3, "of": 4, "share": 0.75, "low": low, "high": high}
    groups = {"seen": [scores, scores[:2]], "unseen": [scores[:1]]}
    assert flagged_shares(groups, 1.0) == {"seen": pytest.approx((0.75 + 0.5) / 2), "unseen": 0.0}
