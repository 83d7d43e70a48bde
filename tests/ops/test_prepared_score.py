"""Scores in one compiled call: the network in float64, and the same bits everywhere."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from prepared_scores import KINDS, METRICS, READINGS, batch, parameters
from torch import nn

from fastadv import _native, backends, ops
from fastadv.testing.tolerances import assert_same_bits


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
