"""What the layer operations owe to PyTorch and NumPy: registration, compilation, arrays."""

import numpy as np
import pytest
import torch

from fastadv import ops
from fastadv.testing.layer_cases import LayerCase
from fastadv.testing.tolerances import assert_same_bits

CASE = LayerCase(images=2, layers=((5, 3, 4), (8, 2, 2)), centroids=4)
METRICS = ["l2", "cosine"]


def neighbours():
    draw = torch.Generator().manual_seed(1)
    distances = torch.rand(3, 9, generator=draw).sort(1).values
    labels = torch.randint(0, 3, (3, 9), generator=draw)
    return distances, labels, torch.tensor([0, 1, 2])


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_of_the_pooling(grad, backend):
    for layout in ("contiguous", "channels_last"):
        maps = LayerCase(images=2, layers=CASE.layers, layout=layout).maps()
        for value in maps:
            value.requires_grad_(grad)
        torch.library.opcheck(torch.ops.fastadv.average_pool.default, (maps, backend))


@pytest.mark.parametrize(("metric", "grad"), [("l2", False), ("l2", True), ("cosine", True)])
def test_opcheck_of_the_distances(metric, grad, backend):
    features, maps, centroids = CASE.features(), CASE.maps(), CASE.against()
    for value in (*features, *maps):
        value.requires_grad_(grad)
    torch.library.opcheck(torch.ops.fastadv.centroid_distances.default, (features, centroids, metric, backend))
    torch.library.opcheck(torch.ops.fastadv.pooled_centroid_distances.default, (maps, centroids, metric, backend))
    distances = ops.centroid_distances(features, centroids, metric=metric).detach()
    plain = [value.detach() for value in features]
    arguments = (torch.randn_like(distances), distances, plain, centroids, metric, backend)
    torch.library.opcheck(torch.ops.fastadv.centroid_distances_backward.default, arguments)


# every pair of metric, gradient and whether a class is given
@pytest.mark.parametrize(
    ("metric", "grad", "given"),
    [
        ("l2", True, True),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("l2", False, False), ("cosine", True, False), ("cosine", False, True))
        ),
    ],
)
def test_opcheck_of_the_relative_distances(metric, grad, given, backend):
    own = torch.tensor([3, 0]) if given else None
    features, maps, centroids = CASE.features(), CASE.maps(), CASE.against()
    for value in (*features, *maps):
        value.requires_grad_(grad)
    torch.library.opcheck(torch.ops.fastadv.relative_distances.default, (features, centroids, metric, own, backend))
    torch.library.opcheck(torch.ops.fastadv.pooled_relative_distances.default, (maps, centroids, metric, own, backend))


@pytest.mark.parametrize("weighting", ["uniform", "rank", "inverse_square"])
def test_opcheck_of_the_score(weighting, backend):
    torch.library.opcheck(torch.ops.fastadv.knn_score.default, (*neighbours(), weighting, backend))


@pytest.mark.parametrize("metric", METRICS)
def test_compiled_without_a_graph_break(metric, backend):
    centroids, (near, labels, predicted) = CASE.against(), neighbours()

    def everything(first, second):
        maps = [first * 2, second.relu()]
        pooled = ops.average_pool(maps, backend=backend)
        one = ops.centroid_distances(pooled, centroids, metric=metric, backend=backend)
        other = ops.pooled_centroid_distances(maps, centroids, metric=metric, backend=backend)
        score = ops.knn_score(near, labels, predicted, weighting="rank", backend=backend)
        relative = ops.relative_distances(pooled, centroids, metric=metric, backend=backend)
        claimed = ops.pooled_relative_distances(maps, centroids, predicted[:2], metric=metric, backend=backend)
        return one.sum() + (other * 3).sum() + score.sum() + relative.sum() + claimed.square().sum()

    torch.compiler.reset()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    found = []
    for function in (everything, compiled):
        maps = [value.requires_grad_(True) for value in CASE.maps()]
        made = function(*maps)
        found.append((made.detach(), *torch.autograd.grad(made, maps)))
    for a, b in zip(*found, strict=True):
        assert_same_bits(a, b)


def test_inference_tensors(backend):
    with torch.inference_mode():
        maps, centroids = CASE.maps(), CASE.against()
        ops.pooled_centroid_distances(maps, centroids, backend=backend)
        ops.pooled_relative_distances(maps, centroids, torch.tensor([0, 3]), backend=backend)
        ops.knn_score(*neighbours(), backend=backend)


def test_the_gradient_reaches_what_is_below(backend):
    layer = torch.nn.Conv2d(3, 5, 3)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    distances = ops.pooled_centroid_distances([layer(x)], [torch.randn(4, 5)], backend=backend)
    distances.sum().backward()
    assert bool(x.grad.any())
    assert bool(layer.weight.grad.any())


def test_numpy_arrays_come_back_as_arrays(backend):
    maps, features, centroids = CASE.maps(), CASE.features(), CASE.against()
    arrays = [[value.numpy() for value in values] for values in (maps, features, centroids)]
    arrays[0][0].flags.writeable = False
    pooled = ops.average_pool(arrays[0], backend=backend)
    near = neighbours()
    found = [
        (pooled[0], ops.average_pool(maps, backend=backend)[0]),
        (pooled[1], ops.average_pool(maps, backend=backend)[1]),
        (
            ops.centroid_distances(*arrays[1:], backend=backend),
            ops.centroid_distances(features, centroids, backend=backend),
        ),
        (
            ops.pooled_centroid_distances(arrays[0], arrays[2], backend=backend),
            ops.pooled_centroid_distances(maps, centroids, backend=backend),
        ),
        (
            ops.relative_distances(*arrays[1:], np.array([2, 0]), backend=backend),
            ops.relative_distances(features, centroids, torch.tensor([2, 0]), backend=backend),
        ),
        (
            ops.pooled_relative_distances(arrays[0], arrays[2], backend=backend),
            ops.pooled_relative_distances(maps, centroids, backend=backend),
        ),
        (ops.knn_score(*(value.numpy() for value in near), backend=backend), ops.knn_score(*near, backend=backend)),
    ]
    for array, expected in found:
        assert isinstance(array, np.ndarray)
        assert_same_bits(torch.from_numpy(np.ascontiguousarray(array)), expected.contiguous())


@pytest.mark.gpu
def test_cupy_arrays_come_back_as_arrays():
    cupy = pytest.importorskip("cupy")
    maps, centroids = CASE.maps(), CASE.against()
    with cupy.cuda.Stream(non_blocking=True):
        made = ops.pooled_centroid_distances(
            [cupy.asarray(value.numpy()) for value in maps], [cupy.asarray(value.numpy()) for value in centroids]
        )
        assert isinstance(made, cupy.ndarray)
        expected = ops.pooled_centroid_distances(maps, centroids)
        torch.testing.assert_close(torch.from_numpy(made.get()), expected)
        arrays = [[cupy.asarray(value.numpy()) for value in values] for values in (CASE.features(), centroids)]
        relative = ops.relative_distances(*arrays, cupy.asarray([1, 0]))
        assert isinstance(relative, cupy.ndarray)
        expected = ops.relative_distances(CASE.features(), centroids, torch.tensor([1, 0]))
        torch.testing.assert_close(torch.from_numpy(relative.get()), expected, rtol=1e-5, atol=1e-6)
