"""Every origin of the landmarks is verified by one protocol."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import align_accuracy, tables


@pytest.fixture
def asked(monkeypatch):
    """The thresholds that `verify` was given, by data set, origin of the landmarks and network."""
    given = {}

    def verify(source, pairs, model, *, threshold):
        given.setdefault(source.what, []).append(threshold)
        clean = SimpleNamespace(accuracy=0.9, auc=0.95, threshold_at_far_1e3=0.3)
        return SimpleNamespace(clean=clean, scores=np.linspace(0, 0.9, 10), same=np.arange(10) > 3)

    def source(root, size=112):
        return SimpleNamespace(what=Path(root).name)

    for name, made in {
        "load": lambda name, **given: name,
        "MTCNN": lambda weights, **given: None,
        "FaceSearch": lambda **given: None,
        "find_faces": lambda whole, search: None,
        "with_faces": lambda whole, found, size: whole,
        "open_pairs": lambda source, file: ["pair"] * 10,
        "LFW": source,
        "Photographs": source,
        "verify": verify,
    }.items():
        monkeypatch.setattr(align_accuracy, name, made)
    return given


def test_lfw_is_decided_by_its_folds_and_photographs_by_one_threshold(asked):
    rows = align_accuracy.run(data=Path("data"), device="cpu", quick=False)
    assert asked == {"lfw": [None] * 9, "photographs": [0.3] * 6}
    assert [row["threshold"] for row in rows] == [None] * 9 + [0.3] * 6
    assert {row["wrong"] for row in rows} == {1}  # of the folds; at the threshold, the pair with the score .3
    shown = tables.align_accuracy({"rows": rows}).splitlines()
    assert shown[2] == "| lfw, mobilefacenet |" + 3 * " 90.00 % (1 of 10 wrong) |"
    assert shown[5] == "| photographs, mobilefacenet |  |" + 2 * " 90.00 % (1 of 10 wrong) |"


def test_quick_has_one_network_and_no_lfw(asked):
    rows = align_accuracy.run(data=Path("data"), device="cpu", quick=True)
    assert [(row["data"], row["network"]) for row in rows] == [("photographs", "mobileface_v2")] * 2
