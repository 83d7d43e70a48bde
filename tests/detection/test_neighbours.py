"""The index of neighbours: exact, the same with every backend, ties by index, errors."""

import contextlib
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadv import ops
from fastadv.detection import Neighbours, neighbours
from fastadv.testing.tolerances import assert_same_bits

NO_FAISS = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
BACKENDS = ["brute", pytest.param("faiss", marks=NO_FAISS), pytest.param("faiss on CUDA", marks=NO_FAISS)]
STREAM = 77


class WithCuda:
    """FAISS as a build for CUDA has it, as far as it is used: an index of the CPU is under the name of one on a GPU."""

    def __init__(self, faiss, devices):
        calls = self.calls = []  # what is asked of FAISS, in order

        class GpuIndexFlatL2(faiss.IndexFlatL2):
            def __init__(self, resources, width, config):
                super().__init__(width)
                calls.append(("index", resources, width, config.device, config.use_cuvs))

            def add_c(self, *arguments):
                calls.append(("add", arguments[0]))
                super().add_c(*arguments)

            def search_c(self, count, queries, k, *found):
                assert k <= 2048  # as in faiss/gpu/impl/IndexUtils.cu
                calls.append(("search", count, k))
                super().search_c(count, queries, k, *found)

        class StandardGpuResources:
            def setPinnedMemory(self, size):  # noqa: N802
                calls.append(("pinned memory", size))

            def setDefaultStream(self, device, stream):  # noqa: N802
                calls.append(("stream", device, stream))

        self.GpuIndexFlatL2, self.StandardGpuResources = GpuIndexFlatL2, StandardGpuResources
        self.GpuIndexFlatConfig = lambda: SimpleNamespace(device=0, use_cuvs=True)
        self.cast_integer_to_cudastream_t = lambda address: ("stream", address)
        self.get_num_gpus = lambda: devices
        self.faiss = faiss

    def __getattr__(self, name):
        return getattr(self.faiss, name)


@contextlib.contextmanager
def faiss_on_cuda(devices=1):
    """Tensors of the CPU count as those of a CUDA device; yields what stands for FAISS."""
    stand_in = WithCuda(pytest.importorskip("faiss"), devices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "faiss", stand_in)
        patch.setattr(neighbours, "_Faiss", neighbours._FaissOnCuda)
        patch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
        neighbours._shared.cache_clear()
        yield stand_in
    neighbours._shared.cache_clear()


@pytest.fixture(params=BACKENDS)
def backend(request):
    with faiss_on_cuda() if request.param == "faiss on CUDA" else contextlib.nullcontext():
        yield request.param.split()[0]


def features(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def index(x, backend="brute"):
    return Neighbours(x, torch.arange(len(x)) % 7, backend=backend)


def everything(x, queries, k):
    """The k lowest (distance, row) of all rows."""
    distances = ops.centroid_distances([queries], [x])[:, 0]
    values, rows = distances.sort(dim=1, stable=True)
    return values[:, :k], rows[:, :k]


def assert_exact(found, x, queries, k):
    distances, rows = everything(x, queries, k)
    assert_same_bits(found.distances, distances.contiguous(), "distances")
    assert torch.equal(found.indices, rows)
    assert torch.equal(found.labels, rows % 7)


@pytest.mark.parametrize(("count", "width", "queries", "k"), [(1, 1, 1, 1), (20, 3, 0, 5), (300, 17, 40, 9)])
def test_small_indices(count, width, queries, k, backend):
    x, q = features(count, width), features(queries, width, seed=1)
    assert_exact(index(x, backend).search(q, k), x, q, k)


def test_an_index_of_many_blocks_and_many_queries(backend, monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", 64)
    monkeypatch.setattr(neighbours, "_QUERIES", 16)
    monkeypatch.setattr(neighbours, "_GATHERED", 4000)
    x, q = features(1000, 12), features(50, 12, seed=1)
    assert_exact(index(x, backend).search(q, 30), x, q, 30)


def test_all_of_the_index(backend):
    x, q = features(40, 6), features(3, 6, seed=1)
    assert_exact(index(x, backend).search(q, 40), x, q, 40)


def test_ties_go_to_the_lower_row(backend):
    x = features(5, 4).repeat(60, 1)  # each five rows, sixty times over: more than the margin holds
    q = features(5, 4)
    found = index(x, backend).search(q, 10)
    assert found.indices.tolist() == [list(range(i, 50, 5)) for i in range(5)]
    assert not found.distances.any()


def test_distances_that_a_matrix_product_cannot_tell_apart(backend):
    # |x|^2 is 10^8 times the squared distances, so the candidates are noise; only the bound finds that out.
    x = features(2000, 8) * 1e-3 + 30.0
    q = features(6, 8, seed=1) * 1e-3 + 30.0
    assert_exact(index(x, backend).search(q, 5), x, q, 5)


@pytest.mark.parametrize("scale", [1e19, 3e19])
def test_squares_that_overflow(backend, scale):
    # what a backend proposes then is of no use, and FAISS names no row at all for some places
    x = torch.cat([features(60, 8) * scale, features(1, 8)])
    q = torch.cat([features(2, 8, seed=1) * scale, x[-1:] + 1, x[3:4]])
    assert_exact(index(x, backend).search(q, 5), x, q, 5)


def rounded_products(addmm):
    """``torch.addmm`` as a CPU with AMX computes it where bfloat16 is allowed for products of float32."""

    def product(bias, a, b, **options):
        reduced = torch.backends.mkldnn.matmul.fp32_precision == "bf16" or torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", enabled=False):
            return addmm(bias, *((m.bfloat16().float() if reduced else m) for m in (a, b)), **options)

    return product


@pytest.mark.parametrize("mode", ["products", "autocast"])
def test_products_of_reduced_precision_change_nothing(mode, monkeypatch):
    monkeypatch.setattr(torch, "addmm", rounded_products(torch.addmm))
    q = torch.ones(1, 8)
    x = torch.ones(40, 8) + 2 / 128  # what bfloat16 holds exactly
    x[7] = 1 + 1 / 256  # the nearest, which it rounds to a distance of 0.25
    x[9, :3] = 1 + 1 / 128
    x[9, 3:] = 1
    held = index(x)
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        if mode == "products":
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        with torch.autocast("cpu", enabled=mode == "autocast"):
            found = held.search(q, 1)
            assert torch.backends.mkldnn.matmul.fp32_precision == ("bf16" if mode == "products" else before)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert found.indices.tolist() == [[7]]
    assert_exact(found, x, q, 1)


@pytest.mark.gpu
def test_products_in_tf32_change_nothing():
    q = torch.ones(1, 8, device="cuda")
    x = torch.ones(40, 8, device="cuda") + 2 / 1024
    x[7] = 1 + 1 / 2048  # TF32 has 10 bits behind the point
    x[9, :3] = 1 + 1 / 1024
    x[9, 3:] = 1
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        found = Neighbours(x, torch.arange(40, device="cuda")).search(q, 1)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert found.indices.tolist() == [[7]]


def test_distances_are_made_from_differences(backend):
    x = features(500, 40) + 50
    found = index(x, backend).search(x[100:103], 2)
    assert found.indices[:, 0].tolist() == [100, 101, 102]
    assert found.distances[:, 0].tolist() == [0.0] * 3
    expected = (x[found.indices[:, 1]].double() - x[100:103].double()).norm(dim=1)
    torch.testing.assert_close(found.distances[:, 1].double(), expected, rtol=1e-6, atol=0)


@NO_FAISS
@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 3), st.data())
@settings(max_examples=60, deadline=None)
def test_the_backends_agree(count, width, digits, data):
    # Rounded coordinates: many equal distances.
    x = (features(count, width, seed=count) * 10**digits).round() / 10**digits
    q = (features(4, width, seed=7) * 10**digits).round() / 10**digits
    k = data.draw(st.integers(1, count))
    found = [index(x, backend).search(q, k) for backend in ("brute", "faiss")]
    with faiss_on_cuda():
        found.append(index(x, "faiss").search(q, k))
    for one in found:
        assert_exact(one, x, q, k)


def test_the_scores_of_a_classifier():
    x = torch.cat([features(30, 5), features(30, 5, seed=2) + 8])
    held = Neighbours(x, torch.arange(60) // 30)
    found = held.search(torch.stack([x[3], x[40]]), 10)
    for weighting in ("uniform", "rank", "inverse_square"):
        right = ops.knn_score(found.distances, found.labels, torch.tensor([0, 1]), weighting=weighting)
        wrong = ops.knn_score(found.distances, found.labels, torch.tensor([1, 0]), weighting=weighting)
        assert right.tolist() == [1.0, 1.0]
        assert wrong.tolist() == [0.0, 0.0]
    assert len(held) == 60


def test_nothing_is_recorded_for_a_backward_pass():
    x = features(9, 3).requires_grad_(True)
    found = index(x).search(features(2, 3).requires_grad_(True), 3)
    assert not found.distances.requires_grad


GOOD = {"features": features(4, 3), "labels": torch.arange(4)}
META = {"device": "meta"}
MISTAKES = [
    ({"features": [[1.0]]}, TypeError, "features: expected a torch.Tensor, got list"),
    ({"features": GOOD["features"].double()}, TypeError, "features: expected dtype torch.float32, got torch.float64"),
    ({"features": torch.ones(4)}, ValueError, r"features: expected .*, got \(4,\)"),
    ({"features": torch.ones(4, 0)}, ValueError, r"features: expected shape \(any, any but 0\), got \(4, 0\)"),
    ({"features": torch.ones(0, 3)}, ValueError, r"features: expected shape \(M, D\) with M >= 1, got \(0, 3\)"),
    (
        {"features": torch.full((4, 3), float("nan"))},
        ValueError,
        "features: expected finite values, got NaN or infinity",
    ),
    ({"labels": torch.ones(4)}, TypeError, "labels: expected a torch.int64 tensor, got torch.float32"),
    ({"labels": [1, 2, 3, 4]}, TypeError, "labels: expected a torch.int64 tensor, got list"),
    ({"labels": torch.arange(5)}, ValueError, r"labels: expected shape \(4,\), got \(5,\)"),
    (
        {"labels": torch.ones(4, dtype=torch.int64, **META)},
        ValueError,
        "labels: expected cpu, the device of features, got meta",
    ),
    ({"backend": "annoy"}, ValueError, "backend: expected 'brute' or 'faiss', got 'annoy'"),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES, ids=lambda v: v[:30] if isinstance(v, str) else "")
def test_mistakes_of_the_index(change, error, message):
    with pytest.raises(error, match=message):
        Neighbours(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("queries", "k", "error", "message"),
    [
        (torch.ones(2, 3), 0, ValueError, r"k: expected an integer in \[1, 4\], the size of the index, got 0"),
        (torch.ones(2, 3), 5, ValueError, "k: expected .*, got 5"),
        (torch.ones(2, 4), 1, ValueError, r"queries: expected shape \(any, 3\), got \(2, 4\)"),
        (torch.ones(2, 3, dtype=torch.float16), 1, TypeError, "queries: expected .*, got torch.float16"),
        (torch.ones(2, 3, **META), 1, ValueError, "queries: expected cpu, the device of the features, got meta"),
        (torch.full((2, 3), float("inf")), 1, ValueError, "queries: expected finite values, got NaN or infinity"),
        (None, 1, TypeError, "queries: expected .*, got NoneType"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else "",
)
def test_mistakes_of_a_search(queries, k, error, message):
    with pytest.raises(error, match=message):
        Neighbours(**GOOD).search(queries, k)


def test_faiss_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError,
        match="backend: expected the package faiss for 'faiss', got no such package; pip install 'fastadv.faiss.'",
    ):
        Neighbours(**GOOD, backend="faiss")


def test_faiss_for_cuda_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(neighbours, "_Faiss", neighbours._FaissOnCuda)
    with pytest.raises(ImportError, match=r"backend: expected .*, got no such package; .*'fastadv\[faiss-gpu\]'"):
        Neighbours(**GOOD, backend="faiss")


@NO_FAISS
def test_faiss_without_cuda_for_features_on_a_device():
    message = (
        r"backend: expected a FAISS that uses cpu, got one that sees 0 CUDA devices; "
        r"pip install 'fastadv\[faiss-gpu\]' in place of faiss-cpu, or choose 'brute'"
    )
    with faiss_on_cuda(devices=0), pytest.raises(ImportError, match=message):
        Neighbours(**GOOD, backend="faiss")


def test_faiss_takes_features_on_a_cpu_or_cuda(monkeypatch):
    monkeypatch.setattr(neighbours, "_check", lambda *arguments: None)  # a tensor without memory has no finite values
    with pytest.raises(ValueError, match="features: expected a tensor on a CPU or CUDA .*, got one on meta"):
        Neighbours(torch.ones(4, 3, **META), torch.ones(4, dtype=torch.int64, **META), backend="faiss")


@NO_FAISS
def test_faiss_on_cuda_works_in_the_stream_of_pytorch_with_memory_that_indices_share():
    with faiss_on_cuda() as faiss:
        first, second = (index(features(count, 6), "faiss") for count in (90, 80))
        for held in (first, second):
            held.search(features(3, 6), 5)
    (_, resources, *_), stream = faiss.calls[1], ("stream", 0, ("stream", STREAM))
    assert faiss.calls == [
        ("pinned memory", 0),
        ("index", resources, 6, 0, False),
        stream,
        ("add", 90),
        ("index", resources, 6, 0, False),
        stream,
        ("add", 80),
        stream,
        ("search", 3, 21),
        stream,
        ("search", 3, 21),
    ]


@NO_FAISS
def test_more_neighbours_than_faiss_finds_on_a_gpu():
    x, q = features(2600, 6), features(3, 6, seed=1)
    with faiss_on_cuda() as faiss:
        held = index(x, "faiss")
        for k in (1821, 1822, 2500):
            assert_exact(held.search(q, k), x, q, k)
    assert [call for call in faiss.calls if call[0] == "search"] == [("search", 3, 2048)]


@pytest.mark.gpu
def test_on_a_device():
    x, q = features(3000, 33), features(20, 33, seed=1)
    found = index_on_device(x).search(q.cuda(), 12)
    expected = index(x).search(q, 12)
    assert torch.equal(found.indices.cpu(), expected.indices)
    torch.testing.assert_close(found.distances.cpu(), expected.distances)


def needs_faiss_on_a_gpu():
    faiss = pytest.importorskip("faiss")
    if not faiss.get_num_gpus():
        pytest.skip("this faiss uses no GPU")


@pytest.mark.gpu
@pytest.mark.parametrize("k", [1, 12, 2500])
def test_faiss_on_a_device(k):
    needs_faiss_on_a_gpu()
    x, q = features(3000, 33), features(300, 33, seed=1)
    expected = index_on_device(x).search(q.cuda(), k)
    assert_same(index_on_device(x, "faiss").search(q.cuda(), k), expected)
    held, stream = index_on_device(x, "faiss"), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # the queries are made there, just before
        found = held.search(q.cuda(non_blocking=True) * 2 / 2, k)
    stream.synchronize()
    assert_same(found, expected)


@pytest.mark.gpu
def test_faiss_in_threads_on_a_device():
    needs_faiss_on_a_gpu()
    x, q = features(3000, 33), features(300, 33, seed=1)
    held = [index_on_device(x, "faiss"), index_on_device(x, "faiss")]
    expected = index_on_device(x).search(q.cuda(), 12)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda i: held[i % 2].search(q.cuda(), 12), range(16)):
            assert_same(found, expected)


def assert_same(found, expected):
    assert_same_bits(found.distances, expected.distances, "distances")
    assert torch.equal(found.indices, expected.indices)


def index_on_device(x, backend="brute"):
    return Neighbours(x.cuda(), (torch.arange(len(x)) % 7).cuda(), backend=backend)
