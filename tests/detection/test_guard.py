"""The guard: what the model and the detector say, in one pass, whatever the batch, the thread or the device."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastadv.detection import Architecture, Detector, LayerTap, Network, Representatives, Trajectory, centroids
from fastadv.detection.guard import Guard
from fastadv.models import load
from fastadv.testing.tolerances import assert_same_bits


def network(kind="mlp", layers=3, width=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        made = Network(Architecture(kind=kind, layers=layers, width=width, hidden=6))
    made.mean.fill_(0.3)
    made.scale.fill_(0.7)
    return made.eval().requires_grad_(False)


def detector_of(representatives, kind="mlp", metric="l2"):
    layers, width = len(representatives.layers), len(representatives.classes)
    trajectory = Trajectory(representatives=representatives, metric=metric)
    return Detector(trajectory=trajectory, network=network(kind, layers, width))


def middle(detector, model, images):
    """A threshold between the scores of the images."""
    with torch.no_grad():
        scores = detector.score(LayerTap(model=model, layers=detector.layers)(images).values)
    return float(scores.sort().values[[len(scores) // 2 - 1, len(scores) // 2]].mean())


@pytest.mark.parametrize("count", [1, 3, 8, 19])
@pytest.mark.parametrize(("kind", "metric"), [("mlp", "l2"), ("lstm", "cosine"), ("linear", "l2")])
def test_the_same_as_model_and_detector_apart(tiny, faces, representatives, kind, metric, count):
    detector = detector_of(representatives, kind, metric)
    guard = Guard(model=tiny, detector=detector, threshold=middle(detector, tiny, faces(20)))
    x = faces(count)
    with torch.no_grad():
        scores = detector.score(LayerTap(model=tiny)(x).values)
        embeddings = tiny(x)
    found = guard(x)
    assert len(found) == count
    assert found.logits is None
    torch.testing.assert_close(found.scores, scores, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.embeddings, embeddings, rtol=1e-5, atol=1e-6)
    assert found.flagged.tolist() == (found.scores >= guard.threshold).tolist()
    torch.testing.assert_close(found.norms, tiny.features(x).norm(dim=1), rtol=1e-5, atol=1e-6)
    assert found.p_values is None
    if count == 19:
        assert 0 < int(found.flagged.sum()) < 19


def test_scores_in_float64(tiny, faces, representatives):
    """Pooling, distances and network written out once more, in double."""
    x = faces(5)
    twin, kept = copy.deepcopy(tiny).double(), {}
    for name in representatives.layers:
        module = twin.backbone.get_submodule(name)
        module.register_forward_hook(
            lambda m, i, o, n=name: kept.update({n: o.flatten(2).mean(2) if o.dim() > 2 else o})
        )
    with torch.no_grad():
        twin(x.double())
        pairs = zip(representatives.layers, representatives.vectors, strict=True)
        means = {n: o.flatten(2).mean(2) if o.dim() > 2 else o for n, o in kept.items()}
        path = torch.stack([(means[n][:, None] - v.double()).norm(dim=2) for n, v in pairs], dim=1)
        net = network("mlp").double()
        hidden = F.relu(net.logit[0](((path - 0.3) / 0.7).flatten(1)))
        scores = net.logit[3](hidden)[:, 0]
    found = Guard(model=tiny, detector=detector_of(representatives), threshold=0.0)(x).scores
    torch.testing.assert_close(found.double(), scores, rtol=1e-5, atol=1e-5)


def test_logits_of_a_head(faces, representatives, tiny):
    tiny.head = nn.Linear(3, 9).eval()
    found = Guard(model=tiny, detector=detector_of(representatives), threshold=0.0)(faces(4))
    with torch.no_grad():
        torch.testing.assert_close(found.logits, tiny.logits(faces(4)), rtol=1e-5, atol=1e-5)


def test_a_layer_with_a_hook_is_read_as_its_hook_leaves_it(tiny, faces, representatives):
    detector = detector_of(representatives)
    plain = Guard(model=tiny, detector=detector, threshold=0.0)(faces(4))
    layer = tiny.backbone.get_submodule("block")
    for factor in (1.0, 1.5):
        handle = layer.register_forward_hook(lambda module, inputs, output, by=factor: output * by)
        found = Guard(model=tiny, detector=detector, threshold=0.0)(faces(4))
        with torch.no_grad():
            expected = detector.score(LayerTap(model=tiny, layers=detector.layers)(faces(4)).values)
        handle.remove()
        torch.testing.assert_close(found.scores, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.scores, plain.scores) is (factor == 1.0)


def test_nothing_is_left_on_model_and_detector(tiny, faces, representatives):
    detector = detector_of(representatives)
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    Guard(model=tiny, detector=detector, threshold=0.0)(faces(2))
    assert sum(len(m._forward_hooks) for m in tiny.modules()) == 0
    assert not any("forward" in vars(m) for m in tiny.modules())
    assert all(p.requires_grad for p in tiny.parameters())
    assert tiny.layers == ("conv", "block", "dense")
    assert before.keys() == tiny.state_dict().keys()
    for name, value in tiny.state_dict().items():
        assert_same_bits(value, before[name], name)
    y = faces(1).requires_grad_(True)  # and both can still be attacked
    (gradient,) = torch.autograd.grad(detector.score(LayerTap(model=tiny)(y).values).sum(), y)
    assert bool((gradient != 0).any())


def test_later_changes_to_the_model_do_not_reach_the_guard(tiny, faces, representatives):
    guard = Guard(model=tiny, detector=detector_of(representatives), threshold=0.0)
    before = guard(faces(2)).scores
    with torch.no_grad():
        tiny.backbone.conv.weight.zero_()
    assert_same_bits(guard(faces(2)).scores, before)


def test_a_layer_before_its_batch_norm_is_what_it_was(tiny, faces, representatives):
    """Folding would give the batch norm's output in its place, if the model did not offer the layer itself."""
    torch.nn.init.uniform_(tiny.backbone.norm.running_mean, -1, 1)
    torch.nn.init.uniform_(tiny.backbone.norm.running_var, 0.2, 2)
    tiny.layers = ("block",)
    detector = detector_of(representatives)
    with torch.no_grad():
        expected = detector.score(LayerTap(model=tiny, layers=detector.layers)(faces(3)).values)
    found = Guard(model=tiny, detector=detector, threshold=0.0)(faces(3))
    torch.testing.assert_close(found.scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [2, 9])
def test_neighbours_and_layout_change_no_bit(tiny, faces, representatives, count):
    guard = Guard(model=tiny, detector=detector_of(representatives, "lstm"), threshold=0.0)
    x, others = faces(count), faces(count, 1)
    others[-1] = x[0]
    one, other = guard(x), guard(others)
    for name in ("embeddings", "scores", "flagged"):
        assert_same_bits(getattr(one, name)[0], getattr(other, name)[-1], name)
    last = guard(x.contiguous(memory_format=torch.channels_last))
    assert_same_bits(last.scores, one.scores)
    assert_same_bits(guard(x.double()).scores, one.scores)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.01, 1.5, 255.0])
def test_a_value_out_of_range_is_refused_by_name(tiny, faces, representatives, wrong):
    guard = Guard(model=tiny, detector=detector_of(representatives), threshold=1e6)
    x = faces(3)
    x[1, 0, 2, 2] = wrong
    with pytest.raises(ValueError, match=r"images: expected values in \[0, 1\], got"):
        guard(x)


def test_a_score_that_is_no_number_is_flagged(tiny, faces, representatives):
    detector = detector_of(representatives)
    with torch.no_grad():
        next(iter(detector.network.parameters())).fill_(math.nan)
    found = Guard(model=tiny, detector=detector, threshold=1e6)(faces(3))
    assert bool(found.scores.isnan().all())
    assert bool(found.flagged.all())


def test_threads_do_not_meet(tiny, faces, representatives):
    guard = Guard(model=tiny, detector=detector_of(representatives), threshold=0.0)
    batches = [faces(1 + i % 9, i) for i in range(40)]
    alone = [guard(x).scores for x in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: guard(x).scores, batches))
    for one, other in zip(alone, together, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_when_a_layer_is_pooled_changes_no_score(tiny, faces, representatives, monkeypatch, backend):
    detector = detector_of(representatives, "lstm")
    detector = replace(detector, trajectory=replace(detector.trajectory, backend=backend))
    late = Guard(model=tiny, detector=detector, threshold=0.0)(faces(5)).scores
    for elements in (1, 5 * 3 + 1):  # all layers, and all but the last
        monkeypatch.setattr("fastadv.detection.guard._EARLY", elements)
        early = Guard(model=tiny, detector=detector, threshold=0.0)(faces(5)).scores
        if backend is None:
            assert_same_bits(early, late)
        torch.testing.assert_close(early, late, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("count", [1, 9])
def test_operation_by_operation_where_another_backend_is_named(count, precision):
    model = load("synth-resnet")
    x = torch.rand(12, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    tap = LayerTap(model=model)
    with torch.no_grad():
        batch = (tap(x).values, torch.arange(12) % 4)
    made = detector_of(centroids([batch], layers=tap.names, classes=tuple("abcd"), model=model.name), "lstm")
    named = replace(made, trajectory=replace(made.trajectory, backend="reference"))
    assert named.prepared() is None
    assert made.prepared() is not None
    one, other = (Guard(model=model, detector=d, threshold=0.0, precision=precision)(x[:count]) for d in (made, named))
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-5, atol=1e-5)
    assert_same_bits(one.flagged, other.flagged)


@pytest.mark.parametrize("count", [1, 9])
def test_bfloat16(count):
    model = load("synth-resnet")
    x = torch.rand(12, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    tap = LayerTap(model=model)
    with torch.no_grad():
        batch = (tap(x).values, torch.arange(12) % 4)
    detector = detector_of(centroids([batch], layers=tap.names, classes=tuple("abcd"), model=model.name))
    exact, rounded = (Guard(model=model, detector=detector, threshold=0.0, precision=p) for p in ("fp32", "bf16"))
    one, other = exact(x[:count]), rounded(x[:count])
    assert other.scores.dtype == other.embeddings.dtype == torch.float32
    assert bool(((one.embeddings * other.embeddings).sum(1) > 0.99).all())
    torch.testing.assert_close(other.scores, one.scores, rtol=0.1, atol=0.1)
    assert not torch.equal(other.scores, one.scores)


def test_the_threshold(tiny, faces, representatives):
    bare = detector_of(representatives)
    with pytest.raises(
        ValueError, match="threshold: expected a number, got None for a detector that is not calibrated"
    ):
        Guard(model=tiny, detector=bare)
    calibrated = bare.calibrated(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0]))
    assert Guard(model=tiny, detector=calibrated).threshold == calibrated.thresholds.equal_error == 0.5
    natural = torch.linspace(-1.0, 0.0, 99)  # as many as a rate of 1 % needs
    enough = bare.calibrated(natural, torch.tensor([-0.5, 2.0]))
    assert enough.thresholds.usual_rate == 0.01
    assert Guard(model=tiny, detector=enough).threshold == enough.thresholds.at_false_alarm(0.01)
    assert enough.thresholds.at_false_alarm(0.01) != enough.thresholds.equal_error
    assert calibrated.thresholds.usual_rate is None
    alone = bare.calibrated(natural, rates=(0.1, 0.05))
    assert Guard(model=tiny, detector=alone).threshold == alone.thresholds.at_false_alarm(0.1)
    assert Guard(model=tiny, detector=calibrated, threshold=2).threshold == 2.0
    score = float(Guard(model=tiny, detector=bare, threshold=0.0)(faces(1)).scores)
    assert bool(Guard(model=tiny, detector=bare, threshold=score)(faces(1)).flagged)
    with pytest.raises(ValueError, match="threshold: expected a finite number, got nan"):
        Guard(model=tiny, detector=bare, threshold=math.nan)


def test_p_values_say_what_the_flags_say(tiny, faces, representatives):
    """Of the images themselves, and of their neighbours in float32."""
    bare = detector_of(representatives)
    x = faces(60)
    scores = Guard(model=tiny, detector=bare, threshold=0.0)(x).scores
    detector = bare.calibrated(scores[:39])
    found = Guard(model=tiny, detector=detector)(x)
    assert found.p_values.dtype == torch.float64
    assert found.flagged.tolist() == (found.p_values <= 0.05).tolist()
    assert found.p_values.tolist() == [(1 + int((scores[:39] >= s).sum())) / 40 for s in found.scores]
    broken = replace(found, scores=torch.tensor([math.nan, 1e9, -1e9]))
    assert [str(p) for p in broken.p_values.tolist()] == ["nan", "0.025", "1.0"]


def test_a_detector_of_another_model(tiny, representatives):
    other = detector_of(replace(representatives, model="huge"))
    with pytest.raises(
        ValueError, match="detector: expected one that was fitted on the model 'tiny', got one of 'huge'"
    ):
        Guard(model=tiny, detector=other, threshold=0.0)
    wide = Representatives(
        kind="centroid",
        layers=representatives.layers,
        classes=representatives.classes,
        vectors=(*representatives.vectors[:2], torch.zeros(4, 8)),
        counts=representatives.counts,
        model="tiny",
    )
    with pytest.raises(ValueError, match="detector: expected 3 channels of layer 'dense', as the model has, got 8"):
        Guard(model=tiny, detector=detector_of(wide), threshold=0.0)
    missing = detector_of(replace(representatives, layers=("conv", "block", "gone")))
    with pytest.raises(ValueError, match="layers: expected submodules of the backbone of 'tiny', got 'gone'"):
        Guard(model=tiny, detector=missing, threshold=0.0)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"model": nn.ReLU()}, TypeError, "model: expected a FaceModel, got ReLU"),
        ({"detector": 3}, TypeError, "detector: expected a Detector, got int"),
        ({"precision": "tf32"}, ValueError, "precision: expected one of fp32, bf16, got 'tf32'"),
        ({"sizes": ()}, ValueError, r"sizes: expected ascending batch sizes >= 1, got \(\)"),
        ({"sizes": (4, 2)}, ValueError, "expected ascending batch sizes"),
        ({"sizes": (0, 2)}, ValueError, "expected ascending batch sizes"),
        ({"capture": True}, ValueError, "capture: expected a model on a CUDA device with True, got one on cpu"),
    ],
)
def test_wrong_fields(tiny, representatives, wrong, error, message):
    with pytest.raises(error, match=message):
        Guard(**{"model": tiny, "detector": detector_of(representatives), "threshold": 0.0, **wrong})


def test_a_model_in_training_mode(tiny, representatives):
    with pytest.raises(ValueError, match="training mode"):
        Guard(model=tiny.train(), detector=detector_of(representatives), threshold=0.0)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([1], TypeError, "images: expected a floating-point torch.Tensor .* got list"),
        (
            torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
            TypeError,
            "images: expected a floating-point tensor .* got torch.uint8; use",
        ),
        (torch.zeros(3, 16, 16), ValueError, r"images: expected shape \(N, 3, 16, 16\) with N >= 1, got \(3, 16, 16\)"),
        (torch.zeros(1, 3, 16, 15), ValueError, "expected"),
        (torch.zeros(0, 3, 16, 16), ValueError, "with N >= 1"),
    ],
)
def test_wrong_images(tiny, representatives, images, error, message):
    guard = Guard(model=tiny, detector=detector_of(representatives), threshold=0.0)
    with pytest.raises(error, match=message):
        guard(images)


def test_warm_up_changes_nothing(tiny, faces, representatives):
    guard = Guard(model=tiny, detector=detector_of(representatives), threshold=0.0)
    before = guard(faces(2)).scores
    guard.warm_up()
    assert_same_bits(guard(faces(2)).scores, before)


@pytest.fixture(scope="module")
def on_the_device():
    model = load("synth-vgg", device="cuda")
    x = torch.rand(40, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    tap = LayerTap(model=model)
    with torch.no_grad():
        batch = (tap(x.cuda()).values, torch.arange(40, device="cuda") % 4)
    made = centroids([batch], layers=tap.names, classes=tuple("abcd"), model=model.name)
    return model, detector_of(made, "lstm", "cosine").to("cuda"), x


@pytest.mark.gpu
class TestOnTheDevice:
    @pytest.mark.parametrize("count", [1, 3, 8, 32, 40])
    def test_the_graph_says_what_the_eager_pass_says(self, on_the_device, count):
        model, detector, x = on_the_device
        eager, captured = (Guard(model=model, detector=detector, threshold=0.0, capture=c) for c in (False, True))
        captured.warm_up()
        padded = torch.cat([x, x])[: {1: 1, 3: 4, 8: 8, 32: 32, 40: 40}[count]]
        one, other = eager(padded), captured(x[:count])
        assert len(other) == count
        for name in ("embeddings", "logits", "scores", "norms"):
            expected = getattr(one, name)[:count]
            torch.testing.assert_close(getattr(other, name), expected, rtol=1e-4, atol=1e-5)
        assert_same_bits(other.flagged, other.scores >= 0)

    def test_p_values_are_those_of_the_cpu(self, on_the_device):
        model, detector, x = on_the_device
        scores = Guard(model=model, detector=detector, threshold=0.0)(x).scores.cpu()
        found = Guard(model=model, detector=detector.calibrated(scores, rates=(0.5,)))(x[:5])
        assert found.p_values.is_cuda
        assert torch.equal(found.p_values.cpu(), found.thresholds.p_values(found.scores.cpu()))

    def test_results_stay_when_the_graph_runs_again(self, on_the_device):
        model, detector, x = on_the_device
        guard = Guard(model=model, detector=detector, threshold=0.0)
        first = guard(x[:4])
        kept = first.scores.clone()
        guard(x[4:8])
        guard(x[:1])
        assert_same_bits(first.scores, kept)
        assert_same_bits(guard(x[:4]).scores, kept)

    def test_threads_and_streams_do_not_meet(self, on_the_device):
        model, detector, x = on_the_device
        guard = Guard(model=model, detector=detector, threshold=0.0)
        batches = [x[i : i + 1 + i % 5].cuda() for i in range(30)]
        alone = [guard(part).scores.cpu() for part in batches]

        def judged(part):
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
                return guard(part).scores.cpu()

        with ThreadPoolExecutor(4) as pool:
            for one, other in zip(alone, pool.map(judged, batches), strict=True):
                assert_same_bits(one, other)

    def test_a_detector_on_another_device(self, on_the_device):
        model, detector, x = on_the_device
        elsewhere = replace(detector, network=copy.deepcopy(detector.network)).to("cpu")
        made = Guard(model=model, detector=elsewhere, threshold=0.0)(x[:2])
        assert made.scores.is_cuda
        assert elsewhere.network.mean.device.type == "cpu"
