"""Numbers of an evaluation: areas, rates, curves, and what the papers found."""

import math

import numpy as np
import pytest
import torch

from fastadv.detection import AreaUnderCurve
from fastadv.studies.detection.directions import knn_directions, trajectory_directions
from fastadv.studies.detection.measure import KnnRow, Measured, curve, mean, measure


def area(value: float) -> AreaUnderCurve:
    return AreaUnderCurve(value=value, low=value, high=value, level=0.95)


def row(detector: str, family: str, targeted: bool, value: float, seen: bool = True) -> Measured:
    return Measured(
        detector=detector,
        family=family,
        targeted=targeted,
        seen=seen,
        variant="",
        area=area(value),
        found=(None, None, None),
        images=9,
        intervals=(None, None, None),
        natural=9,
    )


def test_findings_hold_fail_or_were_not_run(plan):
    lstm, mlp = (c.label for c in plan.configurations)
    rows = [
        *(row(lstm, *cell) for cell in (("bim", True, 0.98), ("cw-l2", True, 0.93), ("bim", False, 0.9))),
        *(row(mlp, *cell) for cell in (("bim", True, 0.96), ("cw-l2", True, 0.97), ("bim", False, 0.8))),
        row(lstm, "fim", True, 0.85, seen=False),
    ]
    macro = {(lstm, "targeted"): 0.955, (mlp, "targeted"): 0.965, (lstm, "untargeted"): 0.9, (mlp, "untargeted"): 0.8}
    found = trajectory_directions(rows, macro, plan.configurations, lstm)
    assert [f.holds for f in found] == [True, True, None, True, True, False]
    assert [f.holds for f in trajectory_directions([], {}, plan.configurations, lstm)] == [None] * 6
    table = [
        KnnRow(processing=p, weighting="rank", accuracy={"aggregate": a, "natural errors": 0.8}, refused={}, k=7)
        for p, a in (("none", 0.7), ("l2", 0.75), ("pca", 0.9))
    ]
    assert [f.holds for f in knn_directions(table)] == [True, False]
    assert [f.holds for f in knn_directions(table[:0])] == [None, None]


def test_rates_and_curves_are_those_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    calm, attacked = torch.randn(200, generator=generator), torch.randn(300, generator=generator) + 1.5
    names = tuple([f"{kind}{k}/0" for k in range(count)] for kind, count in (("a", 200), ("b", 300)))
    found = measure("d", calm, attacked, names=names, family="bim", targeted=True, seen=True)
    assert found.found[0] is None
    for rate, share in zip((0.01, 0.05), found.found[1:], strict=True):
        line = float(calm.sort(descending=True).values[round(rate * 200)])
        assert share == pytest.approx(float((attacked > line).float().mean()), abs=1e-6)
    far, tar = (np.array(values) for values in curve(calm, attacked))
    assert (far[0], tar[0], far[-1], tar[-1]) == (0, 0, 1, 1)
    assert (np.diff(far) >= 0).all()
    assert (np.diff(far) * (tar[1:] + tar[:-1]) / 2).sum() == pytest.approx(found.area.value, abs=2e-3)


def test_a_mean_of_nothing_is_no_number():
    assert math.isnan(mean([]))
