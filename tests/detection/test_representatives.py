"""Centroids and medoids against brute force; files that are strict about what they hold."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.spatial.distance import cdist

from fastadv.detection import (
    CentroidSums,
    DetectionFileError,
    Representatives,
    centroids,
    load_representatives,
    medoids,
)
from fastadv.testing.tolerances import assert_same_bits

LAYERS, CLASSES = ("conv", "block", "dense"), ("ada", "bob", "cyd", "dan")
NAMES = {"layers": LAYERS, "classes": CLASSES, "model": "tiny"}


def cut(values, labels, sizes):
    """A batch as several, of the given sizes."""
    begin = 0
    for size in sizes:
        yield [v[begin : begin + size] for v in values], labels[begin : begin + size]
        begin += size


def test_centroids_are_the_means(labelled):
    values, labels = labelled(50)
    made = centroids(cut(values, labels, (7, 20, 23)), **NAMES)
    assert made.kind == "centroid"
    assert made.counts.tolist() == torch.bincount(labels).tolist()
    for value, vector in zip(values, made.vectors, strict=True):
        expected = torch.stack([value[labels == k].double().mean(0) for k in range(4)])
        assert vector.dtype == torch.float32
        assert_same_bits(vector, expected.float())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 40), st.integers(0, 1000))
def test_merged_parts_are_the_whole(order, at, seed):
    labels = torch.tensor([*order, 0, 1, 2, 3])
    scale = 10.0 ** torch.arange(-3, 4)  # numbers that do not add up exactly
    values = [torch.randn(len(labels), 7, generator=torch.Generator().manual_seed(seed)) * scale]
    names = {"layers": ("a",), "classes": CLASSES}
    whole, first, second = (CentroidSums(**names) for _ in range(3))
    whole.add(values, labels)
    first.add([values[0][:at]], labels[:at])
    second.add([values[0][at:]], labels[at:])
    first.merge(second)
    torch.testing.assert_close(first.sums[0], whole.sums[0], rtol=1e-13, atol=1e-13 * float(values[0].abs().max()))
    a, b = first.finish(model="m"), whole.finish(model="m")
    torch.testing.assert_close(a.vectors[0], b.vectors[0], rtol=2e-7, atol=1e-10)
    assert torch.equal(a.counts, b.counts)


def test_merging_with_nothing(labelled):
    full, empty = (CentroidSums(layers=LAYERS, classes=CLASSES) for _ in range(2))
    full.add(*labelled(20))
    before = [s.clone() for s in full.sums]
    full.merge(empty)
    empty.merge(full)
    for a, b, c in zip(full.sums, empty.sums, before, strict=True):
        assert_same_bits(a, c)
        assert_same_bits(b, c)


def test_a_refused_batch_changes_nothing(labelled):
    sums = CentroidSums(layers=LAYERS, classes=CLASSES)
    values, labels = labelled(20)
    sums.add(values, labels)
    before = [s.clone() for s in sums.sums]
    with pytest.raises(ValueError, match=r"values\[2\]: expected shape \(any, 3\), got \(20, 2\)"):
        sums.add([values[0], values[1], values[2][:, :2]], labels)
    assert all(torch.equal(a, b) for a, b in zip(sums.sums, before, strict=True))
    assert int(sums.counts.sum()) == 20


def test_values_far_from_zero_keep_their_digits():
    # 2e5 values near 4096 in float32 sums would lose all but the first digits of the mean.
    value = 4096 + torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0))
    made = centroids([([value], torch.zeros(len(value), dtype=torch.int64))], layers=["a"], classes=["x"], model="m")
    assert_same_bits(made.vectors[0][0], value.double().mean(0).float())


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("cells", [1 << 24, 40])
def test_medoids_by_brute_force(labelled, metric, cells, monkeypatch):
    monkeypatch.setattr(sys.modules[medoids.__module__], "_CELLS", cells)  # one block of rows, or many
    values, labels = labelled(70)
    made = medoids(cut(values, labels, (3, 30, 30, 7)), metric=metric, **NAMES)
    name = {"l2": "euclidean", "cosine": "cosine"}[metric]
    for layer, value in enumerate(values):
        for k in range(4):
            rows = (labels == k).nonzero()[:, 0]
            members = value[rows].double().numpy()
            best = int(rows[int(cdist(members, members, name).sum(1).argmin())])
            assert int(made.members[layer, k]) == best
            assert_same_bits(made.vectors[layer][k], value[best])
    assert made.counts.tolist() == torch.bincount(labels).tolist()
    assert made.provenance["medoid_metric"] == metric


def test_the_first_of_equal_medoids_wins():
    value = torch.tensor([[3.0], [-1.0], [1.0], [0.5]])
    labels = torch.tensor([1, 0, 0, 1])
    with pytest.raises(
        ValueError, match="labels: expected the images of a class one after the other, got class 'y' again"
    ):
        medoids([([value], labels)], layers=["a"], classes=["x", "y"], model="m")
    order = torch.tensor([1, 2, 0, 3])
    made = medoids([([value[order]], labels[order])], layers=["a"], classes=["x", "y"], model="m")
    assert made.members.tolist() == [[0, 2]]  # of two members both are as central
    assert made.vectors[0][:, 0].tolist() == [-1.0, 3.0]


def test_classes_may_come_in_any_order(labelled):
    values, labels = labelled(40)
    forwards = medoids([(values, labels)], **NAMES)
    backwards = medoids([([v.flip(0) for v in values], labels.flip(0))], **NAMES)
    for a, b in zip(forwards.vectors, backwards.vectors, strict=True):
        assert_same_bits(a, b)
    assert torch.equal(backwards.members, 39 - forwards.members)


@pytest.mark.parametrize("make", [centroids, medoids])
def test_round_trip(labelled, make, tmp_path):
    made = make([labelled(40)], provenance={"data": "made up"}, **NAMES)
    made.save(tmp_path / "r.safetensors")
    read = load_representatives(tmp_path / "r.safetensors")
    for name in ("kind", "layers", "classes", "model", "provenance"):
        assert getattr(read, name) == getattr(made, name), name
    for a, b in zip(read.vectors, made.vectors, strict=True):
        assert_same_bits(a, b)
    assert torch.equal(read.counts, made.counts)
    assert (read.members is None) == (made.members is None)
    assert made.members is None or torch.equal(read.members, made.members)


@pytest.mark.parametrize("more", range(1, 8))
def test_tensors_that_begin_at_any_byte_of_a_file(representatives, more, tmp_path):
    path = tmp_path / "r.safetensors"
    representatives.save(path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    path.write_bytes((size + more).to_bytes(8, "little") + data[8 : 8 + size] + b" " * more + data[8 + size :])
    found = load_representatives(path).vectors
    assert all(value.data_ptr() % value.itemsize == 0 for value in found)
    assert all(torch.equal(value, right) for value, right in zip(found, representatives.vectors, strict=True))


def test_vectors_that_share_their_memory_can_be_saved(tmp_path):
    both = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    made = Representatives(
        kind="centroid",
        layers=("a", "b"),
        classes=("x", "y"),
        vectors=(both[:, :4], both[:, 4:]),
        counts=torch.ones(2, dtype=torch.int64),
        model="m",
    )
    made.save(tmp_path / "r.safetensors")
    assert_same_bits(load_representatives(tmp_path / "r.safetensors").vectors[1], both[:, 4:].contiguous())


BATCH_MISTAKES = [
    (
        lambda v, y: (v[0], y),
        TypeError,
        r"values: expected a sequence of tensors \(N, C\), one per layer, got Tensor",
    ),
    (lambda v, y: (v[:2], y), ValueError, "values: expected 3 layers, got 2"),
    (lambda v, y: ([v[0].double(), *v[1:]], y), TypeError, r"values\[0\]: expected .*, got torch.float64"),
    (
        lambda v, y: ([v[0] * torch.inf, *v[1:]], y),
        ValueError,
        r"values\[0\]: expected finite values, got NaN or infinity",
    ),
    (
        lambda v, y: ([v[0], v[1][1:], v[2]], y),
        ValueError,
        r"values\[1\]: expected 20 rows on cpu, like values\[0\], got 19 on cpu",
    ),
    (lambda v, y: ([v[0][:, :0], *v[1:]], y), ValueError, r"values\[0\]: expected .*, got \(20, 0\)"),
    (lambda v, y: (v, y + 1), ValueError, r"labels: expected classes in \[0, 4\), got 1 to 4"),
    (lambda v, y: (v, y - 1), ValueError, "labels: expected .*, got -1 to 2"),
    (lambda v, y: (v, y.float()), TypeError, "labels: expected .*, got torch.float32"),
    (lambda v, y: (v, y[1:]), ValueError, r"labels: expected .*, got \(19,\)"),
    (lambda v, y: (v, y.tolist()), TypeError, "labels: expected .*, got list"),
    (
        lambda v, y: (v, y.clamp(min=2)),
        ValueError,
        "classes: expected at least one image of each, got none of 2 of 4, first 'ada'",
    ),
]


@pytest.mark.parametrize("make", [centroids, medoids])
@pytest.mark.parametrize(("change", "error", "message"), BATCH_MISTAKES, ids=lambda v: v if isinstance(v, str) else "")
def test_mistakes_of_batches(labelled, make, change, error, message):
    with pytest.raises(error, match=message):
        make([change(*labelled(20))], **NAMES)


@pytest.mark.parametrize("make", [centroids, medoids])
def test_other_mistakes(labelled, make):
    with pytest.raises(
        ValueError, match="classes: expected at least one image of each, got none of 4 of 4, first 'ada'"
    ):
        make([], **NAMES)
    with pytest.raises(ValueError, match="classes: expected distinct names, got 2, 1 of them distinct"):
        make([], **{**NAMES, "classes": ("a", "a")})
    with pytest.raises(TypeError, match="layers: expected a sequence of names, got 'conv'"):
        make([], **{**NAMES, "layers": "conv"})
    values, labels = labelled(20)
    other = [labelled(20)[0][i][:, :2] for i in range(3)]
    with pytest.raises(ValueError, match=r"values(\[0\])?: expected shape \(any, 5\), got \((15|20), 2\)"):
        make([(values, labels.clamp(max=1)), (other, labels.clamp(min=2))], **NAMES)


def test_an_unknown_metric():
    with pytest.raises(ValueError, match="metric: expected 'l2' or 'cosine', got 'l1'"):
        medoids([], metric="l1", **NAMES)


def test_sums_that_do_not_belong_together(labelled):
    sums = CentroidSums(layers=LAYERS, classes=CLASSES)
    sums.add(*labelled(20))
    with pytest.raises(ValueError, match=r"other: expected the classes ada, bob, cyd, \.\.\., got others"):
        sums.merge(CentroidSums(layers=LAYERS, classes=("x",)))
    other = CentroidSums(layers=LAYERS, classes=CLASSES)
    other.add(*labelled(20, widths=(5, 9, 3)))
    with pytest.raises(ValueError, match="other: expected width 7 in layer 1, got 9"):
        sums.merge(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mean"}, "kind: expected 'centroid' or 'medoid', got 'mean'"),
        ({"layers": ("a", "b")}, "vectors: expected 2 layers, like layers, got 3"),
        ({"classes": ("a", "b")}, r"vectors\[0\]: expected 2 rows, like classes, got 4"),
        ({"counts": torch.zeros(4, dtype=torch.int64)}, "counts: expected .*, got torch.int64"),
        ({"counts": torch.ones(3, dtype=torch.int64)}, r"counts: expected .*, got torch.int64 \(3,\)"),
        ({"kind": "medoid"}, "members: expected members of medoids, and only there, got None with kind 'medoid'"),
        (
            {"kind": "medoid", "members": torch.zeros(3, 3, dtype=torch.int64)},
            r"members: expected .*, got torch.int64 \(3, 3\)",
        ),
        (
            {"vectors": (torch.full((4, 5), torch.nan),) * 3},
            r"vectors\[0\]: expected finite values, got NaN or infinity",
        ),
    ],
)
def test_mistakes_of_representatives(representatives, change, message):
    with pytest.raises(ValueError, match=message):
        replace(representatives, **change)


def test_damaged_files(representatives, tmp_path, damaged):
    path = tmp_path / "r.safetensors"
    representatives.save(path)
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(
        DetectionFileError,
        match=r"r\.safetensors: expected a whole safetensors file of the kind 'representatives', got",
    ):
        load_representatives(path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(
        DetectionFileError, match="expected a safetensors file of the kind 'representatives', got no such file"
    ):
        load_representatives(tmp_path / "none")
    with pytest.raises(
        DetectionFileError, match="expected a safetensors file of the kind 'representatives', got a directory"
    ):
        load_representatives(tmp_path)


def rewritten(representatives, path, *, about=None, tensors=None, **metadata):
    """The file with some of its contents changed; None removes."""
    said = {**representatives.about(), **(about or {})}
    held = {**representatives.tensors(), **(tensors or {})}
    header = {"format": "fastadv.detection", "version": "1", "kind": "representatives", "about": json.dumps(said)}
    header |= metadata
    save_file(
        {k: v for k, v in held.items() if v is not None}, path, {k: v for k, v in header.items() if v is not None}
    )
    return path


FILE_MISTAKES = [
    ({"format": None}, "expected 'representatives' of fastadv.detection, got 'bare tensors'"),
    ({"format": "theirs"}, "got 'theirs'"),
    ({"kind": "detector"}, "expected 'representatives' of fastadv.detection, got 'detector'"),
    ({"version": "2"}, "expected version 1, got '2'"),
    ({"about": None}, None),
    ({"raw": "{"}, "expected a description of its tensors, got one that cannot be read: Expecting"),
    (
        {"raw": '{"kind": NaN}'},
        "expected a description of its tensors, got one .*: description: expected numbers of JSON, got NaN",
    ),
    ({"raw": "[" * 100_000}, "expected a description of its tensors, got one that cannot be read: maximum"),
    ({"raw": "[1]"}, "expected a description that is an object, got list"),
    ({"about": {"kind": "mean"}}, "kind: expected one of centroid, medoid, got 'mean'"),
    ({"about": {"kind": "medoid"}}, "expected the tensor 'members', got a file without it"),
    ({"about": {"layers": "conv"}}, "layers: expected a list of texts, got 'conv'"),
    ({"about": {"layers": []}}, "layers: expected distinct names, got 0"),
    ({"about": {"layers": ["a", "b", "c", "d"]}}, r"expected the tensor 'vectors\.3', got a file without it"),
    ({"about": {"layers": ["a", "b"]}}, r"expected no further tensors, got 1 that do not belong, first 'vectors\.2'"),
    ({"about": {"classes": ["a", "b", "c", "c"]}}, "classes: expected distinct names, got 4, 3 of them distinct"),
    ({"about": {"classes": [1, 2, 3, 4]}}, "classes: expected a list of texts, got .*"),
    ({"about": {"model": 3}}, "model: expected a text, got 3"),
    ({"about": {"provenance": {"a": 1}}}, "provenance: expected texts by name, got .*"),
    (
        {"tensors": {"vectors.0": torch.full((4, 5), torch.inf)}},
        r"'vectors\.0': expected finite values, got NaN or infinity",
    ),
    ({"tensors": {"vectors.0": torch.ones(3, 5)}}, r"'vectors\.0': expected .* \(4, any\), got torch.float32 \(3, 5\)"),
    ({"tensors": {"vectors.0": torch.ones(4, 0)}}, r"'vectors\.0': expected .*, got torch.float32 \(4, 0\)"),
    ({"tensors": {"vectors.0": torch.ones(4, 5).half()}}, r"'vectors\.0': expected .*, got torch.float16"),
    ({"tensors": {"vectors.0": None}}, r"expected the tensor 'vectors\.0', got a file without it"),
    ({"tensors": {"counts": torch.zeros(4, dtype=torch.int64)}}, "counts: expected .*, got torch.int64"),
    (
        {"tensors": {"members": torch.ones(3, 4, dtype=torch.int64)}},
        "expected no further tensors, got 1 that do not belong, first 'members'",
    ),
]


@pytest.mark.parametrize(("change", "message"), FILE_MISTAKES, ids=[str(i) for i in range(len(FILE_MISTAKES))])
def test_hostile_files(representatives, tmp_path, change, message):
    raw = change.get("raw", change["about"] if isinstance(change.get("about"), str) else None)
    given = {k: v for k, v in change.items() if k != "raw"}
    path = tmp_path / "r.safetensors"
    if raw is not None or ("about" in change and change["about"] is None):
        header = {"format": "fastadv.detection", "version": "1", "kind": "representatives"}
        save_file(representatives.tensors(), path, header if raw is None else {**header, "about": raw})
    else:
        rewritten(representatives, path, **given)
    with pytest.raises(
        DetectionFileError,
        match=message or "expected a description of its tensors, got one that cannot be read: 'about'",
    ):
        load_representatives(path)
