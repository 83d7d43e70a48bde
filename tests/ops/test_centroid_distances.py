"""Distances to centroids: closed forms, float64, every backend, the derivatives."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastadv import ops
from fastadv.testing.layer_cases import LAYER_CASES, MANY_LAYERS, LayerCase
from fastadv.testing.tolerances import assert_same_bits

METRICS = ["l2", "cosine"]
CASE = LayerCase(images=3, layers=((5, 2, 3), (17, 1, 4)), centroids=6)


@pytest.fixture(autouse=True)
def _poisoned(poisoned):
    """What is not written is NaN."""


@pytest.fixture(params=METRICS)
def metric(request):
    return request.param


def exact(features, centroids, metric):
    """By the definition, in float64."""
    made = []
    for f, c in zip(features, centroids, strict=True):
        f, c = f.double()[:, None], c.double()[None]
        if metric == "l2":
            made.append((f - c).square().sum(-1).sqrt())
        else:
            made.append(0.5 * (f / f.norm(dim=-1, keepdim=True) - c / c.norm(dim=-1, keepdim=True)).square().sum(-1))
    return torch.stack(made, 1)


def assert_distances(actual, features, centroids, metric):
    expected = exact([f.cpu() for f in features], [c.cpu() for c in centroids], metric)
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    bound = 1e-5 * expected + (2e-7 * expected.sqrt() + 1e-14 if metric == "cosine" else 0)
    assert bool(((actual.cpu().double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_every_backend_against_float64(case, metric, target):
    features, centroids = case.features(target.device), case.against(target.device)
    actual = ops.centroid_distances(features, centroids, metric=metric, backend=target.backend)
    assert_distances(actual, features, centroids, metric)


def test_more_layers_than_one_launch_takes(metric):
    features = [value.requires_grad_(True) for value in MANY_LAYERS.features()]
    made = ops.centroid_distances(features, MANY_LAYERS.against(), metric=metric)
    assert_distances(made.detach(), [value.detach() for value in features], MANY_LAYERS.against(), metric)
    actual = torch.autograd.grad(made.sum(), features)
    reference = ops.centroid_distances(features, MANY_LAYERS.against(), metric=metric, backend="reference")
    for a, b in zip(actual, torch.autograd.grad(reference.sum(), features), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    pooled = ops.pooled_centroid_distances(MANY_LAYERS.maps(), MANY_LAYERS.against(), metric=metric)
    means = ops.average_pool(MANY_LAYERS.maps())
    assert_same_bits(pooled, ops.centroid_distances(means, MANY_LAYERS.against(), metric=metric))


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_straight_from_maps(case, metric, target):
    maps, centroids = case.maps(target.device), case.against(target.device)
    actual = ops.pooled_centroid_distances(maps, centroids, metric=metric, backend=target.backend)
    features = [value.contiguous() for value in ops.average_pool(maps, backend=target.backend)]
    assert_same_bits(actual, ops.centroid_distances(features, centroids, metric=metric, backend=target.backend))


def test_by_hand(backend):
    features = [torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0], [-2.0]])]
    centroids = [torch.tensor([[0.0, 0.0], [3.0, 4.0], [4.0, -3.0]]), torch.tensor([[1.0], [2.0], [-4.0]])]
    l2 = ops.centroid_distances(features, centroids, backend=backend)
    assert l2[0].tolist() == [[5.0, 0.0, pytest.approx(50**0.5)], [0.0, 1.0, 5.0]]
    assert l2[1, 1].tolist() == [3.0, 4.0, 2.0]
    cosine = ops.centroid_distances(features, centroids, metric="cosine", backend=backend)
    assert cosine[0, 0].tolist() == [1.0, 0.0, pytest.approx(1.0)]
    assert cosine[1, 0].tolist() == [1.0, pytest.approx(0.2), pytest.approx(1.6)]
    assert cosine[:, 1].tolist() == [[0.0, 0.0, 2.0], [2.0, 2.0, 0.0]]


def test_the_distance_to_itself_is_zero(metric, target):
    for scale in (1e-12, 1.0, 1e12):
        for width in (1, 16, 63, 1030):
            x = torch.randn(5, width, generator=torch.Generator().manual_seed(width)).to(target.device) * scale
            made = ops.centroid_distances([x], [x], metric=metric, backend=target.backend)[:, 0]
            assert made.diagonal().tolist() == [0.0] * 5


def test_small_differences_of_large_features(target):
    # As |f|^2 + |c|^2 - 2 f c, every digit would be gone.
    draw = torch.Generator().manual_seed(3)
    c = torch.randn(4, 200, generator=draw) + 100
    f = c[:3] + torch.randn(3, 200, generator=draw) * 1e-4
    features, centroids = [f.to(target.device)], [c.to(target.device)]
    for metric in METRICS:
        actual = ops.centroid_distances(features, centroids, metric=metric, backend=target.backend)
        assert_distances(actual, features, centroids, metric)


@pytest.mark.parametrize("width", [15, 16, 100, 1040])
def test_a_distance_has_the_same_bits_in_any_batch(width, metric, target):
    draw = torch.Generator().manual_seed(width)
    f = torch.randn(11, width, generator=draw).to(target.device)
    c = torch.randn(10, width, generator=draw).to(target.device)
    together = ops.centroid_distances([f], [c], metric=metric, backend=target.backend)
    for n, k in ((0, 3), (4, 9), (10, 0)):
        alone = ops.centroid_distances([f[n : n + 1]], [c[k : k + 1]], metric=metric, backend=target.backend)
        assert_same_bits(alone, together[n : n + 1, :, k : k + 1])


def test_a_zero_vector_has_no_direction(backend):
    f = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1e-25, 0.0]], requires_grad=True)
    c = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    made = ops.centroid_distances([f], [c], metric="cosine", backend=backend)
    assert made[:, 0].tolist() == [[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    made.sum().backward()
    assert f.grad.tolist() == [[0.0, 0.0]] * 3


def scaled_rows(scale, width, count, seed):
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed)) * scale


# Triton's interpreter computes in NumPy, which warns where a square overflows.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 1e37])
def test_squares_that_float32_does_not_hold(scale, metric, target):
    # In float32 the norm of these is infinite or has no digits: a cosine distance was 1 to everything.
    plain, odd, other = scaled_rows(1.0, 130, 1, 1), scaled_rows(scale, 130, 2, 2), scaled_rows(scale, 130, 2, 3)
    for f, c in ((odd, other), (torch.cat([plain, odd]), torch.cat([other, 1 + plain]))):
        features = f.to(target.device, copy=True).requires_grad_(True)
        made = _with([features], [c.to(target.device)], metric, target.backend)
        slack = 2e-45  # a subnormal distance has no more
        expected = exact([f], [c], metric)
        bound = 1e-5 * expected + (2e-7 * expected.sqrt() + 1e-14 if metric == "cosine" else slack)
        assert bool(((made.detach().cpu().double() - expected).abs() <= bound).all())
        weight = torch.linspace(-1, 2, made.numel()).view(made.shape)
        (made * weight.to(target.device)).sum().backward()
        wide = f.double().requires_grad_(True)
        (right,) = gradients([wide], [c], metric, weight, exact)
        right = right.clamp(-torch.finfo(torch.float32).max, torch.finfo(torch.float32).max)
        size = wide.detach().norm(dim=1, keepdim=True) if metric == "cosine" else torch.ones(len(f), 1).double()
        actual = features.grad.cpu().double().clamp(-torch.finfo(torch.float32).max, torch.finfo(torch.float32).max)
        # Distances below 1e-38 come back into the derivative with fewer digits.
        rough = 1e-4 if scale < 1e-38 else 1e-5
        assert bool(((actual - right).abs() * size <= rough * (1 + right.abs() * size) + 1e-40 * size).all())


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
def test_extremes_leave_their_neighbours_alone(metric, target):
    plain = [scaled_rows(1.0, 40, 9, 3), scaled_rows(1.0, 40, 20, 4)]
    odd = [value.clone() for value in plain]
    odd[0][4] *= 1e30
    odd[1][7] *= 1e-30
    before, after = (
        ops.centroid_distances(
            [f.to(target.device)], [c.to(target.device)], metric=metric, backend=target.backend
        ).cpu()
        for f, c in (plain, odd)
    )
    kept = torch.ones(9, 1, 20, dtype=torch.bool)
    kept[4], kept[:, :, 7] = False, False
    assert_same_bits(after[kept], before[kept])


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
def test_the_distance_of_extremes_to_themselves_is_zero(metric, target):
    for scale in (1e-42, 1e-25, 1e25, 3e38):
        x = (scaled_rows(scale, 63, 5, 6)).to(target.device)
        made = ops.centroid_distances([x], [x], metric=metric, backend=target.backend)[:, 0]
        assert made.diagonal().tolist() == [0.0] * 5


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
def test_an_infinite_vector_has_no_direction(backend):
    f = torch.tensor([[float("inf"), 1.0], [1.0, 2.0]])
    made = ops.centroid_distances([f], [torch.tensor([[1.0, 0.0]])], metric="cosine", backend=backend)
    assert made.isnan().flatten().tolist() == [True, False]
    made = ops.centroid_distances([f], [torch.tensor([[1.0, 0.0]])], backend=backend)
    assert made.flatten().tolist() == [float("inf"), 2.0]


def test_a_nan_stays_in_its_rows(metric, backend):
    features, centroids = CASE.features(), CASE.against()
    features[0][1, 2] = float("nan")
    centroids[1][4, 3] = float("nan")
    made = ops.centroid_distances(features, centroids, metric=metric, backend=backend)
    expected = torch.zeros(3, 2, 6, dtype=torch.bool)
    expected[1, 0], expected[:, 1, 4] = True, True
    assert torch.equal(made.isnan(), expected)


def test_rows_of_larger_tensors(metric, backend):
    wide = torch.randn(8, 40)
    features = [wide[::2, 3:20], wide.T[5:9, ::2], wide[:4, ::3]]
    centroids = [torch.randn(5, c) for c in (17, 4, 14)]
    centroids[0] = torch.randn(17, 5).T
    made = ops.centroid_distances(features, centroids, metric=metric, backend=backend)
    assert_distances(made, features, centroids, metric)


def test_long_features_keep_their_digits(metric):
    features, centroids = [torch.rand(2, 30011)], [torch.rand(6, 30011)]
    assert_distances(ops.centroid_distances(features, centroids, metric=metric), features, centroids, metric)


def test_many_centroids_need_no_more_memory_than_the_result(metric):
    # (N, K, C) would be 25 GiB.
    draw = torch.Generator().manual_seed(0)
    features, centroids = [torch.randn(1000, 64, generator=draw)], [torch.randn(100_000, 64, generator=draw)]
    made = ops.centroid_distances([features[0][:9]], centroids, metric=metric)
    assert_distances(made[:, :, -5:], [features[0][:9]], [centroids[0][-5:]], metric)


def test_the_number_of_threads_changes_no_bit(metric):
    case = LayerCase(images=33, layers=((70, 3, 3), (19, 5, 5)), centroids=50)
    maps, centroids = case.maps(), case.against()
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            made.append(ops.pooled_centroid_distances(maps, centroids, metric=metric, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert_same_bits(made[1], made[0])
    assert_same_bits(made[2], made[0])


def gradients(features, centroids, metric, weight, distances):
    made = distances(features, centroids, metric)
    return torch.autograd.grad((made * weight.to(made.dtype)).sum(), features)


@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_derivatives_against_float64(case, metric, target):
    def ours(f, c, m):
        return ops.centroid_distances(f, c, metric=m, backend=target.backend)

    features = [value.requires_grad_(True) for value in case.features(target.device)]
    centroids = case.against(target.device)
    weight = torch.randn(case.images, len(case.layers), case.centroids)
    wide = [value.detach().cpu().double().requires_grad_(True) for value in features]
    expected = gradients(wide, [c.cpu() for c in centroids], metric, weight, exact)
    actual = gradients(features, centroids, metric, weight.to(target.device), ours)
    for a, e, f in zip(actual, expected, wide, strict=True):
        assert a.dtype == torch.float32
        # A cosine derivative that is 0 is what is left of two vectors of size 1 / |f|.
        slack = 1e-6 if metric == "l2" else 1e-6 / f.detach().norm(dim=1, keepdim=True)
        assert bool(((a.cpu().double() - e).abs() <= 1e-5 * e.abs() + 5 * slack).all())


def many(seed=5):
    """More images, channels and centroids than the CPU's kernel takes at a time, and none a multiple of it."""
    draw = torch.Generator().manual_seed(seed)
    widths = (131, 19)
    features, centroids = ([torch.randn(n, c, generator=draw) for c in widths] for n in (34, 70))
    return features, centroids, torch.randn(34, 2, 70, generator=draw)


@pytest.mark.parametrize("kept", [(), (5, 69)])
def test_derivatives_where_most_weights_are_zero(kept, metric, target):
    # of an attack on a gallery: zero weights are passed over, for some images of a group or for all
    features, centroids, weight = many()
    zero = torch.ones(70, dtype=torch.bool)
    zero[list(kept)] = False
    weight[:, :, zero] = 0
    weight[3, :, 5] = 0
    if target.interpreted:  # which takes one image at a time
        features, weight = [f[:4] for f in features], weight[:4]
    moved = [f.to(target.device, copy=True).requires_grad_(True) for f in features]
    on_device = [c.to(target.device) for c in centroids]
    actual = gradients(
        moved, on_device, metric, weight.to(target.device), lambda f, c, m: _with(f, c, m, target.backend)
    )
    wide = [f.double().requires_grad_(True) for f in features]
    for a, e in zip(actual, gradients(wide, centroids, metric, weight, exact), strict=True):
        torch.testing.assert_close(a.cpu().double(), e, rtol=1e-5, atol=2e-6)


def derived(part, metric, backend="cpu", device="cpu"):
    features, centroids, weight = many()
    weight[:, :, 20:68] = 0
    leaves = [f[part].to(device, copy=True).requires_grad_(True) for f in features]
    on_device = [c.to(device) for c in centroids]
    weight = weight[part].to(device)
    return gradients(leaves, on_device, metric, weight, lambda f, c, m: _with(f, c, m, backend))


def test_the_bits_of_a_derivative_do_not_depend_on_threads(metric):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(derived(slice(None), metric))
    finally:
        torch.set_num_threads(before)
    for layer in range(2):
        assert_same_bits(found[1][layer], found[0][layer])
        assert_same_bits(found[2][layer], found[0][layer])


def test_the_bits_of_a_derivative_do_not_depend_on_neighbours(metric, target):
    if target.backend == "reference":
        pytest.skip("PyTorch's sums depend on the shape")
    rows = [0, 12, 33] if target.interpreted else list(range(34))  # it takes one image at a time
    together = derived(rows, metric, target.backend, target.device)
    for n in (0, 33):
        alone = derived(slice(n, n + 1), metric, target.backend, target.device)
        at = rows.index(n)
        for layer in range(2):
            assert_same_bits(alone[layer], together[layer][at : at + 1])


def test_derivatives_close_to_a_centroid(metric, backend):
    # As f sum(w) - w C, the difference would drown in rounding.
    c = torch.randn(3, 50) + 20
    f = (c[:2] + 1e-4 * torch.randn(2, 50)).requires_grad_(True)
    (actual,) = gradients([f], [c], metric, torch.ones(2, 1, 3), lambda f, c, m: _with(f, c, m, backend))
    wide = f.detach().double().requires_grad_(True)
    (expected,) = gradients([wide], [c], metric, torch.ones(2, 1, 3), exact)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def _with(features, centroids, metric, backend):
    return ops.centroid_distances(features, centroids, metric=metric, backend=backend)


def test_the_derivative_at_distance_zero_is_zero(metric, backend):
    x = torch.randn(2, 9)
    f = x.clone().requires_grad_(True)
    made = _with([f], [x], metric, backend)
    made.diagonal(dim1=0, dim2=2).sum().backward()
    assert bool((f.grad == 0).all())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_derivatives_of_maps_are_those_of_the_two_operations(dtype, layout, metric, backend):
    case = LayerCase(images=2, layers=CASE.layers, centroids=4, dtype=dtype, layout=layout)
    weight = torch.randn(2, 2, 4)
    both = []
    for fused in (True, False):
        maps = [value.requires_grad_(True) for value in case.maps()]
        if fused:
            made = ops.pooled_centroid_distances(maps, case.against(), metric=metric, backend=backend)
        else:
            made = _with(ops.average_pool(maps, backend=backend), case.against(), metric, backend)
        (made * weight).sum().backward()
        both.append([value.grad for value in maps])
    for a, b, value in zip(*both, maps, strict=True):
        assert_same_bits(a, b)
        assert a.stride() == value.stride()


def test_there_is_no_second_derivative(metric, backend):
    f = [value.requires_grad_(True) for value in CASE.features()]
    (first, *_) = torch.autograd.grad(_with(f, CASE.against(), metric, backend).sum(), f, create_graph=True)
    with pytest.raises(NotImplementedError, match="centroid_distances_backward has no derivative"):
        first.sum().backward()


@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(1, 12),
    st.sampled_from(METRICS),
    st.floats(-6, 6),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(widths, images, count, metric, exponent):
    case = LayerCase(images=images, layers=tuple((w, 1, 1) for w in widths), centroids=count)
    features = [value * 10**exponent for value in case.features()]
    made = ops.centroid_distances(features, case.against(), metric=metric)
    assert_distances(made, features, case.against(), metric)
    assert bool((made >= 0).all())
    if metric == "cosine":
        assert bool((made <= 2 + 1e-5).all())


@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 2**20))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_distances_are_symmetric(width, count, seed):
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    for metric in METRICS:
        made = ops.centroid_distances([x], [x], metric=metric)[:, 0]
        assert_same_bits(made, made.T.contiguous())
