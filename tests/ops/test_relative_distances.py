"""Distances relative to a class: the numbers of the float32 distances, every backend, bits, memory, the derivatives."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastadv import ops
from fastadv.testing.layer_cases import LAYER_CASES, MANY_LAYERS, LayerCase
from fastadv.testing.tolerances import assert_same_bits

METRICS = ["l2", "cosine"]
CASE = LayerCase(images=3, layers=((5, 2, 3), (17, 1, 4)), centroids=6)
#: More images and classes than a block and a part hold, and none a multiple of it.
LARGE = LayerCase(images=35, layers=((36, 3, 2), (64, 1, 1)), centroids=70)
CASES = [case for case in LAYER_CASES if case.centroids > 1]
#: Images, layers and classes in several numbers, for what does not depend on the layout.
FEW = [CASES[0], CASES[1], CASE, LARGE]
#: Every layout with a given class, few with the nearest.
BOTH = [*((case, True) for case in [*CASES, LARGE]), *((case, False) for case in FEW)]


@pytest.fixture(autouse=True)
def _poisoned(poisoned):
    """What is not written is NaN."""


@pytest.fixture(params=METRICS)
def metric(request):
    return request.param


def sized(case, target):
    """Fewer images for Triton's interpreter, which takes a hundredth of a second for each."""
    return replace(case, images=min(case.images, 3)) if target.interpreted else case


def own_of(case):
    return torch.arange(case.images) * 7 % case.centroids


def numbers(distances, own):
    """The five numbers of float32 distances ``(N, L, K)`` in float64."""
    d = distances.cpu().double()
    own = own.cpu()[:, None, None].expand(-1, d.shape[1], 1)
    mine = d.gather(2, own)
    other = d.scatter(2, own, float("inf"))
    others = d.shape[2] - 1
    least = other.amin(2)
    a = mine[..., 0]
    ratio = torch.where(a + least == 0, 0.5, a / (a + least))
    rank = (other < mine).sum(2).double() / others
    mean = d.scatter(2, own, 0.0).sum(2) / others
    return torch.stack([a, least, ratio, rank, a - mean], 2)


def assert_numbers(actual, distances, own):
    """Exact but for one rounding; of the fifth also that of float64 sums."""
    expected = numbers(distances, own)
    assert (actual.dtype, actual.shape) == (torch.float32, expected.shape)
    actual = actual.cpu()
    assert_same_bits(actual[..., :4], expected[..., :4].float())
    size = expected[..., 0] + (expected[..., 0] - expected[..., 4])
    bound = 2**-24 * expected[..., 4].abs() + 1e-14 * size
    assert bool(((actual[..., 4].double() - expected[..., 4]).abs() <= bound).all())


def both(case, target, metric, own):
    """The op's numbers, and the distances of the same backend."""
    features, centroids = case.features(target.device), case.against(target.device)
    mine = None if own is None else own.to(target.device)
    made = ops.relative_distances(features, centroids, mine, metric=metric, backend=target.backend)
    return made, ops.centroid_distances(features, centroids, metric=metric, backend=target.backend)


@pytest.mark.parametrize("case", [*CASES, LARGE], ids=lambda case: case.name)
def test_the_numbers_of_the_distances_to_a_given_class(case, metric, target):
    case = sized(case, target)
    own = own_of(case)
    made, distances = both(case, target, metric, own)
    assert_numbers(made, distances, own)


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_without_a_class_it_is_the_nearest_one_of_the_last_layer(case, metric, target):
    made, distances = both(sized(case, target), target, metric, None)
    assert_numbers(made, distances, distances[:, -1].cpu().argmin(1))


@pytest.mark.parametrize("own", [None, torch.tensor([2, 0])])
def test_more_layers_than_one_launch_takes(own, metric, target):
    if target.interpreted and (own is None) != (metric == "cosine"):
        # without a class, all layers but the last are read as with one, which is then known
        pytest.skip("slow in the interpreter, and each value of both is in another combination")
    made, distances = both(MANY_LAYERS, target, metric, own)
    assert_numbers(made, distances, distances[:, -1].cpu().argmin(1) if own is None else own)


@pytest.mark.parametrize(("case", "own"), BOTH)
def test_straight_from_maps(case, own, metric, target):
    case = sized(case, target)
    maps, centroids = case.maps(target.device), case.against(target.device)
    mine = own_of(case).to(target.device) if own else None
    options = {"metric": metric, "backend": target.backend}
    features = [value.contiguous() for value in ops.average_pool(maps, backend=target.backend)]
    actual = ops.pooled_relative_distances(maps, centroids, mine, **options)
    assert_same_bits(actual, ops.relative_distances(features, centroids, mine, **options))


def test_by_hand(backend):
    features = [torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[1.0], [6.0]])]
    centroids = [torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]]), torch.tensor([[1.0], [3.0], [6.0]])]
    made = ops.relative_distances(features, centroids, backend=backend)
    # image 0: class 0 at the last layer (distances 0, 2, 5), where layer 0 has 5, 0, 4
    assert made[0].tolist() == [[5.0, 0.0, 1.0, 1.0, 3.0], [0.0, 2.0, 0.0, 0.0, -3.5]]
    # image 1: class 2 (5, 3, 0), where layer 0 has 0, 5, 3
    assert made[1].tolist() == [[3.0, 0.0, 1.0, 0.5, 0.5], [0.0, 3.0, 0.0, 0.0, -4.0]]
    claimed = ops.relative_distances(features, centroids, torch.tensor([1, 1]), backend=backend)
    assert claimed[0, 0].tolist() == [0.0, 4.0, 0.0, 0.0, -4.5]
    assert claimed[1, 1].tolist() == [3.0, 0.0, 1.0, 0.5, 0.5]


def test_equal_distances(metric, target):
    # of the nearest the lowest index; what is equally near is not nearer; 0 against 0 is a half
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    last = torch.stack([x[0] + 1, x[0], x[0], x[1], x[1]])
    given = [x.to(target.device), x.to(target.device)], [last.flip(0).to(target.device), last.to(target.device)]
    made = ops.relative_distances(*given, metric=metric, backend=target.backend).cpu()
    assert made[:, 1, :4].tolist() == [[0.0, 0.0, 0.5, 0.0]] * 2
    distances = ops.centroid_distances(*given, metric=metric, backend=target.backend)
    assert_numbers(made, distances, torch.tensor([1, 3]))


def test_two_classes(metric, target):
    case = LayerCase(images=3, layers=((7, 1, 1), (4, 1, 1)), centroids=2)
    made, distances = both(case, target, metric, torch.tensor([1, 0, 1]))
    assert_numbers(made, distances, torch.tensor([1, 0, 1]))
    assert bool(((made[..., 3] == 0) | (made[..., 3] == 1)).all())


def test_a_nan_stays_in_its_rows(metric, backend):
    features, centroids = CASE.features(), CASE.against()
    features[0][1, 2] = float("nan")
    centroids[1][4, 3] = float("nan")
    made = ops.relative_distances(features, centroids, torch.tensor([0, 1, 2]), metric=metric, backend=backend)
    expected = torch.zeros(3, 2, 5, dtype=torch.bool)
    expected[1, 0] = True
    expected[:, 1] = torch.tensor([False, True, True, False, True])  # of another class: own and rank are numbers
    assert torch.equal(made.isnan(), expected)
    nearest = ops.relative_distances(features, centroids, metric=metric, backend=backend)
    assert not nearest[:, 1, 0].isnan().any()
    features[1][2] = float("nan")
    assert ops.relative_distances(features, centroids, metric=metric, backend=backend)[2, 1].isnan().all()


@pytest.mark.parametrize("own", [True, False])
def test_an_image_has_the_same_bits_in_any_batch(own, metric, target):
    if target.backend == "reference":
        pytest.skip("PyTorch's sums depend on the shape")
    case = sized(LARGE, target)
    mine = own_of(case).to(target.device) if own else None
    features, centroids = case.features(target.device), case.against(target.device)
    options = {"metric": metric, "backend": target.backend}
    together = ops.relative_distances(features, centroids, mine, **options)
    for rows in ([0], [2, 1], [33, 2, 7], list(range(9, 20))):
        if max(rows) >= case.images:
            continue
        some = [f[rows].contiguous() for f in features]
        alone = ops.relative_distances(some, centroids, None if mine is None else mine[rows], **options)
        assert_same_bits(alone, together[rows])


def test_the_number_of_threads_changes_no_bit(metric):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(ops.pooled_relative_distances(LARGE.maps(), LARGE.against(), metric=metric, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(2, 150),
    st.sampled_from(METRICS),
    st.floats(-6, 6),
    st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_the_classes_changes_nothing(widths, images, count, metric, exponent, seed):
    case = LayerCase(images=images, layers=tuple((w, 1, 1) for w in widths), centroids=count)
    features, centroids = [f * 10**exponent for f in case.features()], case.against()
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=draw)
    own = torch.randint(0, count, (images,), generator=draw)
    made = ops.relative_distances(features, centroids, own, metric=metric)
    again = ops.relative_distances(features, [c[order] for c in centroids], order.argsort()[own], metric=metric)
    assert_same_bits(again[..., :4], made[..., :4])
    size = made[..., 0].double() * 2 + made[..., 4].abs()
    assert bool(((again[..., 4] - made[..., 4]).abs().double() <= 2**-23 * made[..., 4].abs() + 1e-14 * size).all())
    assert bool((made[..., 2:4] >= 0).all())
    assert bool((made[..., 2:4] <= 1).all())
    nearest = ops.relative_distances(features, centroids, metric=metric)
    assert not nearest[:, -1, 3].any()
    assert bool((nearest[:, -1, 2] <= 0.5).all())


@pytest.mark.parametrize("count", [10_000, 100_000])
def test_the_mean_of_many_distances_keeps_its_digits(count):
    draw = torch.Generator().manual_seed(count)
    features = [torch.randn(2, 3, generator=draw)]
    centroids = [torch.randn(count, 3, generator=draw) * torch.logspace(-6, 6, count)[:, None]]
    own = torch.tensor([3, count - 1])
    distances = ops.centroid_distances(features, centroids, backend="cpu")
    assert_numbers(ops.relative_distances(features, centroids, own, backend="cpu"), distances, own)


_MEMORY = """
import resource, sys, torch
from fastadv import ops
torch.manual_seed(0)
features, centroids = [torch.randn(64, 8)] * 4, [torch.randn(200_000, 8)] * 4
ops.relative_distances([f[:1] for f in features], [c[:100] for c in centroids], backend="cpu")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = ops.relative_distances(features, centroids, metric=sys.argv[1], backend="cpu")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_distances(metric):
    # (N, L, K) would be 195 MiB. In a process of its own, whose peak nothing else has raised.
    done = subprocess.run([sys.executable, "-c", _MEMORY, metric], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 24 << 20


#: Below it a ratio of two distances has a derivative that float32 distances do not know.
SMALL = 1e-3


def exact(features, centroids, metric, own):
    """The five numbers of float64 distances, differentiable."""
    made = []
    for f, c in zip(features, centroids, strict=True):
        f, c = f[:, None], c.double()[None]
        if metric == "l2":
            d = (f - c).square().sum(-1).sqrt()
        else:
            d = 0.5 * (f / f.norm(dim=-1, keepdim=True) - c / c.norm(dim=-1, keepdim=True)).square().sum(-1)
        mine = d.gather(1, own[:, None])
        others = torch.ones_like(d, dtype=torch.bool).scatter(1, own[:, None], False)
        other = d[others].view(len(d), d.shape[1] - 1)
        least, a = other.amin(1), mine[:, 0]
        ratio = torch.where(a + least > SMALL, a / (a + least).clamp(min=SMALL), 0.0)
        made.append(torch.stack([a, least, ratio, torch.zeros_like(a), a - other.mean(1)], 1))
    return torch.stack(made, 1)


@pytest.mark.parametrize(("case", "own"), BOTH)
def test_derivatives_against_float64(case, own, metric, target):
    case = sized(case, target)
    features = [value.requires_grad_(True) for value in case.features(target.device)]
    centroids = case.against(target.device)
    mine = own_of(case).to(target.device) if own else None
    made = ops.relative_distances(features, centroids, mine, metric=metric, backend=target.backend)
    if mine is None:
        last = ops.centroid_distances(features[-1:], centroids[-1:], metric=metric, backend=target.backend)
        mine = last[:, 0].detach().argmin(1)
    wide = [value.detach().cpu().double().requires_grad_(True) for value in features]
    right = exact(wide, [c.cpu() for c in centroids], metric, mine.cpu())
    weight = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
    weight[..., 2] *= right[..., 0] + right[..., 1] > SMALL
    expected = torch.autograd.grad((right * weight.double()).sum(), wide)
    actual = torch.autograd.grad((made * weight.to(target.device)).sum(), features)
    for a, e, f in zip(actual, expected, wide, strict=True):
        assert a.dtype == torch.float32
        slack = 1e-6 if metric == "l2" else 1e-6 / f.detach().norm(dim=1, keepdim=True)
        # a ratio divides by both distances, which a cosine makes small
        assert bool(((a.cpu().double() - e).abs() <= 2e-5 * e.abs() + 20 * slack).all())


def test_derivatives_in_blocks_of_classes(metric, backend, monkeypatch):
    found = []
    case = replace(LARGE, images=4)
    for elements in (1 << 24, 4 * 2 * 30):
        monkeypatch.setattr(sys.modules["fastadv.ops.relative_distances"], "_ELEMENTS", elements)
        features = [value.requires_grad_(True) for value in case.features()]
        made = ops.relative_distances(features, case.against(), metric=metric, backend=backend)
        weight = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
        found.append(torch.autograd.grad((made * weight).sum(), features))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_derivative_where_distances_are_zero(metric, backend):
    x = torch.randn(2, 9, generator=torch.Generator().manual_seed(2))
    f = x.clone().requires_grad_(True)
    made = ops.relative_distances([f], [torch.cat([x, x])], torch.tensor([0, 1]), metric=metric, backend=backend)
    assert made[:, 0, :4].tolist() == [[0.0, 0.0, 0.5, 0.0]] * 2
    made[..., :4].sum().backward()
    assert not f.grad.any()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_derivatives_of_maps_are_those_of_the_two_operations(dtype, layout, metric, backend):
    case = LayerCase(images=2, layers=CASE.layers, centroids=4, dtype=dtype, layout=layout)
    weight, found = torch.randn(2, 2, 5), []
    for fused in (True, False):
        maps = [value.requires_grad_(True) for value in case.maps()]
        if fused:
            made = ops.pooled_relative_distances(maps, case.against(), metric=metric, backend=backend)
        else:
            means = ops.average_pool(maps, backend=backend)
            made = ops.relative_distances(means, case.against(), metric=metric, backend=backend)
        (made * weight).sum().backward()
        found.append([value.grad for value in maps])
    for a, b, value in zip(*found, maps, strict=True):
        assert_same_bits(a, b)
        assert a.stride() == value.stride()


def test_there_is_no_second_derivative(metric, backend):
    f = [value.requires_grad_(True) for value in CASE.features()]
    made = ops.relative_distances(f, CASE.against(), metric=metric, backend=backend)
    (first, *_) = torch.autograd.grad(made.sum(), f, create_graph=True)
    with pytest.raises(NotImplementedError, match="centroid_distances_backward has no derivative"):
        first.sum().backward()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 1e37])
def test_squares_that_float32_does_not_hold(scale, metric, target):
    draw = torch.Generator().manual_seed(4)
    case = (torch.rand(n, 130, generator=draw) * s for n, s in ((9, scale), (70, scale), (3, 1.0)))
    f, c, plain = (value.to(target.device) for value in case)
    centroids = [torch.cat([c, plain])]
    own = torch.arange(9) * 8
    if target.interpreted:  # which takes one image at a time
        f, own = f[::4], own[::4]
    options = {"metric": metric, "backend": target.backend}
    distances = ops.centroid_distances([f], centroids, **options)
    assert_numbers(ops.relative_distances([f], centroids, own.to(target.device), **options), distances, own)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["reference", "cuda", "triton"])
def test_a_class_that_there_is_not_on_a_gpu_is_no_number(backend):
    features, centroids = CASE.features("cuda"), CASE.against("cuda")
    made = ops.relative_distances(features, centroids, torch.tensor([6, 0, -1]).cuda(), backend=backend)
    assert made[:, :, 0].isnan().any(1).tolist() == [True, False, True]
