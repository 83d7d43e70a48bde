"""Networks whose images are not square, and are aligned to points of their own: in every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import CALLS, write_inputs
from torch import Tensor, nn

from fastadv.cli import app
from fastadv.core.errors import Error
from fastadv.data import IdentityFolder
from fastadv.data.alignment import template
from fastadv.models import load, zoo
from fastadv.runs.inputs import network_name, open_faces_of, open_model

SIZE = (40, 32)
CALLED = tuple(call for call in CALLS if call.name != "denoiser")  # it has no network of faces


class Narrow(nn.Module):
    """`(N, 3, 40, 32)` to `(N, 64)`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8))
        self.fc = nn.Linear(8 * 10 * 8, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(x)).flatten(1))


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The inputs of every command, and two descriptions of the network with different weights."""
    entry = zoo._Entry(build=Narrow, input_size=SIZE, layers=("first", "second"))
    monkeypatch.setitem(zoo._ZOO, "narrow", entry)
    write_inputs(tmp_path)
    for seed, name in enumerate(("mine", "other")):
        state = load("narrow", random_weights_seed=seed).backbone.state_dict()
        torch.save(state, tmp_path / f"{name}.pth")
        lines = ('architecture = "narrow"', f'weights = "{name}.pth"', 'channels = "bgr"')
        (tmp_path / f"{name}.toml").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_command_takes_images_that_are_not_square(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = inputs / "runs"
    runs.mkdir()
    for call in CALLED:
        words = " ".join(call.arguments(inputs, runs))
        words = words.replace("--network synth-mobile", f"--network {inputs}/mine.toml")
        words = words.replace("--network synth-vgg", f"--network {inputs}/other.toml")
        words = words.replace("--surrogate synth-mobile", "--surrogate mine")
        words = words.replace("--model synth-mobile", f"--model {inputs}/mine.toml")
        words = words.replace("--head-epochs 4", "--head-epochs 100")  # the network is not trained
        app(words.split(), standalone_mode=False)
        assert json.loads(capsys.readouterr().out), call.name
    made = IdentityFolder(runs / "impersonate" / "images", size=None)
    assert made.load(made.names[0]).image.shape == (3, *SIZE)
    guard = (
        "--model",
        f"{inputs}/mine.toml",
        "--detector",
        f"{runs}/detect/detectors/mlp-medoid-l2-relative.safetensors",
    )
    app(["detect", "export", *guard, "--out", str(inputs / "guard.pt2"), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["format"]
    app(["report", str(runs / "impersonate"), "--data", str(inputs / "faces"), "--json"], standalone_mode=False)


def test_verify_and_attack_from_a_description(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of every day; the test above, which is slow, has the others."""
    given = ("--data", f"{inputs}/faces", "--model", f"{inputs}/mine.toml")
    with pytest.warns(UserWarning, match="no landmarks"):
        app(["verify", *given, "--pairs", f"{inputs}/pairs.csv", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["clean"]["pairs"] == 32
    out = ("--threshold", "0.4", "--steps", "1", "--limit", "2", "--out", f"{inputs}/run", "--json")
    with pytest.warns(UserWarning, match="no landmarks"):
        app(["attack", "fim", *given, *out], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["images"] == 2


@pytest.mark.filterwarnings("ignore")
def test_a_description_that_changes_is_another_run(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["attack", "fim", "--data", f"{inputs}/faces", "--model", f"{inputs}/mine.toml", "--threshold", "0.4"]
    words += ["--steps", "1", "--limit", "2", "--out", f"{inputs}/run", "--json"]
    app(words, standalone_mode=False)
    text = (inputs / "mine.toml").read_text()
    (inputs / "mine.toml").write_text(text.replace("bgr", "rgb"))
    with pytest.raises(Error, match="channels: expected bgr"):
        app(words, standalone_mode=False)
    (inputs / "mine.toml").write_text(f"{text}mean = 0.4\n")
    with pytest.raises(Error, match="mean: expected"):
        app(words, standalone_mode=False)


def test_faces_are_cut_as_the_network_is_described(inputs: Path) -> None:
    """Landmarks go to the points of the description, and a run knows which these were."""
    rng = np.random.default_rng(0)
    points = template(112) * 0.8 + 10
    lines = []
    for path in sorted((inputs / "faces").rglob("*.png")):
        name = f"{path.parent.name}/{path.stem}"
        lines.append(f"{name} {' '.join(f'{v:.3f}' for v in (points + rng.normal(0, 0.5, (5, 2))).ravel())}")
    (inputs / "points.txt").write_text("\n".join(lines) + "\n")
    own = (template(SIZE) * 0.5 + 5).tolist()
    (inputs / "own.toml").write_text((inputs / "mine.toml").read_text() + f"template = {own}\n")
    sources = []
    for name in ("mine", "own"):
        model = open_model(str(inputs / f"{name}.toml"), None)
        sources.append(open_faces_of(model, inputs / "faces", landmarks=inputs / "points.txt"))
        assert model.template == (None if name == "mine" else tuple(map(tuple, own)))
    usual, other = sources
    name = usual.names[0]
    for source, wanted in ((usual, template(SIZE)), (other, np.array(own))):
        face = source.load(name)
        assert face.image.shape == (3, *SIZE)
        moved = source.landmarks[name] @ face.matrix[:, :2].T + face.matrix[:, 2]
        assert np.abs(moved - wanted).max() < 1.0
    assert usual.identity()["size"] == list(SIZE)
    assert "template" not in usual.identity()
    assert other.identity()["template"] == own


def test_a_crop_of_the_networks_size_is_taken_as_it_is(inputs: Path) -> None:
    model = open_model(str(inputs / "mine.toml"), None)
    square = open_faces_of(model, inputs / "faces")
    face = square.load(square.names[0])
    from fastadv.data.images import to_uint8, write_png

    (inputs / "cut" / "p").mkdir(parents=True)
    write_png(inputs / "cut" / "p" / "0.png", to_uint8(face.image))
    again = IdentityFolder(inputs / "cut", size=model.input_size).load("p/0")
    assert torch.equal(again.image, face.image)


def test_names_of_described_networks() -> None:
    assert network_name("a/b/mine.toml") == "mine"
    assert network_name("mine.toml=w.pth") == "mine"
    assert network_name("iresnet50=w.pth") == "iresnet50"


@pytest.mark.parametrize("name", ["none.toml", "x.onnxx", "mine.tomls"])
def test_other_files_are_refused(name: str, inside: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, said = inside("verify", "--data", tmp_path, "--model", tmp_path / name)
    assert code == 2
    assert "expected one of 'fastadv models'" in said or "expected a description of a network in TOML" in said
