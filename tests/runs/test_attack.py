"""What an attack run comes to: success apart from what was met before, norms of what the attack did."""

from dataclasses import asdict

import pytest
from rows import row

from fastadv.report.pages import parts as report_parts
from fastadv.runs.attack import summarise, summary_lines


def made(name, *, success, met=False, l2=2.0, linf=8 / 255, **more):
    return row(name, success=success, flags="met_at_start" if met else "", l2=l2, linf=linf, **more)


def test_norms_leave_out_failures_and_what_was_met_before():
    rows = [
        made("a", success=True, l2=1.0, linf=1 / 255),
        made("b", success=True, l2=3.0, linf=3 / 255),
        made("c", success=True, met=True, l2=0.0, linf=0.0),
        made("d", success=False, l2=100.0, linf=1.0),
        made("e", success=False, met=True, l2=50.0, linf=1.0),
    ]
    found = summarise(rows)
    assert (found.images, found.success, found.met_before, found.met_before_images) == (5, 0.6, 0.4, 2)
    assert (found.success_of_rest, found.rest_successes) == (pytest.approx(2 / 3), 2)
    assert (found.mean_l2, found.mean_linf) == (2.0, pytest.approx(2 / 255))
    lines = dict(summary_lines(found, lambda v: "–" if v is None else f"{100 * v:.0f} %"))
    assert lines["met before"] == "40 % (2 of 5)"
    assert lines["success of the rest"] == "67 % (2 of 3)"


def test_where_nothing_remains_there_is_no_number():
    found = summarise([made("a", success=True, met=True), made("b", success=True, met=True)])
    assert (found.success, found.success_of_rest, found.mean_l2, found.mean_linf) == (1.0, None, None, None)
    lines = dict(summary_lines(found))
    assert {lines[k] for k in ("success of the rest", "L2, mean *", "largest change, mean *")} == {"–"}
    failed = summarise([made("a", success=False)])
    assert (failed.success_of_rest, failed.mean_l2) == (0.0, None)
    assert {"success", "met_before", "met_before_images", "success_of_rest", "images"} <= set(asdict(found))


def test_what_was_not_measured_before_rounding_is_no_share():
    assert summarise([made("a", success=True, success_float=True)]).success_float == 1.0
    mixed = [made("a", success=True, success_float=True), made("b", success=True, success_float=None)]
    assert summarise(mixed).success_float is None


def test_a_picture_says_that_its_goal_was_met_before():
    words = {met: report_parts.verdict(made("a", success=True, met=met)) for met in (True, False)}
    assert words == {
        True: ("taken for the other, and before the attack too", "bad"),
        False: ("taken for the other", "bad"),
    }
    assert report_parts.verdict(made("a", success=False, met=True)) == ("refused", "good")
