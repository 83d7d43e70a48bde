"""Which preprocessing fits a network: on networks that depend on one, and on published ones with real faces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from given_data import data_folder

from fastadv.cli import app
from fastadv.core.errors import Error
from fastadv.data import LFW, SyntheticFaces
from fastadv.models import FaceModel, load
from fastadv.runs.inputs import PairChoice
from fastadv.studies.preprocessing import USUAL, check, separation

FILES = {
    "mobilefacenet": "mobilefacenet_relu6_ms1m_arcface.safetensors",
    "mobileface_v2": "mobileface_v2.safetensors",
    "edgeface_xs": "edgeface_xs_cosface.safetensors",
}


@pytest.fixture(scope="module")
def people() -> SyntheticFaces:
    return SyntheticFaces(identities=40, per_identity=4, seed=3)


def test_separation_is_d_prime() -> None:
    positive, negative = np.array([1.0, 3.0]), np.array([-1.0, 0.0, 1.0])
    assert separation(positive, negative) == pytest.approx(2 / np.sqrt((1 + 2 / 3) / 2))
    assert separation(np.ones(3), np.zeros(3)) == 0


def test_the_described_preprocessing_of_a_shipped_network_fits(people: SyntheticFaces) -> None:
    found = check(people, people.pairs(100, seed=1), load("synth-vgg"))
    assert found.fits
    assert (found.model, found.pairs, len(found.tried)) == ("synth-vgg", 100, 2 * len(USUAL))
    described, *others = found.tried
    assert (described.channels, described.mean, described.std) == ("rgb", (0.5,) * 3, (0.5,) * 3)
    seen = [(each.channels, each.mean, each.std) for each in found.tried]
    assert len(set(seen)) == len(seen)
    assert {each.channels for each in others} == {"rgb", "bgr"}


@pytest.mark.parametrize("wrong", [{"channels": "bgr"}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}, {"mean": (0.9,) * 3}])
def test_a_wrong_description_is_found(people: SyntheticFaces, wrong: dict) -> None:
    described = load("synth-vgg").replace(**wrong)
    found = check(people, people.pairs(100, seed=1), described)
    assert not found.fits
    best = found.tried[found.best]
    assert best.channels == "rgb"
    assert best.mean == (0.5,) * 3
    assert best.separation > 1.02 * found.tried[0].separation
    assert len(found.tried) == 2 * len(USUAL) + (0 if described.mean.flatten()[0] != 0.9 else 2)


def test_an_unusual_description_is_tried_in_both_orders(people: SyntheticFaces) -> None:
    model = load("synth-mobile").replace(mean=(0.4, 0.5, 0.6), std=(0.3, 0.4, 0.5))
    tried = check(people, people.pairs(40, folds=2, seed=1), model).tried
    own = [each.channels for each in tried if each.mean == pytest.approx((0.4, 0.5, 0.6))]
    assert own == ["rgb", "bgr"]


def test_grey_networks_are_refused(people: SyntheticFaces) -> None:
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())
    model = FaceModel(network, mean=(0.5,), std=(0.5,), name="grey").eval()
    with pytest.raises(Error, match="model: expected one for three colours, got 1 channels"):
        check(people, people.pairs(40, folds=2), model)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], people: SyntheticFaces) -> None:
    from fastadv.data import write_pairs_csv
    from fastadv.data.synthetic import write_faces

    pairs = people.pairs(100, seed=1)
    write_pairs_csv(tmp_path / "pairs.csv", pairs)
    write_faces(people, sorted({name for pair in pairs for name in (pair.first, pair.second)}), tmp_path / "faces")
    (tmp_path / "m.toml").write_text('architecture = "synth-vgg"\nchannels = "bgr"\n')
    words = ["models", "check", "--model", f"{tmp_path}/m.toml", "--data", f"{tmp_path}/faces"]
    words += ["--pairs", f"{tmp_path}/pairs.csv"]
    app(words, standalone_mode=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "bgr (x - 127.5) / 127.5 (described)" in said
    assert "another preprocessing fits better" in said
    assert 'channels = "rgb", mean = [127.5, 127.5, 127.5], std = [127.5, 127.5, 127.5], range = 255' in said
    (tmp_path / "m.toml").write_text('architecture = "synth-vgg"\n')
    app(words, standalone_mode=False)
    assert "the described preprocessing fits" in " ".join(capsys.readouterr().out.split())
    app([*words, "--limit", "40", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"], found["fits"], found["best"]) == (40, found["fits"], found["best"])


@pytest.mark.faces
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobileface_v2", "mobilefacenet", "edgeface_xs"])
def test_published_networks_fit_as_they_are_described_and_not_otherwise(name: str) -> None:
    data = data_folder("weights")
    model = load(name, data / "weights" / FILES[name])
    source = LFW(data / "lfw")
    pairs = PairChoice(limit=100 if name == "mobileface_v2" else 300).open(source)  # good networks need more
    found = check(source, pairs, model.replace(channels="bgr"))
    assert not found.fits
    best = found.tried[found.best]
    assert best.channels == "rgb"
    own = tuple(tuple(value.flatten().tolist()) for value in (model.mean, model.std))
    assert best.mean == pytest.approx(own[0], abs=1e-6)
    # the same preprocessings are tried of the network as it is described, which fits by the same rule
    (described,) = (each for each in found.tried if (each.channels, each.mean, each.std) == ("rgb", *own))
    assert best.separation < 1.02 * described.separation
    if name == "mobileface_v2":
        assert check(source, pairs, model).fits
