"""The embedding as a layer of a detector: in taps, detectors, guards, files and galleries."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastadv.defences.evade_detector import WatchedModel
from fastadv.detection import (
    Architecture,
    Detector,
    LayerTap,
    Network,
    Trajectory,
    centroids,
    enrol,
    explain,
    load_detector,
)
from fastadv.detection.export import export_guard
from fastadv.detection.guard import Guard
from fastadv.testing.tolerances import assert_same_bits

LAYERS = ("conv", "dense", "embedding")
CLASSES = ("ada", "bob", "cyd", "dan")


@pytest.fixture
def detector(labelled):
    made = centroids([labelled(60, widths=(5, 3, 3))], layers=LAYERS, classes=CLASSES, model="tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = Network(Architecture(kind="mlp", layers=3, width=5, hidden=6)).eval().requires_grad_(False)
    return Detector(trajectory=Trajectory(representatives=made, reading="relative"), network=network)


@pytest.mark.parametrize("keep_maps", [False, True])
def test_it_is_the_unit_embedding_wherever_it_stands(tiny, faces, keep_maps):
    x = faces(3)
    with torch.no_grad():
        alone = LayerTap(model=tiny, keep_maps=keep_maps)(x)
        for layers in (("embedding",), ("conv", "embedding", "block"), (*tiny.layers, "embedding")):
            tapped = LayerTap(model=tiny, layers=layers, keep_maps=keep_maps)(x)
            assert tapped.layers == layers
            assert_same_bits(tapped.of("embedding").flatten(1), tiny(x))
            assert tapped.of("embedding").dim() == (4 if keep_maps else 2)
            for name in set(layers) - {"embedding"}:
                assert_same_bits(tapped.of(name), alone.of(name))


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_guard_says_what_the_detector_says(tiny, faces, detector, count, backend):
    with_backend = Trajectory(representatives=detector.trajectory.representatives, reading="relative", backend=backend)
    one = Detector(trajectory=with_backend, network=detector.network)
    x = faces(count)
    with torch.no_grad():
        expected = one.score(LayerTap(model=tiny, layers=LAYERS)(x).values)
        maps = one.score(LayerTap(model=tiny, layers=LAYERS, keep_maps=True)(x).values)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5)
    made = Guard(model=tiny, detector=one, threshold=0.0)(x)
    torch.testing.assert_close(made.scores, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(made.embeddings, tiny(x), rtol=1e-5, atol=1e-6)
    half = Guard(model=tiny, detector=one, threshold=0.0, precision="bf16")(x)  # maps of two types
    torch.testing.assert_close(half.scores, expected, rtol=0.1, atol=0.1)


def test_through_a_file_a_graph_and_a_gallery(tiny, faces, detector, tmp_path):
    detector.save(tmp_path / "detector.safetensors")
    again = load_detector(tmp_path / "detector.safetensors")
    assert again.layers == LAYERS
    x = faces(4)
    guard = Guard(model=tiny, detector=again, threshold=0.0)
    scores = guard(x).scores
    export_guard(guard, tmp_path / "guard.pt2")
    with torch.no_grad():
        _, exported, _ = torch.export.load(tmp_path / "guard.pt2").module()(x)
    torch.testing.assert_close(exported, scores, rtol=1e-4, atol=1e-4)
    larger = enrol(again, tiny, {"eve": faces(2, 5)}.items())
    with torch.no_grad():
        torch.testing.assert_close(larger.trajectory.representatives.vectors[2][4], tiny(faces(2, 5)).mean(0))
        values = LayerTap(model=tiny, layers=LAYERS)(x[:1]).values
    why = explain(again, values)
    assert why.layers == LAYERS
    assert why.score == pytest.approx(float(scores[0]), abs=1e-4)


def test_an_attack_sees_through_it(tiny, faces, detector):
    tiny.head = nn.Linear(3, 4).eval()
    x = faces(2).requires_grad_(True)
    (watched,) = torch.autograd.grad(WatchedModel(tiny, detector)(x)[:, -1].sum(), x)
    values = LayerTap(model=tiny, layers=LAYERS[:2])(x)
    unit = F.normalize(values.features, dim=1)
    (expected,) = torch.autograd.grad(detector.score([*values.values, unit]).sum(), x)
    torch.testing.assert_close(watched, expected, rtol=1e-4, atol=1e-7)
