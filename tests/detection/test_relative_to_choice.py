"""The reading `relative` with the class that the network's head chooses."""

import copy
from dataclasses import replace

import pytest
import torch
from watched import relative_of

from fastadv.core.notices import Notice
from fastadv.defences.evade_detector import WatchedModel
from fastadv.detection import LayerTap, Trajectory, load_detector
from fastadv.detection.guard import Guard
from fastadv.testing.tolerances import assert_same_bits

HEAD = ("zoe", "dan", "ada", "bob", "yan")


def headed(representatives, kind="mlp", **fields):
    return relative_of(representatives, kind, head=HEAD, **fields)


def with_head(model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model.head = torch.nn.Linear(3, len(HEAD)).eval()
    return model


def test_the_class_that_the_head_chooses(representatives, labelled):
    values, _ = labelled(5, seed=4)
    detector = headed(representatives)
    own = detector.trajectory.own_of(torch.tensor([1, 0, 3, 2, 4]))
    assert own.tolist() == [3, -1, 1, 0, -1]
    nearest, chosen = detector.score(values), detector.score(values, own.clamp(min=0))
    assert_same_bits(detector.score(values, own), torch.where(own < 0, nearest, chosen))
    turned = replace(representatives, classes=("a", "b", "c", "bob"))
    other = detector.with_representatives(turned)  # the names count, not the places
    assert other.trajectory.own_of(torch.tensor([1, 3])).tolist() == [-1, 3]
    assert relative_of(representatives).trajectory.own_of(torch.tensor([1])) is None


@pytest.mark.parametrize("count", [1, 32])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_guard_reads_the_choice_of_the_head(tiny, faces, representatives, count, backend):
    detector, x = headed(representatives, "lstm", backend=backend), faces(count)
    guard = Guard(model=with_head(tiny), detector=detector, threshold=0.0)
    with torch.no_grad():
        tapped = LayerTap(model=tiny)(x)
        own = detector.trajectory.own_of(tiny.logits(x).argmax(1))
        expected = detector.score(tapped.values, own)
        claimed = torch.where(torch.arange(count) % 2 == 0, 2, own)
        claims = detector.score(tapped.values, claimed)
    torch.testing.assert_close(guard(x).scores, expected, rtol=1e-5, atol=1e-5)
    names = [None if i % 2 else "cyd" for i in range(count)]
    torch.testing.assert_close(guard(x, names).scores, claims, rtol=1e-5, atol=1e-5)


def test_the_head_through_a_file_and_an_attack_that_sees_it(tiny, faces, representatives, tmp_path):
    detector, x = headed(representatives), faces(6)
    detector.save(tmp_path / "d.safetensors")
    read = load_detector(tmp_path / "d.safetensors")
    assert read.trajectory.head == HEAD
    watched = WatchedModel(with_head(tiny), read)
    with torch.no_grad():
        scores = Guard(model=tiny, detector=detector, threshold=0.0)(x).scores
        torch.testing.assert_close(watched(x)[:, -1], scores, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(watched.logits(x)[:, -1], scores, rtol=1e-5, atol=1e-5)


def test_another_head_and_none(tiny, faces, representatives, guard):
    """A network without the head is told of, and the nearest class is used."""
    detector = headed(representatives)
    with pytest.raises(ValueError, match="detector: expected one fitted with the model's 9 logits, got one with 5"):
        Guard(model=guard.model, detector=detector, threshold=0.0)
    tiny.head = None
    with pytest.warns(Notice, match="fitted with the choices of a class head, which this network lacks"):
        bare = Guard(model=tiny, detector=detector, threshold=0.0)
    nearest = Guard(model=tiny, detector=relative_of(representatives), threshold=0.0)
    assert_same_bits(bare(faces(3)).scores, nearest(faces(3)).scores)
    with pytest.raises(ValueError, match="head: expected None with the reading 'raw', got 5 names"):
        Trajectory(representatives=representatives, head=HEAD)
    with pytest.raises(ValueError, match="head: expected distinct names, got 2, 1 of them distinct"):
        Trajectory(representatives=representatives, reading="relative", head=("a", "a"))


@pytest.mark.gpu
def test_a_recorded_guard(tiny, faces, representatives):
    names = ["ada", None, "dan", "bob", "cyd"]
    for detector, model in ((relative_of(representatives, "lstm"), tiny), (headed(representatives), with_head(tiny))):
        host, device = (
            Guard(model=copy.deepcopy(model).to(d), detector=detector, threshold=0.0) for d in ("cpu", "cuda")
        )
        for count in (5, 1, 3):
            for claimed in (names[:count], None):
                found = device(faces(count), claimed)
                torch.testing.assert_close(found.scores.cpu(), host(faces(count), claimed).scores, rtol=1e-4, atol=1e-4)
