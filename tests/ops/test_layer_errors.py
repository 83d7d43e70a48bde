"""Every mistake of a caller of the layer operations is an error that names the argument, what came and was expected."""

import numpy as np
import pytest
import torch

from fastadv import backends, ops

F16 = torch.float16


def maps(*shapes, **options):
    return [torch.ones(shape, **options) for shape in shapes or ((2, 3, 4, 5), (2, 6, 1, 1))]


def rows(*shapes, **options):
    return [torch.ones(shape, **options) for shape in shapes]


META = {"device": "meta"}
GOOD_CENTROIDS = rows((4, 3), (4, 6))
GOOD_FEATURES = rows((2, 3), (2, 6))

MAPS = [
    (torch.ones(2, 3, 4, 5), TypeError, r"maps: expected a sequence of feature maps \(N, C, H, W\), got Tensor"),
    ([], ValueError, r"maps: expected a sequence of one or more feature maps \(N, C, H, W\), got none"),
    (None, TypeError, "maps: expected .*, got NoneType"),
    ([*maps(), 3.0], TypeError, r"maps\[2\]: expected a torch.Tensor, got float"),
    (
        maps(dtype=torch.float64),
        TypeError,
        r"maps\[0\]: expected dtype torch\.float32, torch\.bfloat16 or torch\.float16, got torch\.float64",
    ),
    (
        [maps()[0], maps()[1].half()],
        TypeError,
        r"maps\[1\]: expected dtype torch\.float32, the dtype of maps\[0\], got torch\.float16",
    ),
    (maps((2, 3, 4)), ValueError, r"maps\[0\]: expected shape \(N, C, H, W\) with C, H, W >= 1, got \(2, 3, 4\)"),
    (maps((2, 3, 0, 5)), ValueError, r"maps\[0\]: expected shape .* C, H, W >= 1, got \(2, 3, 0, 5\)"),
    (maps((2, 0, 4, 5)), ValueError, r"maps\[0\]: expected .*, got \(2, 0, 4, 5\)"),
    (maps((2, 3, 4, 5), (3, 6, 1, 1)), ValueError, r"maps\[1\]: expected 2 images, like maps\[0\], got 3"),
    (
        [maps()[0], torch.ones(2, 6, 1, 1, **META)],
        ValueError,
        r"maps\[1\]: expected cpu, the device of maps\[0\], got meta",
    ),
]
FEATURES = [
    (torch.ones(2, 3), TypeError, r"features: expected a sequence of features \(N, C\), got Tensor"),
    ([], ValueError, r"features: expected a sequence of one or more features \(N, C\), got none"),
    ([[1.0], [2.0]], TypeError, r"features\[0\]: expected .*, got list"),
    (rows((2, 3), (2, 6), dtype=F16), TypeError, r"features\[0\]: expected dtype torch.float32, got torch.float16"),
    (rows((2, 3, 1), (2, 6)), ValueError, r"features\[0\]: expected shape \(any, any\), got \(2, 3, 1\)"),
    (rows((2, 3), (3, 6)), ValueError, r"features\[1\]: expected shape \(2, any\), got \(3, 6\)"),
    (rows((2, 0), (2, 6)), ValueError, r"features\[0\]: expected shape \(N, C\) with C >= 1, got \(2, 0\)"),
]
CENTROIDS = [
    (torch.ones(4, 3), TypeError, r"centroids: expected a sequence of centroids \(K, C\), got Tensor"),
    ([], ValueError, r"centroids: expected a sequence of one or more centroids \(K, C\), got none"),
    (rows((4, 3)), ValueError, "centroids: expected 2 layers, like (features|maps), got 1"),
    (
        rows((4, 3), (4, 6), dtype=torch.float64),
        TypeError,
        r"centroids\[0\]: expected dtype torch\.float32, got torch\.float64",
    ),
    (rows((4, 3), (4, 5)), ValueError, r"centroids\[1\]: expected shape \(4, 6\), got \(4, 5\)"),
    (rows((4, 3), (5, 6)), ValueError, r"centroids\[1\]: expected shape \(4, 6\), got \(5, 6\)"),
    (rows((3,), (4, 6)), ValueError, r"centroids\[0\]: expected shape \(any, 3\), got \(3,\)"),
    (rows((0, 3), (0, 6)), ValueError, r"centroids\[0\]: expected shape \(K, C\) with K >= 1, got \(0, 3\)"),
    (
        rows((4, 3), (4, 6), **META),
        ValueError,
        r"centroids\[0\]: expected cpu, the device of (features|maps), got meta",
    ),
    (rows((4, 3), (4, 6), requires_grad=True), RuntimeError, r"centroids\[0\] requires grad, and has no derivative"),
]
SHARED = [
    ({"metric": "l1"}, ValueError, "metric: expected 'l2' or 'cosine', got 'l1'"),
    ({"backend": "gpu"}, ValueError, "backend: expected one of reference, cpu, cuda, triton or 'auto', got 'gpu'"),
    (
        {"backend": "cuda"},
        backends.BackendUnavailable,
        "backend: expected one that can run .* on cpu, got 'cuda': it takes CUDA tensors",
    ),
]


I64 = torch.int64
OWN = [
    ([0, 1], TypeError, "own: expected a torch.Tensor or a NumPy or CuPy array, got list"),
    (1, TypeError, "own: expected a torch.Tensor or a NumPy or CuPy array, got int"),
    (torch.zeros(2), TypeError, "own: expected dtype torch.int64, got torch.float32"),
    (torch.zeros(2, dtype=torch.int32), TypeError, "own: expected dtype torch.int64, got torch.int32"),
    (torch.zeros(3, dtype=I64), ValueError, r"own: expected shape \(2,\), got \(3,\)"),
    (torch.zeros(2, 1, dtype=I64), ValueError, r"own: expected shape \(2,\), got \(2, 1\)"),
    (
        torch.zeros(2, dtype=I64, **META),
        ValueError,
        "own: expected cpu, the device of (features|maps), got meta",
    ),
    (torch.tensor([0, 4]), ValueError, r"own: expected classes in \[0, 4\), got 4"),
    (torch.tensor([-1, 0]), ValueError, r"own: expected classes in \[0, 4\), got -1"),
    (np.array([0, 9]), ValueError, r"own: expected classes in \[0, 4\), got 9"),
]


def number(value) -> str:
    return "" if not isinstance(value, str) else value[:30]


@pytest.mark.parametrize(("value", "error", "message"), MAPS, ids=number)
def test_maps(value, error, message):
    with pytest.raises(error, match=message):
        ops.average_pool(value)
    for call in (ops.pooled_centroid_distances, ops.pooled_relative_distances):
        with pytest.raises(error, match=message):
            call(value, GOOD_CENTROIDS)


@pytest.mark.parametrize(("value", "error", "message"), FEATURES, ids=number)
def test_features(value, error, message):
    for call in (ops.centroid_distances, ops.relative_distances):
        with pytest.raises(error, match=message):
            call(value, GOOD_CENTROIDS)


@pytest.mark.parametrize(("value", "error", "message"), CENTROIDS, ids=number)
def test_centroids(value, error, message):
    for call in (ops.centroid_distances, ops.relative_distances):
        with pytest.raises(error, match=message):
            call(GOOD_FEATURES, value)
    for call in (ops.pooled_centroid_distances, ops.pooled_relative_distances):
        with pytest.raises(error, match=message):
            call(maps(), value)


@pytest.mark.parametrize(("value", "error", "message"), OWN, ids=number)
def test_own_classes(value, error, message, backend):
    with pytest.raises(error, match=message):
        ops.relative_distances(GOOD_FEATURES, GOOD_CENTROIDS, value, backend=backend)
    with pytest.raises(error, match=message):
        ops.pooled_relative_distances(maps(), GOOD_CENTROIDS, value, backend=backend)


@pytest.mark.parametrize("own", [None, torch.zeros(2, dtype=I64)])
def test_one_class_has_no_other(own):
    message = r"centroids\[0\]: expected shape \(K, C\) with K >= 2, got \(1, 3\)"
    with pytest.raises(ValueError, match=message):
        ops.relative_distances(GOOD_FEATURES, rows((1, 3), (1, 6)), own)
    with pytest.raises(ValueError, match=message):
        ops.pooled_relative_distances(maps(), rows((1, 3), (1, 6)), own)


@pytest.mark.parametrize(("options", "error", "message"), SHARED, ids=number)
def test_options(options, error, message):
    for call in (ops.centroid_distances, ops.relative_distances):
        with pytest.raises(error, match=message):
            call(GOOD_FEATURES, GOOD_CENTROIDS, **options)
    for call in (ops.pooled_centroid_distances, ops.pooled_relative_distances):
        with pytest.raises(error, match=message):
            call(maps(), GOOD_CENTROIDS, **options)


def test_options_of_the_pooling():
    with pytest.raises(
        backends.BackendUnavailable, match="backend: expected one that can run average_pool on cpu, got 'cuda'"
    ):
        ops.average_pool(maps(), backend="cuda")
    with pytest.raises(TypeError, match="layout"):
        ops.average_pool(maps(), layout="nchw")


def test_centroids_that_require_grad_are_fine_where_nothing_is_recorded():
    with torch.no_grad():
        ops.centroid_distances(GOOD_FEATURES, rows((4, 3), (4, 6), requires_grad=True))


SCORES = [
    ({"distances": [[1.0]]}, TypeError, "distances: expected a torch.Tensor or a NumPy or CuPy array, got list"),
    (
        {"distances": torch.ones(2, 3, dtype=F16)},
        TypeError,
        "distances: expected dtype torch.float32, got torch.float16",
    ),
    ({"distances": torch.ones(3)}, ValueError, r"distances: expected shape \(any, any\), got \(3,\)"),
    ({"distances": torch.ones(2, 0)}, ValueError, r"distances: expected shape \(N, k\) with k >= 1, got \(2, 0\)"),
    ({"labels": torch.ones(2, 3)}, TypeError, "labels: expected dtype torch.int64, got torch.float32"),
    ({"labels": torch.ones(2, 4, dtype=torch.int64)}, ValueError, r"labels: expected shape \(2, 3\), got \(2, 4\)"),
    (
        {"labels": torch.ones(2, 3, dtype=torch.int64, **META)},
        ValueError,
        "labels: expected cpu, the device of distances, got meta",
    ),
    ({"labels": None}, TypeError, "labels: expected .*, got NoneType"),
    ({"predicted": torch.ones(2)}, TypeError, "predicted: expected dtype torch.int64, got torch.float32"),
    ({"predicted": torch.ones(3, dtype=torch.int64)}, ValueError, r"predicted: expected shape \(2,\), got \(3,\)"),
    ({"predicted": 1}, TypeError, "predicted: expected .*, got int"),
    (
        {"weighting": "distance"},
        ValueError,
        "weighting: expected 'uniform', 'rank' or 'inverse_square', got 'distance'",
    ),
    ({"backend": "gpu"}, ValueError, "backend: expected one of .*, got 'gpu'"),
]


@pytest.mark.parametrize(("change", "error", "message"), SCORES, ids=number)
def test_scores(change, error, message):
    good = {
        "distances": torch.ones(2, 3),
        "labels": torch.ones(2, 3, dtype=torch.int64),
        "predicted": torch.ones(2, dtype=torch.int64),
    }
    with pytest.raises(error, match=message):
        ops.knn_score(**{**good, **change})


def test_arrays_that_pytorch_lacks():
    with pytest.raises(TypeError, match=r"maps\[0\]: expected a dtype that PyTorch has, got complex256"):
        ops.average_pool([np.zeros((1, 2, 3, 4), np.clongdouble)])
