"""ROC figures: what is drawn, and that nothing else is touched."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from fastadv.report.roc import Curve, roc_figure, save_figure

CLEAN = Curve(label="clean", far=[0, 0, 0.01, 1], tar=[0, 0.9, 0.97, 1])
AFTER = Curve(label="attacked", far=[0, 0.3, 1], tar=[0, 0.4, 1], after=True)


def test_the_curves_are_drawn_as_they_are() -> None:
    axes = roc_figure([CLEAN, AFTER], log_far=False).axes[0]
    clean, after, chance = axes.lines
    np.testing.assert_array_equal(clean.get_xydata(), [[0, 0.9], [0.01, 0.97], [1, 1]])
    np.testing.assert_array_equal(after.get_xydata(), [[0, 0], [0.3, 0.4], [1, 1]])
    np.testing.assert_array_equal(chance.get_xydata(), [[0, 0], [1, 1]])
    assert clean.get_color() == after.get_color()
    assert clean.get_linestyle() == "-"
    assert after.get_linestyle() == "--"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("false accept rate", "true accept rate")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["clean", "attacked", "chance"]


def test_a_logarithmic_axis_starts_with_the_best_rate_up_to_its_end() -> None:
    axes = roc_figure([CLEAN], lowest_far=1e-3).axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == (1e-3, 1.0)
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1e-3, 0.9], [0.01, 0.97], [1, 1]])


def test_files(tmp_path: Path) -> None:
    for name in ("roc.png", "roc.svg"):
        first = save_figure(roc_figure([CLEAN, AFTER], title="x"), tmp_path / name).read_bytes()
        again = save_figure(roc_figure([CLEAN, AFTER], title="x"), tmp_path / name).read_bytes()
        assert first == again
    assert sorted(os.listdir(tmp_path)) == ["roc.png", "roc.svg"]
    with Image.open(tmp_path / "roc.png") as image:
        assert image.size == (1152, 624)
    assert b"<svg" in (tmp_path / "roc.svg").read_bytes()


def test_pyplot_is_not_touched(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    save_figure(roc_figure([CLEAN]), tmp_path / "a.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    figure = roc_figure([CLEAN])
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_figure(figure, tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="curves: expected at least one"):
        roc_figure([])
    with pytest.raises(ValueError, match="lowest_far: expected a rate"):
        roc_figure([CLEAN], lowest_far=0.0)
    with pytest.raises(ValueError, match=r"expected a file ending in \.svg or \.png, got 'a\.gif'"):
        save_figure(roc_figure([CLEAN]), tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"far, tar: expected two \(K,\) arrays"):
        Curve(label="x", far=[0, 1], tar=[0])
    with pytest.raises(ValueError, match="tar: expected rates from 0 to 1"):
        Curve(label="x", far=[0, 1], tar=[0, 1.5])
    with pytest.raises(ValueError, match="far: expected rates that do not decrease"):
        Curve(label="x", far=[1, 0], tar=[0, 1])


def test_without_matplotlib_the_message_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ImportError,
        match=r"figures: expected the package matplotlib, got no such package; pip install 'fastadv\[report\]'",
    ):
        roc_figure([CLEAN])
