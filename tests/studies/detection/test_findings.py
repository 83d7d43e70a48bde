"""Numbers of an evaluation: areas, rates, curves, and what the papers found."""

import math

import numpy as np
import pytest
import torch

from fastadv.detection import AreaUnderCurve
from fastadv.report.pages.detection import findings
from fastadv.studies.detection.directions import knn_directions, trajectory_directions
from fastadv.studies.detection.knn import KnnRow
from fastadv.studies.detection.measure import Measured, curve, mean, measure


def area(value: float, half: float = 0.0) -> AreaUnderCurve:
    return AreaUnderCurve(value=value, low=value - half, high=value + half, level=0.95)


def row(detector: str, family: str, targeted: bool, value: float, seen: bool = True, half: float = 0.0) -> Measured:
    return Measured(
        detector=detector,
        family=family,
        targeted=targeted,
        seen=seen,
        variant="",
        area=area(value, half),
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
    assert all(f.interval is None for f in found if f.holds is None)


@pytest.mark.parametrize(("half", "holds", "interval"), [(0.005, True, (0.01, 0.03)), (0.015, None, (-0.01, 0.05))])
def test_a_finding_is_undecided_where_the_intervals_leave_it_open(half, holds, interval, plan):
    """Targeted .95, untargeted .93: decided by what the ends of both intervals leave of the difference of .02."""
    lstm = plan.configurations[0].label
    rows = [row(lstm, "bim", True, 0.95, half=half), row(lstm, "bim", False, 0.93, half=half)]
    found = trajectory_directions(rows, {(lstm, "targeted"): 0.95}, plan.configurations, lstm)
    assert found[0].holds is holds
    assert found[0].interval == pytest.approx(interval)
    aim = found[4]
    assert aim.holds is None  # .95 is the aim itself
    assert aim.interval == pytest.approx((-half, half))
    shown = findings([{"claim": f.claim, "holds": f.holds, "numbers": "", "interval": f.interval} for f in found])
    assert [verdict for _, verdict, _ in shown.rows] == [
        *("yes" if holds else "undecided", "not run", "not run", "not run", "undecided", "not run")
    ]


def knn_table(accuracies: dict[str, float], *, images: int, errors: int, layer: str = "a") -> list[KnnRow]:
    more = {"natural errors": 0.8} if errors else {}
    return [
        KnnRow(
            layer=layer,
            processing=processing,
            components=4 if processing == "pca" else None,
            weighting="rank",
            accuracy={"aggregate": accuracy, **more},
            refused={},
            images={"aggregate": images, **({"natural errors": errors} if errors else {})},
            natural=images,
            aggregate=("bim targeted",),
            k=7,
        )
        for processing, accuracy in accuracies.items()
    ]


def test_findings_on_the_knn_score_go_by_how_many_images_there_are():
    accuracies = {"none": 0.7, "l2": 0.8, "pca": 0.9}
    many, few = (knn_table(accuracies, images=n, errors=e) for n, e in ((10_000, 1000), (20, 5)))
    assert [f.holds for f in knn_directions(many)] == [True, None]  # .8 against .8
    assert [f.holds for f in knn_directions(knn_table({**accuracies, "none": 0.85}, images=10_000, errors=0))] == [
        False,
        None,
    ]
    for found in knn_directions(few):
        assert found.holds is None
        assert found.interval[0] < 0 < found.interval[1]
    assert "on 5 errors" in knn_directions(few)[1].numbers
    # five errors, four of them found: from .376 to .964 (Wilson); so many images as make .8 exact to .01 do not help
    low, high = knn_directions(knn_table(dict.fromkeys(accuracies, 0.9), images=1_000_000, errors=5))[1].interval
    assert (low, high) == pytest.approx((0.9 - 0.9638, 0.9 - 0.3755), abs=2e-3)
    assert [(f.holds, f.interval) for f in knn_directions([])] == [(None, None)] * 2


def test_the_findings_are_those_of_the_layer_that_does_best():
    rows = knn_table({"none": 0.7, "l2": 0.6, "pca": 0.5}, images=1000, errors=0, layer="worse")
    rows += knn_table({"none": 0.7, "l2": 0.8, "pca": 0.9}, images=1000, errors=0, layer="better")
    found = knn_directions(rows)[0]
    assert found.holds
    assert "better: pca 0.900, l2 0.800, none 0.700" in found.numbers


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
