"""What only a GPU can show of the layer operations: streams, graph capture, launches, a second device."""

import pytest
import torch

from fastadv import ops
from fastadv.testing.layer_cases import SE_RESNET_50, LayerCase
from fastadv.testing.tolerances import assert_same_bits

pytestmark = pytest.mark.gpu

CASE = LayerCase(images=3, layers=tuple((c, side, side) for c, side in SE_RESNET_50), centroids=37)


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    return request.param


@pytest.fixture(params=["l2", "cosine"])
def metric(request):
    return request.param


def everything(maps, centroids, metric, backend):
    distances = ops.pooled_centroid_distances(maps, centroids, metric=metric, backend=backend)
    nearest, order = distances[:, 0].sort(dim=1)
    claimed = ops.pooled_relative_distances(maps, centroids, order[:, 5], metric=metric, backend=backend)
    found = ops.pooled_relative_distances(maps, centroids, metric=metric, backend=backend)
    return (
        distances,
        claimed,
        found,
        ops.knn_score(nearest, order, order[:, 3], weighting="inverse_square", backend=backend),
    )


def test_a_side_stream_orders_the_work(metric, backend):
    maps, centroids = CASE.maps("cuda"), CASE.against("cuda")
    expected = everything(maps, centroids, metric, backend)
    late = [torch.zeros_like(value) for value in maps]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a launch on another stream would see the zeros
        for value, source in zip(late, maps, strict=True):
            value.copy_(source)
        found = everything(late, centroids, metric, backend)
    stream.synchronize()
    for a, b in zip(found, expected, strict=True):
        assert_same_bits(a, b)


def test_a_captured_call_replays(metric, backend):
    maps, centroids = CASE.maps("cuda"), CASE.against("cuda")
    expected = everything(maps, centroids, metric, backend)
    held = [torch.zeros_like(value) for value in maps]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        everything(held, centroids, metric, backend)  # Triton compiles on the first call
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = everything(held, centroids, metric, backend)
    for value, source in zip(held, maps, strict=True):
        value.copy_(source)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(found, expected, strict=True):
        assert_same_bits(a, b)


def test_runs_repeat_their_bits(metric, backend):
    maps = [value.requires_grad_(True) for value in CASE.maps("cuda")]
    found = []
    for _ in range(2):
        distances = ops.pooled_centroid_distances(maps, CASE.against("cuda"), metric=metric, backend=backend)
        found.append((distances.detach(), *torch.autograd.grad(distances.sum(), maps)))
    for a, b in zip(*found, strict=True):
        assert_same_bits(a, b)


def test_one_launch_for_all_layers(backend):
    maps, features, centroids = CASE.maps("cuda"), CASE.features("cuda"), CASE.against("cuda")
    wanted = {
        lambda: ops.average_pool(maps, backend=backend): 1,
        lambda: ops.centroid_distances(features, centroids, backend=backend): 1,
        lambda: ops.pooled_centroid_distances(maps, centroids, backend=backend): 2,
        lambda: ops.relative_distances(features, centroids, backend=backend): 4,  # the last layer, then the others
    }
    for call, launches in wanted.items():
        call()
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities, acc_events=True) as trace:
            call()
            torch.cuda.synchronize()
        kernels = [event for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        assert len(kernels) == launches


def test_the_current_device_is_left_as_it_was(metric, backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    expected = everything(CASE.maps("cuda:0"), CASE.against("cuda:0"), metric, backend)
    with torch.cuda.device(0):
        found = everything(CASE.maps("cuda:1"), CASE.against("cuda:1"), metric, backend)
        assert torch.cuda.current_device() == 0
    for a, b in zip(found, expected, strict=True):
        assert_same_bits(a, b)


def test_many_centroids_and_images(metric, backend):
    draw = torch.Generator().manual_seed(0)
    features = [torch.randn(70, 130, generator=draw).cuda()]
    centroids = [torch.randn(100_000, 130, generator=draw).cuda()]
    made = ops.centroid_distances(features, centroids, metric=metric, backend=backend)
    wide = [value.double() for value in (features[0][:, None], centroids[0][None, -40:])]
    if metric == "cosine":
        wide = [value / value.norm(dim=-1, keepdim=True) for value in wide]
    expected = (wide[0] - wide[1]).square().sum(-1)
    expected = expected.sqrt() if metric == "l2" else expected / 2
    torch.testing.assert_close(made[:, 0, -40:].double(), expected, rtol=1e-5, atol=1e-7)
    read = ops.relative_distances(features, centroids, metric=metric, backend=backend)[:, 0].double()
    d = made[:, 0].double()
    least = d.topk(2, dim=1, largest=False).values
    mean = (d.sum(1) - least[:, 0]) / (d.shape[1] - 1)
    torch.testing.assert_close(read[:, :2], least, rtol=0, atol=0)
    torch.testing.assert_close(read[:, 4], least[:, 0] - mean, rtol=1e-6, atol=0)
