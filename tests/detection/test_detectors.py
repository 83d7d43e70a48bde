"""Detectors as they are deployed: from images to flags, through one file, differentiable to the pixels."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace

import pytest
import torch
from damage import mutated
from safetensors.torch import save_file

from fastadv.detection import (
    Architecture,
    DetectionFileError,
    Detector,
    Examples,
    FitConfig,
    LayerTap,
    Network,
    Trajectory,
    auc,
    centroids,
    fit_network,
    load_detector,
    medoids,
)
from fastadv.detection.detectors import calibration_tensors, describe
from fastadv.testing.tolerances import assert_same_bits


def network(kind="mlp", layers=3, width=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        made = Network(Architecture(kind=kind, layers=layers, width=width, hidden=6))
    made.scale.fill_(1.5)
    return made.eval().requires_grad_(False)


@pytest.fixture
def detector(representatives):
    made = Detector(
        trajectory=Trajectory(representatives=representatives, metric="cosine"),
        network=network(),
        provenance={"attacks": "bim, cw"},
    )
    return made.calibrated(torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.9]), rates=(0.5, 1.0))


def test_from_images_to_flags(tiny, faces):
    """The whole path on a toy: faces of two tints, attacked ones are moved towards the other tint."""

    def made_of(count, seed, attacked):
        x = 0.5 + 0.1 * (faces(count, seed) - 0.5)
        tint = (torch.arange(count) % 2).float()[:, None, None] * 0.4 - 0.2
        x[:, 0] += tint
        x[:, 1] -= tint * (1.0 if attacked else 0.0)
        return x

    tap = LayerTap(model=tiny)
    with torch.no_grad():
        natural, attacked = tap(made_of(80, 0, False)).values, tap(made_of(80, 1, True)).values
        held = tap(made_of(40, 2, False)).values, tap(made_of(40, 3, True)).values
        labels = torch.arange(80) % 2
        made = centroids([(natural, labels)], layers=tap.names, classes=("blue", "red"), model=tiny.name)
        trajectory = Trajectory(representatives=made)
        embedded = torch.cat([trajectory(natural), trajectory(attacked)])
    given = Examples(embeddings=embedded, groups=torch.tensor([0] * 80 + [1] * 80), attacks=("tint",))
    fitted = fit_network(FitConfig(kind="lstm", hidden=8, epochs=30, batch=32, lr=0.02), given)
    detector = Detector(trajectory=trajectory, network=fitted.network)
    calm, moved = (detector.score(values) for values in held)
    assert auc(calm, moved) > 0.95
    detector = detector.calibrated(calm, moved, rates=(0.1,))
    assert LayerTap(model=tiny, layers=detector.layers).names == tap.names
    with torch.no_grad():
        fresh = detector.score(tap(made_of(100, 4, False)).values)
    assert float((fresh >= detector.thresholds.at_false_alarm(0.1)).float().mean()) < 0.35


def test_the_gradient_reaches_the_pixels(tiny, faces):
    tap = LayerTap(model=tiny)
    x = faces(8)
    with torch.no_grad():
        made = centroids([(tap(x).values, torch.arange(8) % 4)], layers=tap.names, classes=tuple("abcd"), model="tiny")
    for kind in ("mlp", "lstm"):
        detector = Detector(trajectory=Trajectory(representatives=made), network=network(kind))
        y = faces(1, 5).requires_grad_(True)
        before = detector.score(tap(y).values)
        (gradient,) = torch.autograd.grad(before.sum(), y)
        step = 1e-3 * gradient / gradient.norm()
        with torch.no_grad():
            rise = detector.score(tap(y + step).values) - detector.score(tap(y - step).values)
        assert float(rise) == pytest.approx(2e-3 * float(gradient.norm()), rel=0.05)


@pytest.mark.parametrize("kind", ["linear", "mlp", "lstm"])
@pytest.mark.parametrize("make", [centroids, medoids])
def test_round_trip(kind, make, labelled, tmp_path):
    names = {"layers": ("a", "b", "c"), "classes": ("w", "x", "y", "z"), "model": "m"}
    detector = Detector(
        trajectory=Trajectory(representatives=make([labelled(40)], **names), metric="l2"), network=network(kind)
    )
    detector.save(tmp_path / "d.safetensors")
    read = load_detector(tmp_path / "d.safetensors")
    values, _ = labelled(7, seed=3)
    assert_same_bits(read.score(values), detector.score(values))
    assert read.network.architecture == detector.network.architecture
    assert read.thresholds is None
    assert read.layers == ("a", "b", "c")
    assert not any(p.requires_grad for p in read.network.parameters())
    assert not read.network.training


def test_a_file_that_is_written_over_changes_nothing_that_was_read_from_it(detector, labelled, tmp_path):
    """A service that runs keeps its detector when somebody copies another one over the file, or cuts it short."""
    path = tmp_path / "d.safetensors"
    detector.save(path)
    read = load_detector(path)
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.truncate(9)
    values, _ = labelled(7, seed=3)
    assert_same_bits(read.score(values), detector.score(values))
    assert_same_bits(read.thresholds.scores, detector.thresholds.scores)


def test_thresholds_and_provenance_are_kept(detector, tmp_path):
    detector.save(tmp_path / "d.safetensors")
    read = load_detector(tmp_path / "d.safetensors")
    assert read.thresholds == detector.thresholds
    assert_same_bits(read.thresholds.scores, detector.thresholds.scores)
    assert read.provenance == {"attacks": "bim, cw"}
    assert read.trajectory.metric == "cosine"
    assert read.trajectory.representatives.provenance == {"data": "made up"}


def test_natural_images_alone_and_where_they_come_from(detector, tmp_path):
    about = {"data": "mine", "people": "3", "sha256": "0" * 64}
    natural = torch.randn(130, generator=torch.Generator().manual_seed(1))
    made = replace(detector, thresholds=None).calibrated(natural, rates=(0.01, 0.1), calibrated_on=about)
    made.save(tmp_path / "d.safetensors")
    read = load_detector(tmp_path / "d.safetensors").thresholds
    assert read == made.thresholds
    assert (read.equal_error, read.adversarial, read.calibrated_on) == (None, 0, about)
    assert_same_bits(read.scores, natural.sort().values)
    assert_same_bits(read.p_values(natural), made.thresholds.p_values(natural))


def test_a_file_of_an_earlier_version_has_its_thresholds_and_no_calibration_set(detector, tmp_path):
    old = replace(detector.thresholds, scores=None)
    path = rewritten(replace(detector, thresholds=old), tmp_path / "d.safetensors", without=("calibrated_on",))
    read = load_detector(path)
    assert read.thresholds == old
    assert read.thresholds.scores is None
    assert read.thresholds.p_values(torch.zeros(2)) is None
    assert read.thresholds.at_false_alarm(0.5) == old.false_alarm[0]
    with pytest.raises(ValueError, match=r"rate: expected a calibrated one .0\.5, 1., got 0\.7"):
        read.thresholds.at_false_alarm(0.7)
    with pytest.raises(ValueError, match="rate: expected a rate that 2 natural images can measure, got 0.1; needs"):
        read.thresholds.at_false_alarm(0.1)
    read.save(tmp_path / "again.safetensors")
    assert load_detector(tmp_path / "again.safetensors").thresholds == old


def test_other_descriptions_and_bytes_give_one_sentence(detector, tmp_path):
    """Each value of the description replaced by others; the file's bytes cut, flipped and overwritten."""
    path, chance, refused = tmp_path / "d.safetensors", random.Random(5), 0
    detector.save(path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    about = json.loads(header["__metadata__"]["about"])
    odd = [None, -1, 2**70, 1e308, "x", [], [[]], {}, {"a": 1}, True, [None], "\ud800", 10**400]
    made = [mutated(whole, chance) for _ in range(150)]
    for name in about:
        for value in odd:
            header["__metadata__"]["about"] = json.dumps({**about, name: value})
            text = json.dumps(header).encode()
            made.append(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    for data in made:
        path.write_bytes(data)
        try:
            load_detector(path)
        except DetectionFileError:
            refused += 1
    assert refused > 200


def test_damaged_files(detector, damaged, tmp_path):
    path = tmp_path / "d.safetensors"
    detector.save(path)
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(
        DetectionFileError, match=r"d\.safetensors: expected a whole safetensors file of the kind 'detector', got"
    ):
        load_detector(path)


def rewritten(detector, path, *, about=None, tensors=None, without=()):
    said = {
        **detector.trajectory.representatives.about(),
        **{"metric": "cosine", "architecture": "mlp", "hidden": 6, "dropout": 0.5, "detector_provenance": {}},
        **describe(detector.thresholds),
        **(about or {}),
    }
    held = {
        **detector.trajectory.representatives.tensors(),
        **{f"network.{k}": v for k, v in detector.network.state_dict().items()},
        **calibration_tensors(detector.thresholds),
        **(tensors or {}),
    }
    said = {name: value for name, value in said.items() if name not in without}
    header = {"format": "fastadv.detection", "version": "1", "kind": "detector", "about": json.dumps(said)}
    save_file({k: v for k, v in held.items() if v is not None}, path, header)
    return path


def test_the_rewriting_itself(detector, tmp_path):
    read = load_detector(rewritten(detector, tmp_path / "d.safetensors"))
    assert read.thresholds == detector.thresholds


FILE_MISTAKES = [
    ({"about": {"metric": "l1"}}, r"metric: expected one of l2, cosine, l2\+cosine, got 'l1'"),
    ({"about": {"architecture": "cnn"}}, "architecture: expected one of linear, mlp, lstm, got 'cnn'"),
    ({"about": {"architecture": "lstm"}}, r"expected the tensor 'network\.lstm\.weight_ih_l0', got a file without it"),
    ({"about": {"hidden": 0}}, "hidden: expected an integer from 1 to 1048576, got 0"),
    ({"about": {"hidden": 1 << 60}}, "hidden: expected an integer from 1 to 1048576, got 1152921504606846976"),
    ({"about": {"hidden": 1 << 20}}, r"'network\.logit\.0\.weight': expected .*, got torch.float32 \(6, 12\)"),
    ({"about": {"hidden": True}}, "hidden: expected an integer from 1 to 1048576, got True"),
    ({"about": {"dropout": 1.0}}, r"dropout: expected a share in \[0, 1\), got 1\.0"),
    ({"about": {"dropout": "half"}}, "dropout: expected a finite number, got 'half'"),
    ({"about": {"dropout": 10**400}}, "dropout: expected a finite number, got 1000.*"),
    ({"about": {"equal_error": None}}, "equal_error: expected a finite number, got None"),
    (
        {"about": {"false_alarm": [1.0]}},
        r"false_alarm_rates: expected 1 rates in \[0, 1\], as many as false_alarm has, got \[0\.5, 1\.0\]",
    ),
    ({"about": {"false_alarm_rates": [0.1, 7.0]}}, r"false_alarm_rates: expected .*, got \[0.1, 7.0\]"),
    ({"about": {"false_alarm": [1.0, "x"]}}, "false_alarm: expected a list of finite numbers, got .*"),
    ({"about": {"natural": -1}}, "natural: expected an integer from 1 to 1048576, got -1"),
    ({"tensors": {"network.mean": torch.zeros(3, 3)}}, r"'network\.mean': expected .*, got torch.float32 \(3, 3\)"),
    ({"tensors": {"network.scale": torch.zeros(3, 4)}}, r"network\.scale: expected positive numbers, got 0.0"),
    (
        {"tensors": {"network.logit.0.bias": torch.full((6,), torch.nan)}},
        r"'network\.logit\.0\.bias': expected finite values, got NaN or infinity",
    ),
    (
        {"tensors": {"network.logit.0.bias": None}},
        r"expected the tensor 'network\.logit\.0\.bias', got a file without it",
    ),
    ({"tensors": {"spare": torch.zeros(1)}}, "expected no further tensors, got 1 that do not belong, first 'spare'"),
    ({"about": {"kind": "medoid"}}, "expected the tensor 'members', got a file without it"),
    (
        {"about": {"adversarial": 0, "false_alarm": [], "false_alarm_rates": []}},
        r"false_alarm_rates: expected one or more where there are no adversarial images, got \[\]",
    ),
    ({"about": {"calibrated_on": [1]}}, r"calibrated_on: expected texts by name, got \[1\]"),
    (
        {"tensors": {"calibration_scores": torch.zeros(3)}},
        r"'calibration_scores': expected torch.float32 \(2\), got .*",
    ),
    (
        {"tensors": {"calibration_scores": torch.tensor([2.0, 1.0])}},
        "calibration_scores: expected scores in ascending order, got 'others'",
    ),
    (
        {"tensors": {"calibration_scores": torch.tensor([2.0, torch.nan])}},
        "'calibration_scores': expected finite values, got NaN or infinity",
    ),
]


@pytest.mark.parametrize(("change", "message"), FILE_MISTAKES, ids=[str(i) for i in range(len(FILE_MISTAKES))])
def test_hostile_files(detector, tmp_path, change, message):
    with pytest.raises(DetectionFileError, match=message):
        load_detector(rewritten(detector, tmp_path / "d.safetensors", **change))


def test_an_unfinished_write_leaves_nothing(detector, tmp_path):
    with pytest.raises(OSError, match=r"missing"):
        detector.save(tmp_path / "missing" / "d.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_mistakes(detector):
    with pytest.raises(
        ValueError,
        match=r"network: expected one for embeddings of \(3, 4\), like the trajectory's, got one for \(3, 5\)",
    ):
        replace(detector, network=network(width=5))
    with pytest.raises(
        ValueError, match=r"network: expected one in evaluation mode, got one in training mode; call \.eval\(\)"
    ):
        replace(detector, network=Network(detector.network.architecture))


def test_what_is_said_of_thresholds(detector):
    assert describe(None) == {}
    told = {name: value for name, value in asdict(detector.thresholds).items() if name != "scores"}
    assert describe(detector.thresholds) == {"calibrated": True, **told}


@pytest.mark.gpu
def test_on_a_device_and_in_a_graph(detector, labelled, tmp_path):
    values, _ = labelled(6, seed=4)
    expected = detector.score(values)
    detector.save(tmp_path / "d.safetensors")
    moved = load_detector(tmp_path / "d.safetensors", device="cuda")
    held = [v.cuda() for v in values]
    with torch.no_grad():
        torch.testing.assert_close(moved.score(held).cpu(), expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = moved.score(held)
        graph.replay()
    torch.testing.assert_close(out.cpu(), expected)


def test_one_detector_is_one_file_whatever_the_process(detector, tmp_path):
    """The library that writes the file orders its metadata anew each time."""
    written = set()
    for k in range(8):
        detector.save(tmp_path / f"{k}.safetensors")
        written.add((tmp_path / f"{k}.safetensors").read_bytes())
    assert len(written) == 1
