"""An ONNX file with a TOML file beside it, which says how its images are prepared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_files import face_network, saved

from fastadv.cli import app
from fastadv.core.errors import Error
from fastadv.core.templates import TEMPLATES
from fastadv.data import write_png
from fastadv.models import load, load_onnx
from fastadv.runs.inputs import network_name, open_model

LINES = ('weights = "net.onnx"', "mean = [120, 110, 100]", "std = 128", "range = 255")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path, face_network())
    return tmp_path


def described(folder: Path, *lines: str, name: str = "mine.toml") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def test_colours_range_and_template_are_as_described(folder: Path) -> None:
    file = described(folder, *LINES, 'channels = "bgr"', 'template = "facenet"')
    model = load(file)
    assert (model.name, model.channels, model.input_size, network_name(str(file))) == ("mine", "bgr", (16, 16), "mine")
    np.testing.assert_allclose(model.template, TEMPLATES["facenet"].array / 10)
    plain = load_onnx(folder / "net.onnx", mean=(0.0,) * 3, std=(1.0,) * 3)
    images = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([120.0, 110.0, 100.0]).view(3, 1, 1) / 255, 128 / 255
    torch.testing.assert_close(model.features(images), plain.features(((images - mean) / std).flip(1)))
    assert torch.equal(open_model(str(file), None)(images), model(images))
    assert not model.training


def test_a_command_takes_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for person in range(4):
        (folder / "faces" / f"p{person}").mkdir(parents=True)
        for image in range(2):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            write_png(folder / "faces" / f"p{person}" / f"{image}.png", pixels)
    lines = [f"p{k}/0,p{k}/1,1" for k in range(4)] + [f"p{k}/0,p{(k + 1) % 4}/1,0" for k in range(4)]
    (folder / "pairs.csv").write_text("\n".join(["first,second,same", *lines]) + "\n")
    words = ["verify", "--data", f"{folder}/faces", "--pairs", f"{folder}/pairs.csv", "--json", "--model"]
    app([*words, str(described(folder, *LINES, "input_size = 16"))], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["clean"]["pairs"] == 8


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (('weights = "net.onnx"', "mean = 0.5"), "mean, std: expected both or none"),
        (('weights = "gone.onnx"', "mean = 0.5", "std = 0.5"), "gone.onnx"),
        ((*LINES, "input_size = 17"), "17"),
        ((*LINES, 'template = "sphereface"'), "template: expected one of the shape of the input, 16 x 16"),
        ((*LINES, 'architecture = "iresnet50"'), "no architecture with the ONNX file .*net.onnx, .* got iresnet50"),
    ],
)
def test_what_does_not_fit_is_refused(lines: tuple[str, ...], message: str, folder: Path) -> None:
    with pytest.raises(Error, match=message):
        load(described(folder, *lines))


def test_random_weights_are_refused(folder: Path) -> None:
    with pytest.raises(Error, match="random_weights_seed: expected none for a description of an ONNX file"):
        load(described(folder, *LINES), random_weights_seed=1)
