"""Scores in one compiled call: the network in float64, the same bits everywhere, and every wrong argument."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fastadv import _native, backends, ops
from fastadv.testing.cases import arrange
from fastadv.testing.tolerances import assert_same_bits

KINDS = ("linear", "mlp", "lstm")
READINGS = ("raw", "relative")
METRICS = ("l2", "cosine", "l2+cosine")
SHAPES = ((5, 4, 7), (19, 3, 3), (130, 1, 1))  # channels, height and width of the layers


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(kind, *, classes=11, hidden=20, metric="l2", biases=True, reading="raw"):
    layers, width = len(SHAPES), (5 if reading == "relative" else classes) * len(metric.split("+"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = {
            "linear": lambda: None,
            "mlp": lambda: nn.Linear(layers * width, hidden, bias=biases),
            "lstm": lambda: nn.LSTM(width, hidden, batch_first=True),
        }[kind]()
        last = nn.Linear(layers * width if kind == "linear" else hidden, 1, bias=biases)
    return {
        "centroids": [numbers(classes, shape[0], seed=i) for i, shape in enumerate(SHAPES)],
        "metric": metric,
        "mean": numbers(layers, width, seed=5),
        "scale": numbers(layers, width, seed=6).abs() + 0.5,
        "hidden": first,
        "last": last,
        "reading": reading,
    }


def batch(count, dtype=torch.float32, layout="contiguous"):
    maps = [arrange(numbers(count, *shape, seed=10 + i).to(dtype), layout) for i, shape in enumerate(SHAPES)]
    return maps, arrange(numbers(count, 3, 6, 6, seed=9).sigmoid(), layout)


def expected(maps, *, centroids, metric, mean, scale, hidden, last, reading, own=None):
    """The definition in float64, gate by gate."""
    maps, centroids = [v.double().mean((2, 3)) for v in maps], [c.double() for c in centroids]
    read = [distances(maps, centroids, each) for each in metric.split("+")]
    if reading == "relative":
        read = [relative(x, x[:, -1].argmin(1) if own is None else own) for x in read]
    x = (torch.cat(read, 2) - mean.double()) / scale.double()
    if isinstance(hidden, nn.LSTM):
        w = {name: value.detach().double() for name, value in hidden.named_parameters()}
        h = c = torch.zeros(len(x), hidden.hidden_size, dtype=torch.float64)
        for step in x.unbind(1):
            gates = step @ w["weight_ih_l0"].T + w["bias_ih_l0"] + h @ w["weight_hh_l0"].T + w["bias_hh_l0"]
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        x = h
    else:
        x = x.flatten(1)
        if hidden is not None:
            x = linear(hidden, x).clamp(min=0)
    return linear(last, x)[:, 0]


def distances(values, centroids, metric):
    if metric == "cosine":
        values, centroids = ([v / v.norm(dim=1, keepdim=True) for v in each] for each in (values, centroids))
        return torch.stack([1 - v @ c.T for v, c in zip(values, centroids, strict=True)], 1)
    return torch.stack([(v[:, None] - c).norm(dim=2) for v, c in zip(values, centroids, strict=True)], 1)


def relative(distances, own):
    at = own[:, None, None].expand(-1, distances.shape[1], 1)
    mine, other = distances.gather(2, at), distances.scatter(2, at, math.inf)
    least, others, a = other.amin(2), distances.shape[2] - 1, mine[..., 0]
    rank = (other < mine).sum(2) / others
    return torch.stack([a, least, a / (a + least), rank, a - distances.scatter(2, at, 0).sum(2) / others], 2)


def linear(layer, x):
    made = x @ layer.weight.detach().double().T
    return made if layer.bias is None else made + layer.bias.detach().double()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_definition_in_float64(kind, metric, count, reading):
    given = parameters(kind, metric=metric, reading=reading)
    maps, images = batch(count)
    found = ops.PreparedScore(**given)(maps, images)
    assert (found.dtype, found.shape) == (torch.float32, (count,))
    torch.testing.assert_close(found.double(), expected(maps, **given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("classes", "hidden", "reading"),
    [(1, 1, "raw"), (600, 16, "raw"), (33, 100, "raw"), (2, 1, "relative"), (20_001, 100, "relative")],
)
def test_sizes(kind, classes, hidden, reading):
    """Sums longer than a block of float32, units that fill registers or do not, parts of more than 64 classes."""
    given = parameters(kind, classes=classes, hidden=hidden, biases=kind == "lstm", reading=reading)
    maps, images = batch(6)
    found = ops.PreparedScore(**given)(maps, images)
    torch.testing.assert_close(found.double(), expected(maps, **given), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_relative_to_a_given_class(kind, metric):
    given = parameters(kind, metric=metric, reading="relative", classes=150)
    score = ops.PreparedScore(**given)
    for count in (1, 5):  # an odd number: what lies behind the scores is not aligned by itself
        maps, images = batch(count)
        own = torch.arange(count) * 31
        found = score(maps, images, own)
        torch.testing.assert_close(found.double(), expected(maps, **given, own=own), rtol=1e-5, atol=1e-5)
        assert_same_bits(score(maps, images, torch.stack([own, own], 1)[:, 1]), found)
        by = (ops.pooled_centroid_distances(maps, given["centroids"], metric=each) for each in metric.split("+"))
        nearest = torch.stack([found[:, -1].argmin(1) for found in by])
        assert_same_bits(score(maps, images), score(maps, images, nearest if len(nearest) > 1 else nearest[0]))


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


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_memory_orders(dtype, layout):
    given = parameters("mlp")
    maps, images = batch(3, dtype, layout)
    found = ops.PreparedScore(**given)(maps, images)
    torch.testing.assert_close(found.double(), expected(maps, **given), rtol=1e-5, atol=1e-5)


def test_types_may_be_mixed():
    given = parameters("lstm")
    maps, images = batch(3)
    maps[1] = maps[1].bfloat16()
    score = ops.PreparedScore(**given)
    for again in range(2):
        found = score(maps, images if again else images.half())
        torch.testing.assert_close(found.double(), expected(maps, **given), rtol=1e-5, atol=1e-5)


def test_numbers_far_out():
    """Gates that are open or shut altogether: no overflow on the way."""
    given = parameters("lstm") | {"scale": torch.full((3, 11), 1e-6)}
    maps, images = batch(4)
    found = ops.PreparedScore(**given)(maps, images)
    torch.testing.assert_close(found.double(), expected(maps, **given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_score_does_not_depend_on_the_batch_the_threads_or_the_instruction_set(kind, reading, monkeypatch):
    """With distances that are exact on all of them: one channel, so no sum."""
    given = parameters(kind, classes=150, hidden=100, reading=reading)
    given["centroids"] = [c[:, :1].contiguous() for c in given["centroids"]]
    maps, images = batch(70)
    maps = [v[:, :1, :1, :1].contiguous() for v in maps]
    whole = ops.PreparedScore(**given)(maps, images)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            for isa in _native.cpu_isas():
                monkeypatch.setenv("FASTADV_CPU_ISA", isa)
                backends.cpu_isa.cache_clear()
                torch.set_num_threads(threads)
                score = ops.PreparedScore(**given)
                assert_same_bits(score(maps, images), whole)
                for n in (1, 3):
                    assert_same_bits(score([v[2 : 2 + n] for v in maps], images[2 : 2 + n]), whole[2 : 2 + n])
    finally:
        torch.set_num_threads(before)
        monkeypatch.undo()
        backends.cpu_isa.cache_clear()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_is_not_finite_has_no_score(kind, bad):
    score = ops.PreparedScore(**parameters(kind))
    maps, images = batch(5)
    calm = score(maps, images)
    images[3, 2, 5, 5] = bad
    found = score(maps, images)
    assert math.isnan(found[3])
    rest = [0, 1, 2, 4]
    assert_same_bits(found[rest], calm[rest])


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_map_that_is_not_a_number_gives_no_number(kind, reading):
    score = ops.PreparedScore(**parameters(kind, reading=reading))
    for layer in (0, -1):
        maps, images = batch(5)
        maps[layer][1, 0, 0, 0] = math.nan
        assert score(maps, images).isnan().tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_flags_are_scores_at_or_above_the_threshold(kind):
    score = ops.PreparedScore(**parameters(kind))
    maps, images = batch(7)
    images[3, 1, 2, 2] = math.nan
    plain = score(maps, images)
    middle = float(plain.nanmedian())  # one of the scores, and so flagged itself
    for threshold in (middle, middle + 1e-12, math.inf, -math.inf):
        found, flags = score.flagged(maps, images, threshold=threshold)
        assert_same_bits(found, plain)
        assert flags.dtype is torch.bool
        assert torch.equal(flags, ~(plain < threshold))
    assert score.flagged(*batch(0), threshold=0.0)[1].shape == (0,)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "columns"])
def test_without_images_they_are_finite(layout):
    score = ops.PreparedScore(**parameters("lstm", reading="relative"))
    for count in (1, 6):
        maps, images = batch(count, layout=layout)
        assert_same_bits(score(maps), score(maps, images))
        assert torch.equal(
            score.flagged(maps, own=torch.ones(count, dtype=torch.int64), threshold=0.0)[0],
            score(maps, images, torch.ones(count, dtype=torch.int64)),
        )
    with pytest.raises(ValueError, match=r"maps\[0\]: expected 6 images, like maps\[2\], got 5"):
        score([maps[0][:5], *maps[1:]])
    with pytest.raises(ValueError, match="maps: expected 3 layers, like centroids, got 1"):
        score.flagged(maps[:1], threshold=0.0)


def test_a_default_type_or_device_of_the_caller_changes_nothing():
    maps, images = batch(3)
    expected = ops.PreparedScore(**parameters("mlp")).flagged(maps, images, threshold=0.0)
    for mode in ("type", "device"):
        score = ops.PreparedScore(**parameters("mlp"))
        try:
            torch.set_default_dtype(torch.float64 if mode == "type" else torch.float32)
            torch.set_default_device("meta" if mode == "device" else "cpu")
            found = score.flagged(maps, images, threshold=0.0)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
        assert_same_bits(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_images_are_no_map_however_they_are_shaped():
    given = parameters("linear")
    score = ops.PreparedScore(**given)
    maps, _ = batch(2)
    score(maps)
    with pytest.raises(ValueError, match="maps: expected 3 layers, like centroids, got 2"):
        score(maps[:2], maps[2])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "columns"])
def test_maps_that_were_pooled_before(layout):
    score = ops.PreparedScore(**parameters("mlp"))
    maps, images = batch(5, torch.bfloat16, layout)
    (means,) = ops.average_pool([maps[0]], backend="cpu")
    pooled = score.pool(maps[0])
    assert_same_bits(pooled, means[:, :, None, None])
    assert_same_bits(score([pooled, *maps[1:]], images), score(maps, images))
    with pytest.raises(ValueError, match=r"value: expected shape \(N, C, H, W\) with C, H, W >= 1, got \(2, 3\)"):
        score.pool(torch.zeros(2, 3))


def test_no_images():
    maps, images = batch(0)
    assert ops.PreparedScore(**parameters("lstm"))(maps, images).shape == (0,)


def test_threads_do_not_meet():
    score = ops.PreparedScore(**parameters("lstm", reading="relative"))
    batches = [batch(1 + i % 7) for i in range(24)]
    alone = [score(*each) for each in batches]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(lambda each: score(*each), batches), strict=True):
            assert_same_bits(one, other)


def test_shapes_without_end_are_not_remembered():
    given = parameters("linear")
    score = ops.PreparedScore(**given)
    for n in range(1, 140):
        maps, images = batch(n)
        assert len(score(maps, images)) == n
    assert len(score._known) <= 64


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


def test_what_it_is_given_may_move_and_change():
    """As it does when it is sent to another process: its memory is then shared, and elsewhere."""
    given = parameters("mlp")
    maps, images = batch(3)
    prepared = ops.PreparedScore(**given)
    scores = prepared(maps, images)
    for value in (*given["centroids"], given["mean"], given["scale"], *given["hidden"].parameters()):
        value.data.share_memory_()
        value.data.fill_(torch.nan)
    given["last"].share_memory().weight.data.fill_(torch.nan)
    assert_same_bits(prepared(maps, images), scores)
