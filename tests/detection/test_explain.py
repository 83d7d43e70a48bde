"""What made a score: contributions that add up to it, and are the weights' own where the detector is linear."""

from __future__ import annotations

import pytest
import torch

from fastadv.detection import Architecture, Detector, Network, Trajectory, explain
from fastadv.testing.tolerances import assert_same_bits

KINDS = ("linear", "mlp", "lstm")


def detector_of(representatives, kind, metric="l2", reading="raw"):
    trajectory = Trajectory(representatives=representatives, metric=metric, reading=reading)
    layers, width = trajectory.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = Network(Architecture(kind=kind, layers=layers, width=width, hidden=20))
    network.mean.copy_(torch.linspace(1, 4, layers * width).reshape(layers, width))
    network.scale.copy_(torch.linspace(0.5, 2, layers * width).reshape(layers, width))
    return Detector(trajectory=trajectory, network=network.eval().requires_grad_(False))


@pytest.mark.parametrize("reading", ["raw", "relative", "claimed"])
@pytest.mark.parametrize("metric", ["l2", "cosine", "l2+cosine"])
@pytest.mark.parametrize("kind", KINDS)
def test_contributions_add_up_to_the_score(representatives, labelled, kind, metric, reading):
    detector = detector_of(representatives, kind, metric, "raw" if reading == "raw" else "relative")
    values, _ = labelled(8, seed=3)
    own = torch.arange(8) % 4 if reading == "claimed" else None
    scores = detector.score(values, own)
    baseline = float(detector.network(detector.network.mean[None]))
    for k in range(8):
        found = explain(detector, [value[k : k + 1] for value in values], None if own is None else own[k : k + 1])
        assert found.score == pytest.approx(float(scores[k]), abs=1e-5)
        assert found.baseline == pytest.approx(baseline, abs=1e-6)
        width = (4 if reading == "raw" else 5) * len(metric.split("+"))
        assert found.contributions.shape == (3, width)
        assert len(set(found.columns)) == width
        if metric == "l2+cosine":
            assert found.columns[0].endswith(" (l2)")
            assert found.columns[-1].endswith(" (cosine)")
        assert own is None or found.own == representatives.classes[k % 4]
        assert sum(found.by_layer) + found.remainder == pytest.approx(found.score - found.baseline)
        tolerance = {"linear": 1e-9, "mlp": 2e-3, "lstm": 1e-5}[kind]
        assert abs(found.remainder) <= tolerance * max(1.0, abs(found.score - found.baseline))


def test_of_a_linear_detector_they_are_weight_times_change(representatives, labelled):
    detector = detector_of(representatives, "linear")
    values = [value[:1] for value in labelled(8)[0]]
    network = detector.network
    change = (detector.trajectory(values)[0].double() - network.mean) / network.scale
    expected = change * network.logit.weight.reshape(3, 4)
    found = explain(detector, values)
    torch.testing.assert_close(found.contributions, expected, rtol=1e-6, atol=1e-8)
    order = expected.sum(0).abs().sort(descending=True).indices[:2].tolist()
    assert list(found.leading()) == order
    assert found.columns == representatives.classes


def test_what_the_network_does_not_read_contributes_nothing(representatives, labelled):
    values = [value[:1] for value in labelled(8)[0]]
    detector = detector_of(representatives, "mlp")
    detector.network.logit[0].weight[:, 4:8] = 0  # the second layer
    found = explain(detector, values)
    assert found.contributions[1].abs().max() == 0
    assert found.contributions[0].abs().max() > 0
    detector.network.mean.copy_(detector.trajectory(values)[0])
    still = explain(detector, values)
    assert still.contributions.abs().max() == 0
    assert still.score == still.baseline


def test_the_nearest_classes_and_nothing_changed(representatives, labelled):
    detector = detector_of(representatives, "lstm", "cosine")
    values, _ = labelled(8, seed=2)
    before = {name: value.clone() for name, value in detector.network.state_dict().items()}
    for k in range(8):
        found = explain(detector, [value[k : k + 1] for value in values])
        distances = detector.trajectory([value[k : k + 1] for value in values])[0]
        names = representatives.classes
        assert found.own == names[int(distances[-1].argmin())]
        for near, row in zip(found.others, distances, strict=True):
            assert near == next(names[i] for i in row.sort(stable=True).indices.tolist() if names[i] != found.own)
    for name, value in detector.network.state_dict().items():
        assert_same_bits(value, before[name])
        assert value.dtype == torch.float32


def test_mistakes(representatives, labelled):
    detector = detector_of(representatives, "mlp")
    with pytest.raises(ValueError, match="values: expected those of one image, got 8"):
        explain(detector, labelled(8)[0])
    with pytest.raises(ValueError):
        explain(detector, [value[:1] for value in labelled(8)[0][:2]])
