"""Exported guards: the same numbers from another runtime, in plain operations, with what a reader has to know."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastadv.detection import Architecture, Detector, LayerTap, Network, Trajectory, export
from fastadv.detection.export import ExportError, export_guard
from fastadv.detection.guard import Guard


def needs(suffix):
    if suffix == "onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package, reason=f"{package} is not installed: the extra `onnx`")


@pytest.fixture
def guard_of(tiny, representatives):
    def make(kind="mlp", metric="l2", *, head=False, reading="raw", **fields):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            width = (5 if reading == "relative" else 4) * len(metric.split("+"))
            network = Network(Architecture(kind=kind, layers=3, width=width, hidden=6))
            tiny.head = nn.Linear(3, 9).eval() if head else None
        network.mean.fill_(0.3)
        network.scale.fill_(0.7)
        # with a head the graph reads its choice; seven of its nine people are no classes of the detector
        named = (*representatives.classes[:2], *"qrstuvw") if head and reading == "relative" else None
        trajectory = Trajectory(representatives=representatives, metric=metric, reading=reading, head=named)
        detector = Detector(trajectory=trajectory, network=network.eval().requires_grad_(False))
        return Guard(**{"model": tiny, "detector": detector, "threshold": 0.1, **fields})

    return make


def run(path, images):
    """What the file says, by its own runtime and by nothing of this package."""
    if path.suffix == ".pt2":
        program = torch.export.load(path)
        assert not [n for n in program.graph.nodes if "fastadv" in str(n.target)]
        with torch.no_grad():
            return dict(zip(("embeddings", "scores", "flagged", "logits"), program.module()(images), strict=False))
    import onnx
    import onnxruntime

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain for o in model.opset_import} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return {n: torch.from_numpy(v) for n, v in zip(names, session.run(None, {"images": images.numpy()}), strict=True)}


def told(path):
    if path.suffix == ".pt2":
        extra = {"fastadv": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["fastadv"])
    import onnx

    return json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["fastadv"])


def check_batch(path):
    """The graph names the axis of the batch and says how long it may be; our runner takes no empty one."""
    import onnx

    graph = onnx.load(path).graph
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert dims[0] == ["N", 3, 16, 16]
    assert {dim[0] for dim in dims} == {"N"}
    for text in (graph.input[0].doc_string, graph.doc_string):
        assert "Aligned faces (N, 3, 16, 16), float32, RGB in [0, 1]. N >= 1: no empty batch" in text
    with pytest.raises(
        ValueError, match=r"images: expected a batch \(N, 3, H, W\) with N >= 1, got shape \(0, 3, 16, 16\)"
    ):
        export._onnx_runner(path.read_bytes())(torch.zeros(0, 3, 16, 16))


@pytest.mark.parametrize(
    ("suffix", "kind", "metric", "head", "reading"),
    [
        ("pt2", "lstm", "cosine", True, "raw"),
        ("onnx", "mlp", "l2", True, "raw"),
        ("onnx", "lstm", "cosine", False, "raw"),
        ("pt2", "mlp", "cosine", True, "relative"),
        ("onnx", "linear", "l2", True, "relative"),
        ("onnx", "lstm", "cosine", False, "relative"),
        ("onnx", "mlp", "l2+cosine", True, "relative"),
        ("pt2", "lstm", "l2+cosine", False, "relative"),
    ],
)
def test_the_same_numbers_from_the_file(tmp_path, guard_of, faces, suffix, kind, metric, head, reading):
    needs(suffix)
    guard = guard_of(kind, metric, head=head, reading=reading)
    path = tmp_path / f"guard.{suffix}"
    before = guard(faces(3)).scores
    made = export_guard(guard, path)
    assert torch.equal(guard(faces(3)).scores, before)
    assert all(p.requires_grad for p in guard.model.parameters())
    assert (made.path, made.size) == (path, path.stat().st_size)
    assert made.format == {"pt2": "torch.export", "onnx": "onnx"}[suffix]
    assert (made.logits is None) != head
    assert 0 <= made.scores <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    for count in (1, 6):
        x = faces(count, 7)
        x[0, :, :8] = 0.5
        found = run(path, x)
        tapped = LayerTap(model=guard.model)
        with torch.no_grad():
            own = guard.detector.trajectory.own_of(guard.model.logits(x).argmax(1)) if head else None
            scores = guard.detector.score(tapped(x).values, own)
            torch.testing.assert_close(found["embeddings"], guard.model(x), rtol=1e-4, atol=1e-4)
            if head:
                torch.testing.assert_close(found["logits"], guard.model.logits(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["scores"], scores, rtol=1e-4, atol=1e-4)
        assert found["flagged"].tolist() == (found["scores"] >= 0.1).tolist()
        assert ("logits" in found) == head
    x[2, 0, 3, 3] = torch.nan
    assert run(path, x)["flagged"].tolist() == [bool(f) or i == 2 for i, f in enumerate(found["flagged"])]
    about = told(path)
    assert (about["model"], about["threshold"]) == ("tiny", 0.1)
    assert about["input"]["shape"] == ["N", 3, 16, 16]
    assert about["input"]["batch"].startswith("N >= 1: no empty batch")
    if suffix == "onnx":
        check_batch(path)
    else:
        with pytest.raises(ValueError, match="images: expected a batch"):
            export._archive_runner(path.read_bytes(), ("embeddings", "scores", "flagged", "logits"))(faces(0))
    assert about["detector"]["layers"] == ["conv", "block", "dense"]
    assert (about["detector"]["metric"], about["detector"]["architecture"]) == (metric, kind)
    assert about["detector"]["reading"] == reading


@pytest.mark.parametrize(("suffix", "head"), [("pt2", False), ("onnx", True)])
def test_p_values_and_where_they_come_from(tmp_path, guard_of, faces, suffix, head):
    needs(suffix)
    guard = guard_of("mlp", head=head)
    detector = guard.detector.calibrated(guard(faces(40, 3)).scores, rates=(0.1,), calibrated_on={"data": "mine"})
    guard = Guard(model=guard.model, detector=detector)
    path = tmp_path / f"guard.{suffix}"
    export_guard(guard, path)
    x = faces(12, 7)
    x[2, 0, 3, 3] = torch.nan
    if suffix == "onnx":
        found = run(path, x)
    else:
        with torch.no_grad():
            names = ("embeddings", "scores", "flagged", *(("logits",) if head else ()), "p_values")
            found = dict(zip(names, torch.export.load(path).module()(x), strict=True))
    p_values = found["p_values"]
    assert p_values.dtype == torch.float64
    assert p_values.isnan().tolist() == [k == 2 for k in range(12)]
    rest = torch.arange(12) != 2
    assert torch.equal(p_values[rest], detector.thresholds.p_values(found["scores"][rest]))
    assert found["flagged"][rest].tolist() == (p_values[rest] <= 0.1).tolist()
    about = told(path)
    assert about["calibration"] == {"images": 40, "calibrated_on": {"data": "mine"}}
    assert about["p_value"] == "(1 + number of calibration scores >= score) / (calibration.images + 1)"


@pytest.mark.parametrize("reading", ["raw", "relative"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_plain_distances_are_the_fused_ones(guard_of, metric, reading, monkeypatch):
    """Also where the classes are cut into parts, at distance 0, and for vectors without a direction."""
    monkeypatch.setattr(export, "_ELEMENTS", 8)
    detector = guard_of("linear", metric, reading=reading).detector
    first = [v.clone() for v in detector.trajectory.representatives.vectors]
    first[1][2] = 0
    first[2][0] = first[2][1]
    if metric == "cosine":
        first[0][1] *= 1e25
        first[1][1] *= 1e-30
    trajectory = replace(
        detector.trajectory, representatives=replace(detector.trajectory.representatives, vectors=tuple(first))
    )
    detector = replace(detector, trajectory=trajectory)
    values = [torch.cat([v[:1], torch.zeros(1, v.shape[1]), v[2:] * 1.5]) for v in first]
    with torch.no_grad():
        maps = [v[:, :, None, None].expand(-1, -1, 2, 3) for v in values]
        found, _ = export._PlainScore(detector, 0.0)(maps, torch.zeros(len(values[0]), 3, 2, 2))
        torch.testing.assert_close(found, detector.score(values), rtol=1e-5, atol=1e-5)


def test_a_graph_that_differs_is_not_written(tmp_path, guard_of, monkeypatch):
    guard = guard_of()
    monkeypatch.setattr(
        export._PlainScore, "_distances", lambda self, f, v, metric: (f[:, None] - v[None]).abs().sum(2)
    )
    with pytest.raises(
        ExportError, match=r"graph: expected scores within 0\.0001 of the guard's, got a difference of "
    ):
        export_guard(guard, tmp_path / "guard.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_package_that_is_missing(tmp_path, guard_of, package, monkeypatch):
    needs("onnx")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf"ONNX: expected the package {package}, got no such package .*pip install 'fastadv\[onnx\]'"
    ):
        export_guard(guard_of(), tmp_path / "guard.onnx")


def test_wrong_arguments(tmp_path, guard_of):
    guard = guard_of()
    with pytest.raises(TypeError, match="guard: expected a Guard, got int"):
        export_guard(3, tmp_path / "guard.onnx")
    with pytest.raises(ValueError, match=r"expected a name that ends in \.onnx or \.pt2"):
        export_guard(guard, tmp_path / "guard.tflite")
    with pytest.raises(ValueError, match="path: expected a file in a folder that exists, got"):
        export_guard(guard, tmp_path / "gone" / "guard.pt2")
    with pytest.raises(ValueError, match=r"tolerance: expected a number in \(0, 1\), got 0"):
        export_guard(guard, tmp_path / "guard.pt2", tolerance=0)
    with pytest.raises(ValueError, match="guard: expected precision 'fp32', what the graph computes in, got 'bf16'"):
        export_guard(guard_of(precision="bf16"), tmp_path / "guard.pt2")
