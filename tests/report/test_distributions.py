"""Figures of what attacks changed: shares that add up, notes that can be recomputed, errors by name."""

import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from fastadv.core import text
from fastadv.report.distributions import distribution_plot, histogram_plot, levels_plot
from fastadv.report.svg import colour


def test_the_note_of_the_levels_is_the_share_within_them():
    counts = [10, 20, 30, 15, 5, 10, 6, 4]
    plot = levels_plot("t", [("a", counts), ("b", [1])], within=5)
    assert f"At most 5/255: {text.percent(0.9)} (a), {text.percent(1.0)} (b)." == plot.note
    assert [entry.label for entry in plot.legend] == ["a", "b"]
    assert [entry.series for entry in plot.legend] == [0, 1]


def test_a_figure_draws_each_series_in_its_own_colour():
    rng = np.random.default_rng(0)
    plot = distribution_plot("t", [(str(k), rng.normal(k, 1, 50)) for k in range(3)], axis="x", note="n")
    assert {colour(k) for k in range(3)} <= set(re.findall(r"#[0-9a-f]{6}", plot.svg))
    assert plot.note == "n"


def test_one_value_for_all_is_a_figure_too():
    assert "<svg" in distribution_plot("t", [("a", [0.5, 0.5])], axis="x").svg
    assert "<svg" in levels_plot("t", [("a", [7])], within=5).svg


def test_the_same_numbers_give_the_same_text():
    first, second = (distribution_plot("t", [("a", [0.1, 0.4])], axis="x") for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ([], "series: expected at least one, got none"),
        ([("a", [])], r"series 'a': expected \(N,\) finite numbers, N of at least 1, got \(0,\)"),
        ([("a", [float("nan")])], "series 'a': expected"),
        ([("a", [[1.0]])], "series 'a': expected"),
    ],
)
def test_series_that_cannot_be_drawn(series, words):
    with pytest.raises(ValueError, match=words):
        distribution_plot("t", series, axis="x")
    with pytest.raises(ValueError, match=words):
        levels_plot("t", series, within=5)


@pytest.mark.parametrize("counts", [[0, 0], [3, -1]])
def test_counts_that_are_none(counts):
    with pytest.raises(ValueError, match="series 'a': expected counts of pixels"):
        levels_plot("t", [("a", counts)], within=5)


def test_counts_are_drawn_as_they_are():
    plot = histogram_plot("t", [("a", [1, 3]), ("b", [0, 2])], edges=[0, 1, 2], axis="x", level=("line", 0.5), note="n")
    assert [(entry.label, entry.series) for entry in plot.legend] == [("a", 0), ("b", 1), ("line", None)]
    assert (plot.title, plot.note) == ("t", "n")
    values = distribution_plot("t", [("a", [0.2, 0.9])], axis="x")
    edges = np.linspace(0.2, 0.9, 7)
    counts = np.histogram([0.2, 0.9], edges)[0]
    assert histogram_plot("t", [("a", counts)], edges=edges, axis="x").svg == values.svg
    for wrong in ([1, 2, 3], [0, 0], [-1, 2]):
        with pytest.raises(ValueError, match="series 'a': expected counts in 2 bins, got"):
            histogram_plot("t", [("a", wrong)], edges=[0, 1, 2], axis="x")
