"""The kNN score by hand, its processings, the two passes, and its files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from fastadv.detection import DetectionFileError, KnnScore, Neighbours, fit_knn, load_knn
from fastadv.testing.tolerances import assert_same_bits

NAMES = {"layer": "dense", "model": "tiny"}


def clusters(count=60, width=6, seed=0):
    """Three classes, around the axes."""
    labels = torch.arange(count) % 3
    noise = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return F.one_hot(labels, width) * 6.0 + noise, labels


def cut(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("uniform", [2 / 4, 1 / 4, 1 / 4]),
        ("rank", [(1 + 1 / 3) / (25 / 12), (1 / 2) / (25 / 12), (1 / 4) / (25 / 12)]),
        ("inverse_square", [(1 + 1 / 9) / (205 / 144), (1 / 4) / (205 / 144), (1 / 16) / (205 / 144)]),
    ],
)
def test_neighbours_made_by_hand(weighting, expected):
    # Around 0: class 7 at distances 1 and 3, class 8 at 2, class 9 at 4; the one at 9 is not among the four nearest.
    x = torch.tensor([[1.0], [-2.0], [3.0], [-4.0], [9.0]])
    score = fit_knn([(x, torch.tensor([7, 8, 7, 9, 8]))], processing="none", k=4, weighting=weighting, **NAMES)
    query, predicted = torch.zeros(3, 1), torch.tensor([7, 8, 9])
    np.testing.assert_allclose(score.support(query, predicted).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(score.score(query, predicted).numpy(), 1 - np.array(expected), rtol=1e-6)
    assert score.support(query[:1], torch.tensor([5])).tolist() == [0.0]


@pytest.mark.parametrize("processing", ["none", "l2", "pca"])
def test_right_predictions_are_supported_and_wrong_ones_are_not(processing):
    x, y = clusters(150)
    score = fit_knn(cut(x, y, 40), processing=processing, dimensions=4, k=20, **NAMES)
    q, right = clusters(60, seed=1)
    assert float(score.support(q, right).min()) > 0.5
    assert float(score.support(q, (right + 1) % 3).max()) < 0.5
    made = score.calibrated(score.score(q, right), score.score(q, (right + 1) % 3))
    assert made.thresholds.equal_error_rate == 0
    assert (made.score(q, right) < made.thresholds.equal_error).all()


def test_processings_in_numpy():
    x, y = clusters(80)
    q, p = clusters(10, seed=1)
    wide, queries = x.double().numpy(), q.double().numpy()
    centred = wide - wide.mean(0)
    values, vectors = np.linalg.eigh(np.cov(wide, rowvar=False))
    matrix = vectors[:, ::-1][:, :3] / np.sqrt(values[::-1][:3])
    made_of = {
        "none": (wide, queries),
        "l2": (wide / np.linalg.norm(wide, axis=1)[:, None], queries / np.linalg.norm(queries, axis=1)[:, None]),
        "pca": (centred @ matrix, (queries - wide.mean(0)) @ matrix),
    }
    for processing, (index, asked) in made_of.items():
        score = fit_knn([(x, y)], processing=processing, dimensions=3, k=9, weighting="inverse_square", **NAMES)
        distances = np.linalg.norm(asked[:, None] - index[None], axis=2)
        nearest = np.argsort(distances, axis=1)[:, :9]
        weights = 1 / np.take_along_axis(distances, nearest, 1) ** 2
        same = y.numpy()[nearest] == p.numpy()[:, None]
        np.testing.assert_allclose(score.support(q, p).numpy(), (weights * same).sum(1) / weights.sum(1), rtol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 60])
def test_batches_of_any_size_give_the_same_index(size):
    x, y = clusters()
    whole = fit_knn([(x, y)], dimensions=4, k=5, **NAMES)
    parts = fit_knn(cut(x, y, size), dimensions=4, k=5, **NAMES)
    torch.testing.assert_close(parts.neighbours.features, whole.neighbours.features, rtol=1e-6, atol=1e-6)
    assert torch.equal(parts.neighbours.labels, y)


def test_the_index_is_whitened():
    x, y = clusters(300)
    made = fit_knn([(x, y)], dimensions=256, k=5, **NAMES)
    assert made.neighbours.features.shape == (300, 6)
    np.testing.assert_allclose(np.cov(made.neighbours.features.double().numpy(), rowvar=False), np.eye(6), atol=1e-5)


@pytest.mark.parametrize(
    ("dimensions", "count", "kept"),
    [(0.25, 400, 6), (0.25, 50, 5), (0.25, 9, 1), (0.5, 400, 12), (0.01, 400, 1), (7, 50, 7), (99, 400, 24)],
)
def test_a_share_of_the_channels_is_at_most_a_tenth_of_the_images(dimensions, count, kept):
    x = torch.randn(count, 24, generator=torch.Generator().manual_seed(2))
    made = fit_knn([(x, torch.zeros(count, dtype=torch.int64))], dimensions=dimensions, k=5, **NAMES)
    assert made.neighbours.features.shape == (count, kept)
    whole = fit_knn([(x, torch.zeros(count, dtype=torch.int64))], dimensions=kept, k=5, **NAMES)
    assert_same_bits(made.neighbours.features, whole.neighbours.features)


def test_a_quarter_of_the_channels_is_the_default():
    x = torch.randn(400, 24, generator=torch.Generator().manual_seed(2))
    assert fit_knn([(x, torch.zeros(400, dtype=torch.int64))], k=5, **NAMES).neighbours.features.shape == (400, 6)


@pytest.mark.parametrize("dimensions", [0, -1, 1.0, 1.5, 0.0, -0.25, float("nan"), True, "8"])
def test_dimensions_are_a_number_or_a_share(dimensions):
    with pytest.raises(ValueError, match="dimensions: expected a whole number of at least 1, or a share .*, got "):
        fit_knn([(X, Y)], dimensions=dimensions, k=5, **NAMES)


@pytest.mark.parametrize("processing", ["none", "l2", "pca"])
def test_round_trip(processing, tmp_path):
    x, y = clusters()
    made = fit_knn([(x, y)], processing=processing, dimensions=3, k=7, provenance={"data": "made up"}, **NAMES)
    q, p = clusters(9, seed=1)
    made = made.calibrated(made.score(q, p), made.score(q, (p + 1) % 3))
    made.save(tmp_path / "k.safetensors")
    read = load_knn(tmp_path / "k.safetensors")
    assert_same_bits(read.score(q, p), made.score(q, p))
    for name in ("layer", "k", "weighting", "processing", "model", "provenance", "thresholds"):
        assert getattr(read, name) == getattr(made, name), name
    assert_same_bits(read.thresholds.scores, made.thresholds.scores)
    assert read.neighbours.backend == "brute"


def test_the_backend_of_a_file_can_be_changed(tmp_path):
    pytest.importorskip("faiss", reason="faiss is not installed")
    x, y = clusters()
    made = fit_knn([(x, y)], processing="l2", k=7, backend="faiss", **NAMES)
    made.save(tmp_path / "k.safetensors")
    q, p = clusters(9, seed=1)
    for backend, expected in ((None, "faiss"), ("brute", "brute")):
        read = load_knn(tmp_path / "k.safetensors", backend=backend)
        assert read.neighbours.backend == expected
        assert_same_bits(read.score(q, p), made.score(q, p))


X, Y = clusters()


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        (((x, y) for x, y in [(X, Y)]), {}, TypeError, "batches: expected batches to iterate twice, got generator.*"),
        ([], {}, ValueError, "batches: expected one or more features, got none"),
        ([(X, Y)], {"k": 61}, ValueError, "k: expected at most 60, the number of features, got 61"),
        ([(X, Y)], {"k": 0}, ValueError, "k: expected 1 or more, got 0"),
        ([(X, Y)], {"processing": "ica"}, ValueError, "processing: expected one of none, l2, pca, got 'ica'"),
        (
            [(X, Y)],
            {"weighting": "1/d"},
            ValueError,
            "weighting: expected one of uniform, rank, inverse_square, got '1/d'",
        ),
        ([(X, Y)], {"dimensions": 0}, ValueError, "dimensions: expected .*, got 0"),
        ([(X, Y)], {"backend": "annoy"}, ValueError, "backend: expected .*, got 'annoy'"),
        ([(X, Y - 1)], {}, ValueError, "labels: expected .*, got -1 to 1"),
        ([(X, Y[1:])], {}, ValueError, r"labels: expected .*, got \(59,\)"),
        ([(X, Y.float())], {}, TypeError, "labels: expected .*, got torch.float32"),
        ([(X.double(), Y)], {}, TypeError, "features: expected .*, got torch.float64"),
        ([(X, Y), (X[:, :2], Y)], {}, ValueError, r"features: expected shape \(any, 6\), got \(60, 2\)"),
        ([(X * torch.nan, Y)], {}, ValueError, "features: expected finite values, got NaN or infinity"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else "",
)
def test_mistakes(batches, options, error, message):
    with pytest.raises(error, match=message):
        fit_knn(batches, **{"k": 5, **options}, **NAMES)


class Changing:
    """Gives other batches each time."""

    def __init__(self, *each):
        self.each = list(each)

    def __iter__(self):
        return iter(self.each.pop(0))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([(X[:50], Y[:50])], "batches: expected 60 features again, got 50 the second time"),
        ([(X, Y), (X, Y)], "batches: expected 60 rows of 6 again, got other features the second time"),
        ([(X[:, :3], Y)], "batches: expected 60 rows of 6 again, got other features the second time"),
    ],
)
def test_batches_that_change(second, message):
    with pytest.raises(ValueError, match=message):
        fit_knn(Changing([(X, Y)], second), k=5, **NAMES)


def test_mistakes_of_a_score():
    made = fit_knn([(X, Y)], k=5, dimensions=3, **NAMES)
    with pytest.raises(ValueError, match=r"features: expected shape \(any, 6\), got \(2, 5\)"):
        made.score(torch.ones(2, 5), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(TypeError, match="predicted: expected .*, got torch.float32"):
        made.score(X, torch.ones(60))
    with pytest.raises(ValueError, match="projection: expected 6 numbers like the index, got 3"):
        replace(made, neighbours=Neighbours(X, Y))
    with pytest.raises(ValueError, match="processing: expected a projection with 'pca', and only there, got 'l2'"):
        replace(made, processing="l2")
    with pytest.raises(ValueError, match="k: expected at most 60, the size of the index, got 99"):
        KnnScore(neighbours=Neighbours(X, Y), k=99, **NAMES)


def test_damaged_files(damaged, tmp_path):
    path = tmp_path / "k.safetensors"
    fit_knn([(X, Y)], k=5, **NAMES).save(path)
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(DetectionFileError, match=r"k\.safetensors: expected a whole safetensors file.*, got"):
        load_knn(path)


ABOUT = {
    **{"layer": "dense", "k": 5, "weighting": "rank", "processing": "none", "backend": "brute", "model": "m"},
    "provenance": {},
}


@pytest.mark.parametrize(
    ("about", "tensors", "message"),
    [
        ({"k": 61}, {}, "k: expected at most 60, the size of the index, got 61"),
        ({"k": 0}, {}, "k: expected an integer from 1 to 1048576, got 0"),
        ({"weighting": "x"}, {}, "weighting: expected .*, got 'x'"),
        ({"backend": "annoy"}, {}, "backend: expected one of brute, faiss, got 'annoy'"),
        ({"processing": "pca"}, {}, "expected the tensor 'mean', got a file without it"),
        (
            {"processing": "pca"},
            {"mean": torch.zeros(9, dtype=torch.float64), "matrix": torch.zeros(9, 5, dtype=torch.float64)},
            r"'matrix': expected torch.float64 \(9, 6\), got torch.float64 \(9, 5\)",
        ),
        ({}, {"mean": torch.zeros(9)}, "expected no further tensors, got 1 that do not belong, first 'mean'"),
        ({}, {"labels": Y.int()}, "'labels': expected .*, got torch.int32"),
        ({}, {"features": X * torch.inf}, "'features': expected finite values, got NaN or infinity"),
        ({"calibrated": True}, {}, "false_alarm_rates: expected .*, got None"),
    ],
)
def test_hostile_files(about, tensors, message, tmp_path):
    header = {"format": "fastadv.detection", "version": "1", "kind": "knn score"}
    header["about"] = json.dumps({**ABOUT, **about})
    save_file({"features": X, "labels": Y, **tensors}, tmp_path / "k.safetensors", header)
    with pytest.raises(DetectionFileError, match=message):
        load_knn(tmp_path / "k.safetensors")


@pytest.mark.gpu
def test_on_a_device(tmp_path):
    made = fit_knn([(X, Y)], k=9, dimensions=4, **NAMES)
    made.save(tmp_path / "k.safetensors")
    q, p = clusters(10, seed=1)
    moved = load_knn(tmp_path / "k.safetensors", device="cuda")
    torch.testing.assert_close(moved.score(q.cuda(), p.cuda()).cpu(), made.score(q, p))
