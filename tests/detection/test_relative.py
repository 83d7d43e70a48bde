"""The reading `relative`: its five columns in float64, other classes at run time, claimed classes, files and guards."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from watched import relative_of

from fastadv.detection import (
    DetectionFileError,
    FitConfig,
    LayerTap,
    Representatives,
    Trajectory,
    centroids,
    enrol,
    load_detector,
    medoids,
)
from fastadv.detection.guard import Guard
from fastadv.testing.tolerances import assert_same_bits

METRICS = ["l2", "cosine", "l2+cosine"]


def closed_form(values, vectors, metric, own=None):
    """The five columns in float64, from the formulas; of L2, and behind them of the cosine, where both are read."""
    if metric == "l2+cosine":
        return torch.cat([closed_form(values, vectors, each, own) for each in ("l2", "cosine")], 2)
    distances = []
    for value, vector in zip(values, vectors, strict=True):
        f, c = value.detach().double(), vector.double()
        if metric == "cosine":
            distances.append(1 - torch.nn.functional.cosine_similarity(f[:, None], c[None], dim=2))
        else:
            distances.append((f[:, None] - c[None]).norm(dim=2))
    rows = []
    for n in range(len(values[0])):
        o = int(distances[-1][n].argmin()) if own is None else int(own[n])
        for d in (layer[n] for layer in distances):
            others = torch.cat([d[:o], d[o + 1 :]])
            nearest, mean = float(others.min()), float(others.mean())
            mine = float(d[o])
            ratio = mine / (mine + nearest) if mine + nearest else 0.5
            rank = int((others < mine).sum()) / len(others)
            rows.append([mine, nearest, ratio, rank, mine - mean])
    return torch.tensor(rows, dtype=torch.float64).reshape(len(values[0]), len(vectors), 5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("own", [None, [3, 0, 1, 1, 2, 0, 3, 2, 1]])
def test_the_columns_in_float64(representatives, labelled, metric, own):
    values, _ = labelled(9, seed=4)
    claimed = None if own is None else torch.tensor(own)
    trajectory = Trajectory(representatives=representatives, metric=metric, reading="relative")
    made = trajectory(values, claimed)
    assert made.shape == (9, *trajectory.shape) == (9, 3, 10 if metric == "l2+cosine" else 5)
    assert made.dtype == torch.float32
    torch.testing.assert_close(
        made.double(), closed_form(values, representatives.vectors, metric, claimed), rtol=1e-5, atol=1e-6
    )


def test_equally_near_classes():
    """The first of two equal classes is the own one; the ratio of two distances of 0 is 1/2."""
    vectors = torch.tensor([[9.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    made = Representatives(
        kind="centroid",
        layers=("a",),
        classes=("x", "y", "z"),
        vectors=(vectors,),
        counts=torch.ones(3, dtype=torch.int64),
        model="m",
    )
    found = Trajectory(representatives=made, reading="relative")([torch.tensor([[1.0, 0.0], [2.0, 0.0]])])
    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, 0.0, 0.5, 0.0, -4.0]))
    torch.testing.assert_close(found[1, 0], torch.tensor([1.0, 1.0, 0.5, 0.0, -3.0]))


@pytest.mark.parametrize("metric", METRICS)
def test_maps_give_what_pooled_values_give(tiny, faces, representatives, metric):
    x = faces(6)
    with torch.no_grad():
        pooled = LayerTap(model=tiny)(x).values
        maps = LayerTap(model=tiny, keep_maps=True)(x).values
    trajectory = Trajectory(representatives=representatives, metric=metric, reading="relative")
    for own in (None, torch.tensor([0, 1, 2, 3, 1, 0])):
        torch.testing.assert_close(trajectory(maps, own), trajectory(pooled, own))


def test_the_order_of_the_classes_does_not_matter(representatives, labelled):
    values, _ = labelled(9, seed=4)
    detector = relative_of(representatives, "lstm")
    order = torch.tensor([2, 0, 3, 1])
    turned = replace(
        representatives,
        classes=tuple(representatives.classes[k] for k in order),
        vectors=tuple(v[order] for v in representatives.vectors),
        counts=representatives.counts[order],
    )
    other, own = detector.with_representatives(turned), torch.tensor([3, 0, 1, 1, 2, 0, 3, 2, 1])
    torch.testing.assert_close(other.score(values), detector.score(values), rtol=1e-6, atol=1e-6)
    place = order.argsort()
    torch.testing.assert_close(other.score(values, place[own]), detector.score(values, own), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "mlp", "lstm"])
@pytest.mark.parametrize("count", [2, 3, 11])
def test_any_number_of_classes_at_run_time(representatives, labelled, kind, count):
    values, _ = labelled(9, seed=4)
    names = tuple(f"p{k}" for k in range(count))
    batch = ([v.repeat(4, 1)[: 2 * count] for v in labelled(9, seed=7)[0]], torch.arange(2 * count) % count)
    others = centroids([batch], layers=representatives.layers, classes=names, model="tiny")
    detector = relative_of(representatives, kind).with_representatives(others)
    path = closed_form(values, others.vectors, "l2")
    expected = copy.deepcopy(detector.network).double()(path)
    torch.testing.assert_close(detector.score(values).double(), expected, rtol=1e-5, atol=1e-5)


def test_joined_classes(representatives, labelled):
    values, labels = labelled(24, seed=9)
    more = centroids(
        [(values, labels)], layers=representatives.layers, classes=("eve", "bob", "flo", "gil"), model="tiny"
    )
    made = representatives.joined(more)
    assert made.classes == ("ada", "bob", "cyd", "dan", "eve", "flo", "gil")
    assert made.counts.tolist() == [15, 6, 15, 15, 6, 6, 6]
    for vectors, own, other in zip(made.vectors, representatives.vectors, more.vectors, strict=True):
        assert_same_bits(vectors, torch.stack([own[0], other[1], own[2], own[3], other[0], other[2], other[3]]))
    assert representatives.joined().classes == representatives.classes


def test_members_of_joined_medoids(labelled):
    """They are counted as if one stream had come after the other."""
    names = {"layers": ("conv", "block", "dense"), "model": "tiny"}
    one = medoids([labelled(20)], classes=tuple("abcd"), **names)
    two = medoids([labelled(12, seed=1)], classes=tuple("efgh"), **names)
    values = [torch.cat([a, b]) for a, b in zip(labelled(20)[0], labelled(12, seed=1)[0], strict=True)]
    whole = medoids([(values, torch.cat([labelled(20)[1], labelled(12)[1] + 4]))], classes=tuple("abcdefgh"), **names)
    made = one.joined(two)
    assert made.members.tolist() == whole.members.tolist()
    for a, b in zip(made.vectors, whole.vectors, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("kind", ["linear", "mlp", "lstm"])
def test_through_a_file(representatives, labelled, tmp_path, kind):
    detector = relative_of(representatives, kind, "cosine")
    detector.save(tmp_path / "d.safetensors")
    read = load_detector(tmp_path / "d.safetensors")
    assert read.trajectory.reading == "relative"
    values, own = labelled(7, seed=3)[0], torch.tensor([0, 1, 2, 3, 3, 0, 1])
    assert_same_bits(read.score(values), detector.score(values))
    assert_same_bits(read.score(values, own), detector.score(values, own))


def rewritten(path, change):
    """The file with another description."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    about = json.loads(metadata["about"])
    change(about)
    save_file(tensors, path, {**metadata, "about": json.dumps(about)})


def test_a_file_of_an_earlier_version_is_raw(guard, labelled, tmp_path):
    path = tmp_path / "d.safetensors"
    guard.detector.save(path)
    rewritten(path, lambda about: about.pop("reading"))
    read = load_detector(path)
    assert read.trajectory.reading == "raw"
    assert_same_bits(read.score(labelled(7)[0]), guard.detector.score(labelled(7)[0]))


def test_files_that_cannot_be(representatives, tmp_path):
    path = tmp_path / "d.safetensors"
    relative_of(representatives).save(path)
    rewritten(path, lambda about: about.update(reading="other"))
    with pytest.raises(DetectionFileError, match="reading: expected one of raw, relative, got 'other'"):
        load_detector(path)
    rewritten(path, lambda about: about.update(reading="raw"))
    with pytest.raises(DetectionFileError, match=r"'network\.mean': expected torch.float32 \(3, 4\), got .*\(3, 5\)"):
        load_detector(path)


@pytest.mark.parametrize("count", [1, 5, 32])
@pytest.mark.parametrize(("kind", "metric"), [("mlp", "l2"), ("lstm", "cosine"), ("linear", "l2")])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_guard_with_and_without_claims(tiny, faces, representatives, kind, metric, count, backend):
    detector = relative_of(representatives, kind, metric, backend=backend)
    guard, x = Guard(model=tiny, detector=detector, threshold=0.0), faces(count)
    names = [("ada", None, "dan", "bob")[i % 4] for i in range(count)]
    own = torch.tensor([(0, 0, 3, 1)[i % 4] for i in range(count)])
    with torch.no_grad():
        values = LayerTap(model=tiny)(x).values
        nearest, claimed = detector.score(values), detector.score(values, own)
        torch.testing.assert_close(guard(x).scores, nearest, rtol=1e-5, atol=1e-5)
        expected = torch.where(torch.arange(count) % 4 == 1, nearest, claimed)
        torch.testing.assert_close(guard(x, names).scores, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(guard(x, ["dan"] * count).scores, detector.score(values, own * 0 + 3))
        torch.testing.assert_close(guard(x, tuple(names)).embeddings, tiny(x), rtol=1e-5, atol=1e-6)
    assert_same_bits(guard(x, [None] * count).scores, guard(x).scores)
    if count > 4:
        assert not torch.equal(guard(x, names).scores, guard(x).scores)


def test_a_claim_of_a_neighbour_changes_no_bit(tiny, faces, representatives):
    guard = Guard(model=tiny, detector=relative_of(representatives, "lstm"), threshold=0.0)
    x, others = faces(6), faces(6, 1)
    others[-1] = x[0]
    one, other = guard(x, ["cyd", "ada", None, "bob", "dan", "cyd"]), guard(others, [None, *["ada"] * 4, "cyd"])
    assert_same_bits(one.scores[0], other.scores[-1])
    batches = [(faces(1 + i % 9, i), ["ada", None, "bob", "cyd", "dan", None, "ada", "bob", "cyd"]) for i in range(24)]
    alone = [guard(x, names[: len(x)]).scores for x, names in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda given: guard(given[0], given[1][: len(given[0])]).scores, batches))
    for a, b in zip(alone, together, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("kind", ["centroid", "medoid"])
def test_a_gallery_without_a_class_head(tiny, faces, labelled, kind):
    build = medoids if kind == "medoid" else centroids
    own = build([labelled(40)], layers=tiny.layers, classes=tuple("abcd"), model="tiny")
    people = {"eve": faces(1, 11), "a": faces(40, 12), "flo": faces(3, 13)}
    made = enrol(relative_of(own), tiny, people.items())
    found = made.trajectory.representatives
    assert found.classes == ("a", "b", "c", "d", "eve", "flo")
    assert found.counts.tolist() == [40, 10, 10, 10, 1, 3]
    with torch.no_grad():
        tapped = {name: LayerTap(model=tiny)(images).values for name, images in people.items()}
    for layer, vectors in enumerate(found.vectors):
        torch.testing.assert_close(vectors[4], tapped["eve"][layer][0])
        if kind == "centroid":
            torch.testing.assert_close(vectors[5], tapped["flo"][layer].mean(0))
            torch.testing.assert_close(vectors[0], tapped["a"][layer].mean(0))
        else:
            assert bool(((vectors[5] - tapped["flo"][layer]).abs().amax(1) < 1e-6).any())
        assert_same_bits(vectors[1:4], own.vectors[layer][1:])
    guard = Guard(model=tiny, detector=made, threshold=0.0)
    x = faces(2, 3)
    with torch.no_grad():
        expected = made.score(LayerTap(model=tiny)(x).values, torch.tensor([4, 5]))
    torch.testing.assert_close(guard(x, ["eve", "flo"]).scores, expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_reaches_the_pixels(tiny, faces, representatives):
    """In double differences, where no rank changes."""
    tap, detector = LayerTap(model=tiny), relative_of(representatives)
    for own in (None, torch.tensor([2])):
        y = faces(1, 5).requires_grad_(True)
        (gradient,) = torch.autograd.grad(detector.score(tap(y).values, own).sum(), y)
        step = 1e-3 * gradient / gradient.norm()
        with torch.no_grad():
            rise = detector.score(tap(y + step).values, own) - detector.score(tap(y - step).values, own)
        assert float(rise) == pytest.approx(2e-3 * float(gradient.norm()), rel=0.05)


def test_mistakes(tiny, faces, representatives, labelled, guard):
    values, _ = labelled(3)
    raw, relative = guard.detector, relative_of(representatives)
    claims = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="reading: expected one of raw, relative, got 'absolute'"):
        Trajectory(representatives=representatives, reading="absolute")
    with pytest.raises(ValueError, match="own: expected None with the reading 'raw', which knows no own class, got"):
        raw.score(values, claims)
    with pytest.raises(ValueError, match="reading: expected 'relative' for other classes, got 'raw'"):
        raw.with_representatives(representatives)
    with pytest.raises(ValueError, match="reading: expected 'relative' for other classes, got 'raw'"):
        enrol(raw, tiny, {"eve": faces(1)}.items())
    with pytest.raises(ValueError, match=r"own: expected .*\(3,\)"):
        relative.score(values, claims[:2])
    with pytest.raises(ValueError, match=r"own: expected classes in \[0, 4\), got 4"):
        relative.score(values, claims + 2)
    alone = replace(
        representatives,
        classes=("ada",),
        vectors=tuple(v[:1] for v in representatives.vectors),
        counts=representatives.counts[:1],
    )
    with pytest.raises(
        ValueError, match="representatives: expected two classes or more with the reading 'relative', got one"
    ):
        relative.with_representatives(alone)
    for change, message in (
        ({"model": "huge"}, "representatives: expected the model 'tiny', got 'huge'"),
        ({"layers": ("conv", "block", "gone")}, "representatives: expected the layers .*, got .*gone"),
        (
            {"vectors": (*representatives.vectors[:2], torch.zeros(4, 8))},
            "representatives: expected 3 channels of layer 'dense', got 8",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            relative.with_representatives(replace(representatives, **change))
    with pytest.raises(ValueError, match="others: expected the kind 'centroid', got 'medoid'"):
        representatives.joined(medoids([labelled(9)], layers=tiny.layers, classes=tuple("abcd"), model="tiny"))
    for images, message in (
        (torch.full((1, 3, 16, 16), 2.0), "eve: expected values in"),
        (faces(2)[:0], r"eve: expected shape \(N, 3, H, W\) with N >= 1, got \(0, 3, 16, 16\)"),
    ):
        with pytest.raises(ValueError, match=message):
            enrol(relative, tiny, {"eve": images}.items())


def test_mistakes_of_claims(tiny, faces, representatives, guard):
    relative = Guard(model=tiny, detector=relative_of(representatives), threshold=0.0)
    for claimed, error, message in (
        ("ada", TypeError, "claimed: expected a sequence of names or None, got 'ada'"),
        (["ada"], ValueError, "claimed: expected 2 names, one for each image, got 1"),
        (["ada", "zoe"], ValueError, "claimed: expected one of the 4 classes of the detector, got 'zoe'"),
        (["ada", ["bob"]], ValueError, "claimed: expected one of the 4 classes of the detector, got"),
    ):
        with pytest.raises(error, match=message):
            relative(faces(2), claimed)
    with pytest.raises(ValueError, match="claimed: expected none for a detector of the reading 'raw', got 'ada'"):
        guard(faces(2), ["ada", None])
    assert_same_bits(guard(faces(2), [None, None]).scores, guard(faces(2)).scores)


def test_the_standardisation_that_a_reading_takes():
    assert FitConfig().standard is None
    assert FitConfig().for_reading("raw").standard == "layer"
    assert FitConfig().for_reading("relative").standard == "entry"
    assert FitConfig(standard="none").for_reading("relative").standard == "none"
    with pytest.raises(ValueError, match="standard: expected one of entry, layer, none, got 'x'"):
        FitConfig(standard="x")


@pytest.mark.gpu
def test_a_warm_guard_records_no_further_graph(tiny, faces, representatives, monkeypatch):
    model = copy.deepcopy(tiny).to("cuda")
    guard = Guard(model=model, detector=relative_of(representatives), threshold=0.0, sizes=(1, 4))
    guard.warm_up()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", None)
    for claimed in (None, ["ada", None, "dan"]):
        assert len(guard(faces(3), claimed)) == 3
