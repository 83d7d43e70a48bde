"""`fastadv align` as a command: the folder, what is printed, what is refused."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.main import get_command

from fastadv.cli import app
from fastadv.cli.align import Choice
from fastadv.data import TEMPLATES
from fastadv.models.mtcnn.weights import load_cascade
from fastadv.studies.align.folder import CHOICES


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Random weights with biases by which any window is a face."""
    state = {k: v.contiguous() for k, v in load_cascade(None, random_weights_seed=1).state_dict().items()}
    for name in ("pnet.conv4_1.bias", "rnet.dense5_1.bias", "onet.dense6_1.bias"):
        state[name] = state[name] + state[name].new_tensor([-2.0, 2.0])
    path = tmp_path_factory.mktemp("detector") / "mtcnn.safetensors"
    save_file(state, str(path))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for k in range(3):
        (root / f"p{k}").mkdir()
        pixels = np.random.default_rng(k).integers(0, 256, (60, 50 + k, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"p{k}" / "a.png")
    (root / "p0" / "broken.jpg").write_bytes(b"no image")
    return root


def test_a_folder_of_faces_and_the_next_command(fastadv, photos, detector, tmp_path):
    words = ("align", photos, "--out", tmp_path / "out", "--detector-weights", detector)
    done = fastadv(*words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["pictures"], found["unreadable"]) == (4, 1)
    assert found["found"] > 0
    again = fastadv(*words)
    assert again.returncode == 0, again.stderr
    assert "fastadv align" in again.stdout
    assert "p0/broken.jpg" in again.stderr
    assert found["faces"] == 0 or f"next: fastadv verify --data {tmp_path / 'out'}" in again.stdout
    assert {"align.json", "report.jsonl", "landmarks.txt"} <= {p.name for p in (tmp_path / "out").iterdir()}
    first_pass = fastadv(*words, "--no-refine", "--json")  # other landmarks: not into the same folder
    assert (first_pass.returncode, "detector.refine" in first_pass.stderr) == (2, True), first_pass.stderr
    assert fastadv(*words, "--no-refine", "--fresh", "--json").returncode == 0
    assert '"refine"' not in (tmp_path / "out" / "align.json").read_text()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--faces", "smallest"), "--faces: expected one of largest, central, all, got 'smallest'"),
        (("--template", "nose"), "template: expected one of arcface, sphereface, facenet, dlib, a file, got 'nose'"),
        (("--margin", "-1"), "margin: expected a number in [0, 2], got -1"),
        (("--least-score", "7"), "least_score: expected a number in [0, 1], got 7"),
        (("--least-score", "nan"), "--least-score: expected a finite number, got nan"),
        (("--device", "xpu"), "--device: expected cpu"),
        (("--workers", "0"), "--workers"),
        (("--least-face", "3"), "--least-face"),
        (("--detector-weights", "nowhere"), "weights: expected a safetensors file or a torch checkpoint, got nowhere"),
    ],
)
def test_a_wrong_value_is_one_sentence(more, text, inside, photos, detector, tmp_path):
    code, said = inside("align", photos, "--out", tmp_path / "out", "--detector-weights", detector, *more)
    assert (code, text in said) == (2, True), said
    assert not (tmp_path / "out").exists()


def test_the_names_are_those_of_the_library():
    assert [choice.value for choice in Choice] == list(CHOICES)
    (template,) = (p.help for p in get_command(app).commands["align"].params if p.name == "template")
    for name, made in TEMPLATES.items():
        assert f"{name} ({made.size[1]}x{made.size[0]})" in template


def test_places_are_checked(inside, photos, detector, tmp_path):
    before = sorted(photos.rglob("*"))
    weights = ("--detector-weights", detector)
    for out, text in (
        (photos / "out", "--out: expected a folder outside of PHOTOS"),
        (photos.parent, "--out: expected a folder that does not hold PHOTOS"),
        (detector, "--out: expected a folder, got the file"),
    ):
        code, said = inside("align", photos, "--out", out, *weights)
        assert (code, text in said) == (2, True), said
    code, said = inside("align", tmp_path / "nowhere", "--out", tmp_path / "out", *weights)
    assert (code, "expected a folder, got no such folder" in said) == (2, True), said
    assert sorted(photos.rglob("*")) == before


def test_without_weights_the_error_says_how_to_get_them(inside, photos, tmp_path, monkeypatch):
    from importlib import metadata

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    code, said = inside("align", photos, "--out", tmp_path / "out")
    assert (code, "pip install --no-deps facenet-pytorch" in said) == (2, True), said
