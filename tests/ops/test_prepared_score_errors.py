"""Every wrong argument of a score in one compiled call."""

from __future__ import annotations

import pytest
import torch
from prepared_scores import batch, parameters
from torch import nn

from fastadv import ops


def test_wrong_own_classes():
    maps, images = batch(2)
    score = ops.PreparedScore(**parameters("mlp", reading="relative"))
    for own, error, message in (
        ([0, 1], TypeError, "own: expected a torch.Tensor or a NumPy or CuPy array, got list"),
        (torch.zeros(2), TypeError, r"own: expected dtype torch\.int64, got torch\.float32"),
        (torch.zeros(3, dtype=torch.int64), ValueError, r"own: expected shape \(2,\), got \(3,\)"),
        (torch.tensor([0, 11]), ValueError, r"own: expected classes in \[0, 11\), got 11"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), ValueError, "own: expected cpu, the device of images, got"),
    ):
        with pytest.raises(error, match=message):
            score(maps, images, own)
    with pytest.raises(ValueError, match="own: expected None, since the distances are read 'raw', got a class"):
        ops.PreparedScore(**parameters("mlp"))(maps, images, torch.tensor([0, 1]))
    given = parameters("mlp", reading="relative")
    given["centroids"] = [c[:1] for c in given["centroids"]]
    with pytest.raises(ValueError, match=r"centroids\[0\]: expected shape \(K, C\) with K >= 2, got \(1, 5\)"):
        ops.PreparedScore(**given)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"centroids": 3}, TypeError, r"centroids: expected a sequence of centroids \(K, C\), got int"),
        ({"centroids": []}, ValueError, r"centroids: expected a sequence of one or more centroids \(K, C\), got none"),
        (
            {"centroids": [torch.zeros(11, 5), torch.zeros(4, 5)]},
            ValueError,
            r"centroids\[1\]: expected .*, got \(4, 5\)",
        ),
        ({"centroids": [torch.zeros(11, 0)]}, ValueError, r"centroids\[0\]: expected .*, got \(11, 0\)"),
        ({"centroids": [torch.zeros(11, 5).half()]}, TypeError, r"centroids\[0\]: expected .*, got torch.float16"),
        ({"metric": "l1"}, ValueError, "metric: expected 'l2', 'cosine' or 'l2\\+cosine', got 'l1'"),
        ({"reading": "own"}, ValueError, "reading: expected 'raw' or 'relative', got 'own'"),
        ({"reading": "relative"}, ValueError, r"mean: expected shape \(3, 5\), got \(3, 11\)"),
        ({"mean": torch.zeros(3, 4)}, ValueError, r"mean: expected shape \(3, 11\), got \(3, 4\)"),
        ({"scale": torch.zeros(3, 11).double()}, TypeError, "scale: expected .*, got torch.float64"),
        ({"hidden": nn.ReLU()}, TypeError, "hidden: expected a Linear, an LSTM or None, got ReLU"),
        ({"hidden": nn.Linear(32, 20)}, ValueError, "hidden: expected 33 inputs, got 32"),
        (
            {"hidden": nn.LSTM(11, 20)},
            ValueError,
            "hidden: expected one layer and direction, batch first, with biases, of 11 numbers, got L",
        ),
        ({"hidden": nn.LSTM(12, 20, batch_first=True)}, ValueError, "of 11 numbers"),
        ({"hidden": nn.LSTM(11, 20, batch_first=True, bidirectional=True)}, ValueError, "expected one layer"),
        ({"last": nn.ReLU()}, TypeError, "last: expected a Linear, got ReLU"),
        ({"last": nn.Linear(19, 1)}, ValueError, "last: expected 20 inputs, got 19"),
        ({"last": nn.Linear(20, 2)}, ValueError, "last: expected 1 output, got 2"),
        (
            {"last": nn.Linear(20, 1).double()},
            ValueError,
            r"parameters: expected torch\.float32 on the CPU, got torch\.float64 on cpu",
        ),
        (
            {"last": nn.Linear(20, 1, device="meta")},
            ValueError,
            r"parameters: expected torch\.float32 on the CPU, got torch\.float32 on meta",
        ),
    ],
)
def test_wrong_parameters(change, error, message):
    with pytest.raises(error, match=message):
        ops.PreparedScore(**parameters("mlp") | change)


def changed(**change):
    maps, images = batch(2)
    maps[1] = change.get("map", maps[1])
    return change.get("maps", maps), change.get("images", images)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (changed(maps=[]), ValueError, "maps: expected 3 layers, like centroids, got 0"),
        (
            changed(map=3),
            TypeError,
            r"maps\[1\]: expected a tensor of torch\.float32, torch\.bfloat16 or torch\.float16, got int",
        ),
        (
            changed(map=[[1.0]]),
            TypeError,
            r"maps\[1\]: expected a tensor of torch\.float32, torch\.bfloat16 or torch\.float16, got list",
        ),
        (changed(map=torch.zeros(2, 19, 3, 3).int()), TypeError, r"maps\[1\]: expected .*, got torch.int32"),
        (
            changed(map=torch.zeros(2, 18, 3, 3)),
            ValueError,
            r"maps\[1\]: expected shape \(N, 19, H, W\) with C, H, W >= 1, got \(2, 18, 3, 3\)",
        ),
        (changed(map=torch.zeros(2, 19)), ValueError, r"maps\[1\]: expected .*, got \(2, 19\)"),
        (changed(map=torch.zeros(2, 19, 0, 3)), ValueError, "with C, H, W >= 1"),
        (changed(map=torch.zeros(3, 19, 3, 3)), ValueError, r"maps\[1\]: expected 2 images, like images, got 3"),
        (
            changed(map=torch.zeros(2, 19, 3, 3, device="meta")),
            ValueError,
            r"maps\[1\]: expected a tensor on the CPU, got one on meta",
        ),
        (changed(images=torch.zeros(2, 4, 6, 6)), ValueError, r"images: expected .*, got \(2, 4, 6, 6\)"),
    ],
)
def test_wrong_maps(given, error, message):
    score = ops.PreparedScore(**parameters("linear"))
    with pytest.raises(error, match=message):
        score(*given)
