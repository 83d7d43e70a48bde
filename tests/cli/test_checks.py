"""What every command refuses before it works, and what is said of it."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import torch
import typer
from typer.main import get_command

import fastadv
from fastadv.cli import app
from fastadv.cli.fields import Changed, Without, takes_groups
from fastadv.core.errors import Error, MissingPackageError
from fastadv.core.extras import EXTRAS, extras, optional_packages
from fastadv.models import open_device

MODEL = ("--model", "synth-mobile")


def commands(command=None, path=()):
    """Every command below ours that has options, with its path."""
    command = command or get_command(app)
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))
    if path:
        yield path, command


ALL = dict(commands())
DATA = [path for path, c in ALL.items() if {"data", "out"} <= {p.name for p in c.params} and path != ("report",)]


FILES = ("score", "calibrate")  # commands whose --out is a file


def needed(path, faces, pairs, out):
    """Options with which a command would run."""
    words = {
        ("attack",): ("fim", "--threshold", "0.5"),
        ("verify",): ("--pairs", pairs),
        ("talfw",): ("--pairs", pairs),
        ("transfer",): ("--network", "synth-mobile", "--network", "synth-vgg", "--method", "fim:1"),
        ("defend",): ("--pairs", pairs, "--defence", "mean:3", "--attack", "ffm"),
        ("detect", "fit"): ("--attack", "bim:1"),
        ("study", "run"): ("massoli-table-3",),
        **dict.fromkeys((("detect", "score"), ("detect", "calibrate")), ("nowhere.safetensors",)),
    }.get(path, ())
    model = () if path in (("transfer",), ("train", "denoiser"), ("study", "run")) else MODEL
    return (*path, *words, "--data", faces, *model, "--out", out)


@pytest.mark.parametrize("path", DATA)
def test_a_run_inside_its_data_is_refused_and_so_is_the_reverse(path, inside, faces, pairs):
    before = sorted(faces.rglob("*"))
    out = faces / ("out.csv" if path[-1] in FILES else "out")
    code, said = inside(*needed(path, faces, pairs, out))
    assert (code, "--out: expected a folder outside of --data" in said) == (2, True), said
    if path[-1] not in FILES:
        code, said = inside(*needed(path, faces, pairs, faces.parent))
        assert (code, "--out: expected a folder that does not hold --data" in said) == (2, True), said
    assert sorted(faces.rglob("*")) == before


@pytest.mark.parametrize("path", DATA)
def test_a_place_that_cannot_be_written_is_refused(path, inside, faces, pairs, tmp_path):
    (tmp_path / "file").write_text("mine")
    if path[-1] in FILES:
        for out, text in ((tmp_path, "expected a file to write"), (tmp_path / "no" / "s.csv", "a folder that exists")):
            code, said = inside(*needed(path, faces, pairs, out))
            assert (code, text in said) == (2, True), said
        return
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        code, said = inside(*needed(path, faces, pairs, out))
        assert (code, "--out: expected a folder, got" in said) == (2, True), said
    code, said = inside(*needed(path, faces, pairs, tmp_path / ("x" * 300)))
    assert (code, "--out" in said) == (2, True), said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("path", [path for path, c in ALL.items() if "device" in {p.name for p in c.params}])
@pytest.mark.parametrize("device", ["xpu", "meta", "nonsense", "cuda:99", "99999999999999999999"])
def test_a_device_that_is_not_there_is_one_sentence(path, device, inside, faces, pairs, tmp_path):
    if path == ("serve",):
        words = ("serve", *MODEL, "--detector", "nowhere")
    elif path == ("detect", "evaluate"):
        words = (*path, tmp_path, "--data", faces, *MODEL)
    elif path in (("identify",), ("models", "check")):
        words = (*path, "--data", faces, *MODEL)
    elif path == ("align",):
        words = (*path, faces, "--out", tmp_path / "out")
    else:
        words = needed(path, faces, pairs, tmp_path / ("s.csv" if path[-1] in FILES else "out"))
    code, said = inside(*words, "--device", device)
    assert (code, "error: --device: expected cpu" in said) == (2, True), said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_python_says_the_same_of_a_device():
    assert open_device("cpu:0").type == "cpu"
    for device in ("cuda", "cuda:0", torch.device("cuda", 1), "mps", "", None):
        with pytest.raises(ValueError, match="device: expected cpu, got"):
            open_device(device)
    with pytest.raises(fastadv.Error, match="device: expected cpu, got 'cuda'; "):
        fastadv.load("synth-mobile", device="cuda")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--limit", "9" * 20), "--limit: expected a number of at most 2147483647, got 99999999999999999999"),
        (("--slots", "9" * 20), "--slots: expected a number of at most"),
        (("--attack", "fim", "--steps", "9" * 20), "--steps: expected a number of at most"),
        (("--attack", "fim", "--margin", "nan"), "--margin: expected a finite number, got nan"),
        (("--attack", "dfanet-fim", "--drop-rate", "inf"), "--drop-rate: expected a finite number, got inf"),
        (("--folds", "1-6000000"), "folds: expected numbers from 1 to at most 10000"),
        (("--folds", "1-" + "9" * 5000), "folds: expected numbers from 1 to at most 10000"),
        (("--folds", "1"), "folds: expected pairs with folds of their own, got a list without"),
        (("--out", ""), "--out: expected a value, got an empty text"),
        (("--out=",), "--out: expected a value, got an empty text"),
        (("--attack", "fim", "--ensemble-weights", "1,2"), "weights: expected an attack on several models"),
        (("--attack", "fim", "--ensemble", "synth-vgg"), "others: expected none with fim"),
        (("--attack", "e-fim", "--ensemble", "synth-vgg="), "network: expected NAME or NAME=WEIGHTS, got 'synth-vgg='"),
        (("--attack", "knn-df"), "attack: expected one that can move towards the goal impersonate, got knn-df"),
        (("--attack", "apgd-dlr"), "got apgd-dlr, whose goal is classify-as or misclassify"),
    ],
)
def test_a_wrong_value_is_one_sentence(more, text, inside, faces, pairs):
    code, said = inside("verify", "--data", faces, *MODEL, "--pairs", pairs, *more)
    assert (code, text in said) == (2, True), said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("more", [("--steps", "0"), ("--steps", "-1"), ("--slots", "0"), ("--batch", "-1")])
def test_a_count_below_the_least_is_a_usage_error(more, inside, faces, pairs):
    code, said = inside("verify", "--data", faces, *MODEL, "--pairs", pairs, "--attack", "fim", *more)
    assert code == 2
    assert f"Invalid value for '{more[0]}'" in said


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("person1/0,person1/0,1", "got person1/0 with itself as pair 5"),
        ("person0/0,person0/1,1", "got person0/0, person0/1 twice: pairs 1 and 5"),
        ("person0/1,person0/0,1", "got person0/1, person0/0 twice: pairs 1 and 5"),
        ("person0/0.png,person0/1.JPG,1", "got person0/0, person0/1 twice: pairs 1 and 5"),
        ("person0/0,person0/1,0", "got person0/0, person0/1 as one person and as two: pairs 1 and 5"),
    ],
)
def test_pairs_of_one_image_and_pairs_twice_are_named(line, text, inside, faces, tmp_path):
    lines = ("person0/0,person0/1,1", "person1/0,person1/1,1", "person0/0,person1/0,0", "person1/1,person2/0,0")
    (tmp_path / "p.csv").write_text("\n".join(("first,second,same", *lines, line)) + "\n")
    for path in (("verify",), ("talfw",), ("defend",)):
        code, said = inside(*needed(path, faces, tmp_path / "p.csv", tmp_path / "out"))
        assert (code, text in said) == (2, True), said
    code, said = inside(*needed(("transfer",), faces, None, tmp_path / "out"), "--verification", tmp_path / "p.csv")
    assert (code, text in said) == (2, True), said
    assert not (tmp_path / "out").exists()


def test_names_of_pairs_may_have_the_images_extensions(faces, tmp_path, capsys):
    lines = ("person0/0.png,person0/1.jpg,1", "person0/0,person1/0.PNG,0")
    (tmp_path / "p.csv").write_text("\n".join(("first,second,same", *lines)) + "\n")
    app(["verify", "--data", str(faces), *MODEL, "--pairs", str(tmp_path / "p.csv"), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["clean"]["pairs"] == 2


# optional packages

NEEDS = [
    (("verify",), "report", "--out"),
    (("identify",), "report", "--out"),
    (("transfer",), "report", "transfer"),
    (("defend",), "report", "defend"),
    (("train",), "train", "--loss cosface"),
]


@pytest.mark.parametrize(("path", "extra", "argument"), NEEDS)
def test_a_missing_package_is_said_before_any_work(path, extra, argument, inside, faces, pairs, tmp_path, monkeypatch):
    for package in EXTRAS[extra]:
        monkeypatch.setitem(sys.modules, package.module, None)
    code, said = inside(*needed(path, faces, pairs, tmp_path / "out"))
    names = ", ".join(package.distribution for package in EXTRAS[extra])
    assert (code, f"{argument}: expected {names}" in said) == (2, True), said
    assert f"pip install 'fastadv[{extra}]'" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("detect", "evaluate", "study", "--data", "synthetic", *MODEL), "report"),
        (("detect", "export", *MODEL, "--detector", "d", "--out", "g.onnx"), "onnx"),
        (("report", "run"), "report"),
        (("demo",), "report"),
        (("serve", *MODEL, "--detector", "d"), "serve"),
    ],
)
def test_so_it_is_of_commands_without_data(words, extra, inside, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, EXTRAS[extra][0].module, None)
    code, said = inside(*words)
    assert (code, f"expected {EXTRAS[extra][0].distribution}" in said) == (2, True), said
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_an_error_that_a_user_can_mend():
    assert issubclass(MissingPackageError, fastadv.Error)
    assert fastadv.Error is Error


# help, doctor, exit codes


def test_the_help_groups_the_options():
    panels = {p.name: getattr(p, "rich_help_panel", None) for p in ALL[("attack",)].params}
    named = ("data", "eps", "goal", "seed", "out")
    assert [panels[name] for name in named] == ["Input", "Attack", "Goal", "Run", "Output"]


def test_a_command_has_a_group_of_options_but_for_what_it_changes_or_leaves_out():
    @dataclass(frozen=True, kw_only=True)
    class Sizes:
        panel: ClassVar[str] = "Sizes"
        width: Annotated[int, typer.Option(help="Width.")]
        height: Annotated[int, typer.Option(help="Height.")] = 2

    seen = []

    def draw(sizes: Annotated[Sizes, Changed("height", "Another height.", default=5)], height_unit: str = "mm") -> None:
        seen.append((sizes, height_unit))

    def flat(sizes: Annotated[Sizes, Without("width")], width: int = 9) -> None:
        seen.append((sizes, width))

    for command, words in ((draw, ["--width", "7"]), (flat, ["--height", "3"])):
        own = typer.Typer()
        own.command()(takes_groups(command))
        own(words, standalone_mode=False)
    assert seen == [(Sizes(width=7, height=5), "mm"), (Sizes(width=None, height=3), 9)]


def test_doctor_says_what_is_missing_and_what_it_would_give(monkeypatch, capsys):
    for module in ("matplotlib", "faiss", "cupy"):
        monkeypatch.setitem(sys.modules, module, None)
    app(["doctor", "--json"], standalone_mode=False)
    report = json.loads(capsys.readouterr().out)
    packages = {row["name"]: row for row in report["packages"]}
    assert packages["matplotlib"]["version"] is None
    assert packages["matplotlib"]["install"] == "pip install 'fastadv[report]'"
    assert {p.distribution for part in EXTRAS.values() for p in part} | {"triton", "kornia"} == set(packages)
    assert all(row["use"] for row in packages.values())
    facts = dict(report["facts"])
    assert {"torch", "native module", "cpu instruction set in use", "threads", "safetensors"} <= set(facts)
    found = {extra["name"]: extra for extra in report["extras"]}
    assert found["report"]["missing"] == ["matplotlib"]
    assert {*EXTRAS, "triton", "kornia"} == set(found)
    monkeypatch.setenv("COLUMNS", "100")
    app(["doctor"], standalone_mode=False)
    said = capsys.readouterr().out
    for extra in ("report", "faiss", "faiss-gpu", "cupy-cuda12", "cupy-cuda13", "all"):
        assert f"pip install 'fastadv[{extra}]'" in said
    assert "'.[test,lint,docs]'" in said
    assert len(said.splitlines()) <= 53
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    backends = lines["operation"]
    for row in report["backends"]:  # the matrix has every operation and every backend
        assert lines[row["op"]][backends.index(row["backend"])] == ("yes" if row["available"] else "-")
    for reason in {row["reason"] for row in report["backends"] if not row["available"]}:
        assert reason in said


@pytest.mark.parametrize("module", ["faiss", "cupy"])
def test_doctor_offers_one_of_two_extras_that_stand_in_place_of_each_other(module, monkeypatch, tmp_path):
    packages = {name: package for name, (package, *_) in EXTRAS.items() if package.module == module}
    assert len(packages) == 2
    monkeypatch.setitem(sys.modules, module, None)  # neither is installed
    assert {extra.name: extra.install for extra in extras() if extra.name in packages} == {
        name: f"pip install 'fastadv[{name}]'" for name in packages
    }
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / f"{module}.py").touch()
    for name, package in packages.items():
        record = tmp_path / f"{package.distribution.replace('-', '_')}-1.2.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.distribution}\nVersion: 1.2\n")
        importlib.invalidate_caches()
        assert [(e.name, e.missing) for e in extras() if e.name in packages] == [(name, ())]
        assert [p.version for p in optional_packages() if p.module == module] == ["1.2"]
        shutil.rmtree(record)
    importlib.invalidate_caches()
    # another distribution brings the module: nothing is to be installed beside it
    assert [extra.missing for extra in extras() if extra.name in packages] == [()]


def test_ctrl_c_is_130_before_any_progress_bar_too(inside, faces, pairs, monkeypatch):
    def stop(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastadv.runs.inputs.open_model", stop)
    code, said = inside("verify", "--data", faces, *MODEL, "--pairs", pairs)
    assert (code, said) == (130, "error: stopped\n")


def test_a_fault_of_ours_is_70_with_the_file_of_its_traceback(inside, faces, pairs, monkeypatch):
    def fail(*arguments, **more):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("fastadv.runs.inputs.open_model", fail)
    code, said = inside("verify", "--data", faces, *MODEL, "--pairs", pairs)
    assert code == 70
    path = Path(said.rsplit(" ", 1)[1].strip())
    assert "out of luck" in path.read_text()
    path.unlink()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_is_one_sentence(error, inside, faces, pairs, monkeypatch):
    def fail(*arguments, **more):
        raise error

    monkeypatch.setattr("fastadv.runs.inputs.open_model", fail)
    code, said = inside("verify", "--data", faces, *MODEL, "--pairs", pairs)
    text = "error: memory: expected enough for this command, got too little; end other programs, or lower --batch\n"
    assert (code, said) == (2, text)


def test_the_help_names_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        app(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for text in ("Exit codes: 0 success", "2 an error that you can correct", "70 a fault of fastadv", "130 Ctrl-C"):
        assert text in said


def test_a_terminal_that_cannot_encode_gets_every_line(tmp_path, faces):
    """Names beyond ASCII, tables and error messages under LC_ALL=C."""
    data = tmp_path / "Gesichter-ä"
    data.mkdir()
    for person in faces.iterdir():
        (data / f"{person.name}-é中").symlink_to(person)
    name = "person0-é中/0"
    (tmp_path / "p.csv").write_text(f"first,second,same\n{name},person0-é中/1,1\n{name},person1-é中/0,0\n")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    base = [sys.executable, "-m", "fastadv", "verify", "--data", str(data), *MODEL, "--pairs"]
    done = subprocess.run([*base, str(tmp_path / "p.csv")], capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"AUC" in done.stdout
    assert done.stdout.isascii()
    assert b"\\u" not in done.stdout  # the tables' own dashes have a form in ASCII
    (tmp_path / "p.csv").write_text(f"first,second,same\n{name},nobody-é/1,1\n")
    done = subprocess.run([*base, str(tmp_path / "p.csv")], capture_output=True, env=environment, timeout=120)
    assert done.returncode == 2
    assert b"nobody-\\xe9/1" in done.stderr
