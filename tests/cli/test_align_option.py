"""`--align` in every command that takes `--data`: with a detector that finds the same face anywhere, and with MTCNN."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import CALLS, ON_PHOTOGRAPHS, Call, write_inputs
from documented import SECTIONS, problems
from given_data import data_folder
from numpy.typing import NDArray
from photographs import found, write_detector
from typer.main import get_command

from fastadv.cli import app
from fastadv.cli.options import InputOptions, OneFace, TrainingOptions
from fastadv.core.errors import Error
from fastadv.data import TEMPLATES, Detections

NAMED = {call.name: call for call in CALLS}
EVERY_DAY = ("impersonate", "clean", "identify", "head")


class Anywhere:
    """Finds a face in every picture, where an aligned one is."""

    identity: dict[str, object] = {"name": "anywhere"}  # noqa: RUF012

    def __init__(self, *_: object, **settings: object) -> None:
        self.settings = settings

    def __call__(self, images: Sequence[NDArray[np.uint8]], /) -> list[Detections]:
        return [found([TEMPLATES["arcface"].array], [0.9]) for _ in images]


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("fastadv.models.MTCNN", Anywhere)
    write_inputs(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path


def words_of(call: Call, inputs: Path) -> list[str]:
    words = call.arguments(inputs, inputs / "runs")
    at = words.index("--data") + 2
    return [*words[:at], "--align", "--detector-weights", "any", *words[at:]]


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Every command and the options that it has."""
    command = command or get_command(app)
    yield path, {parameter.name for parameter in command.params}
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


def test_every_command_that_takes_data_takes_align() -> None:
    takers = {path for path, options in commands() if "data" in options}
    assert len(takers) >= 12
    own = {"align", "faces", "least_face", "detector_weights"}
    others = {("report",)}  # aligns by the landmarks that the run has kept
    assert {path for path, options in commands() if own <= options} == takers - others
    assert {path for path, options in commands() if "align" in options} == takers - others


def test_the_next_command_finds_the_same_faces() -> None:
    given = InputOptions(data=Path("photos"), model="m")
    assert {name: value for name, value in given.again.items() if value is not None} == {
        "data": given.data,
        "model": "m",
    }
    aligned = {
        "align": True,
        "faces": "central",
        "least_face": 40,
        "detector_weights": Path("w"),
    }
    found = replace(given, **{**aligned, "faces": OneFace.central}).again
    assert {name: found.get(name) for name in aligned} == aligned
    assert not {"faces", "least_face"} & set(replace(given, align=True).again)


def test_so_does_the_next_command_after_a_training() -> None:
    given = TrainingOptions(data="photos", align=True, least_face=40, landmarks=None)
    assert given.same_faces(given.landmarks) == {"align": True, "least_face": 40}
    assert TrainingOptions(data="photos").same_faces(Path("list.txt")) == {"landmarks": Path("list.txt")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EVERY_DAY)
def test_the_commands_of_every_day(name: str, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(NAMED[name], inputs)
    app(words, standalone_mode=False)
    assert json.loads(capsys.readouterr().out)
    out = inputs / "runs" / name
    assert (out / "landmarks.txt").read_text().count("\n") == 1 + 2 * 96
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    app(words, standalone_mode=False)
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_command_finds_faces_and_prints_what_is_documented(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for call in CALLS:
        app(words_of(call, inputs), standalone_mode=False)
        assert problems(SECTIONS[call.name], json.loads(capsys.readouterr().out)) == [], call.name
    kept = {path.parent.name for path in (inputs / "runs").rglob("landmarks.txt")}
    assert kept >= {call.name for call in CALLS if call.resumes} - {"talfw"}
    given = ("--data", f"{inputs}/faces", "--align", "--pairs", f"{inputs}/pairs.csv", "--model", "synth-mobile")
    app(["models", "check", *given, "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["pairs"] == 32
    words = ("study", "run", "mehr-table-1", *given[:3], "--detector-weights", "any", "--pairs", f"{inputs}/pairs.csv")
    app([*words, "--out", f"{inputs}/runs/study", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["recipes"]
    assert (inputs / "runs" / "study" / "landmarks.txt").is_file()
    app(["report", f"{inputs}/runs/impersonate", "--data", f"{inputs}/faces", "--json"], standalone_mode=False)
    assert "not in the data" not in (inputs / "runs" / "impersonate" / "report.html").read_text()
    capsys.readouterr()
    detector = f"{inputs}/runs/detect/detectors/mlp-medoid-l2-relative.safetensors"
    network = ("--model", "synth-mobile", "--detector", detector)
    image = next((inputs / "faces").rglob("*.png"))
    for section, words in {
        "fastadv detect export": ("detect", "export", *network, "--out", f"{inputs}/runs/guard.pt2"),
        "fastadv detect explain": ("detect", "explain", str(image), *network, "--eer"),
        "fastadv demo": ("demo", "--pairs", "20", "--out", f"{inputs}/runs/demo"),
    }.items():
        app([*words, "--json"], standalone_mode=False)
        assert problems(section, json.loads(capsys.readouterr().out)) == []


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--detector-weights", "w"), "--detector-weights: expected --align with it, got none"),
        (("--least-face", "40"), "--least-face: expected --align with it, got none"),
        (("--faces", "central"), "--faces: expected --align with it, got none"),
        (("--align", "--faces", "all"), "--faces: expected one of largest, central, got 'all'"),
        (("--align", "--landmarks", "l.txt"), "align: expected no landmarks with it, got l.txt"),
        (("--align", "--detector-weights", "nowhere"), "got nowhere, which does not exist"),
        (("--align", "--least-face", "3"), "--least-face"),
    ],
)
def test_a_wrong_value_is_one_sentence(
    more: tuple[str, ...], text: str, inside: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    write_detector(tmp_path / "mtcnn.safetensors")
    weights = ("--detector-weights", tmp_path / "mtcnn.safetensors") if "l.txt" in more else ()
    code, said = inside("verify", "--data", tmp_path, "--model", "synth-vgg", *more, *weights)
    assert (code, text in said) == (2, True), said


@pytest.mark.parametrize("command", [("train",), ("train", "denoiser"), ("detect", "fit")])
def test_synthetic_faces_are_no_photographs(
    command: tuple[str, ...], inside: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    model = () if command[-1] == "denoiser" else ("--model", "synth-vgg")
    more = ("--attack", "fgsm@0.03") if command[-1] == "fit" else ()
    code, said = inside(*command, "--data", "synthetic", *model, *more, "--align", "--out", tmp_path / "out")
    assert (code, "--align: expected photographs, got synthetic faces" in said) == (2, True), said


@pytest.mark.filterwarnings("ignore")
def test_with_the_detector_of_a_file(
    tmp_path: Path, content: Callable[[Path], dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    write_inputs(tmp_path)
    write_detector(tmp_path / "mtcnn.safetensors")
    (call,) = (call for call in ON_PHOTOGRAPHS if call.name == "aligned")
    words = call.arguments(tmp_path, tmp_path)
    app(words, standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["clean"]["pairs"] == 32
    before = content(tmp_path / "aligned")
    detector = json.loads(before["run.json"])["config"]["detector"]
    assert (detector["name"], detector["least_face"], len(detector["weights"])) == ("mtcnn", 60, 64)
    assert detector["refine"] is True
    app(words, standalone_mode=False)
    assert content(tmp_path / "aligned") == before
    with pytest.raises(Error, match="expected the options of --align that the run began with"):
        app([*words, "--least-face", "70"], standalone_mode=False)
    assert content(tmp_path / "aligned") == before


@pytest.mark.faces
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("mobilefacenet", "mobilefacenet_relu6_ms1m_arcface"),
        ("mobileface_v2", "mobileface_v2"),
        ("edgeface_xs", "edgeface_xs_cosface"),
    ],
)
def test_the_labelled_pairs_of_photographs_are_verified_from_their_folder(model: str, file: str, fastadv: Any) -> None:
    data = data_folder("photographs", "weights")
    photos, weights = data / "photographs", data / "weights"
    words = ("verify", "--data", photos, "--pairs", photos / "master.csv", "--model", model)
    network = ("--weights", weights / f"{file}.safetensors")
    done = fastadv(*words, *network, "--align", "--detector-weights", weights / "mtcnn.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    clean = json.loads(done.stdout)["clean"]
    assert (clean["pairs"], clean["auc"]) == (300, 1.0)
    assert clean["accuracy"] >= 0.99
