"""What `--help` says, how fast, and that the names and defaults of the command line are the library's."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from fastadv.attacks import CATALOG
from fastadv.cli import app, detect_options, main
from fastadv.cli.defend import FORMS
from fastadv.cli.names import Goal, IdentifyGoal, LossName
from fastadv.cli.networks import NETWORKS
from fastadv.cli.options import SYNTHETIC
from fastadv.data.stored import QUALITY
from fastadv.models import shipped_names
from fastadv.runs.goals import GOALS, IDENTIFIED
from fastadv.studies import demo, train
from fastadv.studies.defences import plan
from fastadv.studies.detection import controls
from fastadv.studies.detection.study import HEAD_EPOCHS, HEAD_LR, StudyConfig
from fastadv.training import LOSSES
from fastadv.training.denoiser_config import DenoiserConfig


def commands(command=None, path=()):
    """Every command and group of commands, with its path."""
    command = command or get_command(app)
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


ALL = dict(commands())
HELPS = [path for path in ALL if path != ("bench",)]

WITHOUT_TORCH = """
import contextlib, io, sys
from fastadv.cli import app
for words in (*HELPS, ("--version",)):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        app([*words] if words[-1:] == ("--version",) else [*words, "--help"])
    assert said.getvalue().strip(), words
    assert not {"torch", "numpy", "rich"} & set(sys.modules), words
"""


def shown(path, monkeypatch, capsys, columns=100):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        app([*path, "--help"])
    return capsys.readouterr().out


def inside(words, capsys):
    app([*words], standalone_mode=False)
    return capsys.readouterr().out


def test_attacks_lists_every_attack_and_every_goal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = inside(["attacks"], capsys).splitlines()
    for entry in CATALOG.values():
        (line,) = (line for line in lines if line.split()[:1] == [entry.name])
        assert all(part in line for part in (entry.what, entry.level, entry.source)), line
    for goal in GOALS:
        assert any(line.startswith(f"{goal} ") for line in lines)
    assert lines[-1] == "next: fastadv attacks fim"
    listed = json.loads(inside(["attacks", "--json"], capsys))
    assert [found["name"] for found in listed] == list(CATALOG)
    assert all(found["description"] for found in listed)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("fastadv dem", "demo"),
        ("fastadv attack dfanet-e", "dfanet-e-di-m-fim"),
        ("fastadv verify --attack knn", "knn-df"),
        ("fastadv verify --model edgeface_b", "edgeface_base"),
        ("fastadv models insp", "inspect"),
        ("fastadv attack fim --ensemble-", "--ensemble-weights"),
    ],
)
def test_the_shell_completes_commands_options_and_names(words, found, monkeypatch, capsys):
    monkeypatch.setenv("_FASTADV_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setattr(sys, "argv", ["fastadv"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert capsys.readouterr().out.split() == [found]


def test_attacks_describes_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    said = inside(["attacks", "fim"], capsys)
    for text in ("Zhong and Deng, eq. 10", "x <- clip(x + alpha * sign(g), x0, eps)", "--eps", "8/255", "--steps"):
        assert text in said
    assert "next: fastadv attack fim --data" in said
    assert "--ensemble synth-resnet" in inside(["attacks", "e-fim"], capsys)
    (found,) = json.loads(inside(["attacks", "fim", "--json"], capsys))
    assert found["parameters"] == {"eps": "8/255", "steps": "10"}


def test_models_lists_every_network(capsys):
    spec = importlib.util.spec_from_file_location("zoo", Path(__file__).parents[1] / "models" / "test_zoo.py")
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)  # its facts, which it compares with the networks themselves
    facts = {name: (parameters, *zoo.SIZES.get(name, (112, 112))) for name, (parameters, *_) in zoo.FACTS.items()}
    assert {name: (n.parameters, n.input, n.width) for name, n in NETWORKS.items()} == facts
    assert list(NETWORKS) == list(facts)
    assert tuple(name for name, network in NETWORKS.items() if network.shipped) == shipped_names()
    said = inside(["models"], capsys)
    assert all(name in said for name in NETWORKS)
    assert "43.80 M" in inside(["models", "ir_se50"], capsys)
    assert inside(["models", "show", "ir_se50"], capsys) == inside(["models", "ir_se50"], capsys)
    for words in (["synth-vgg", "--json"], ["--json", "synth-vgg"], ["show", "synth-vgg", "--json"]):
        (found,) = json.loads(inside(["models", *words], capsys))
        assert (found["name"], found["parameters"], found["shipped"]) == ("synth-vgg", 193136, True)


def test_no_help_waits_for_pytorch():
    code = f"HELPS = {HELPS!r}\n{WITHOUT_TORCH}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_package_is_imported_without_pytorch_and_has_every_name():
    code = """
import sys, fastadv
assert "torch" not in sys.modules
assert set(fastadv.__all__) == set(dir(fastadv)), dir(fastadv)
assert "torch" not in sys.modules
for name in dir(fastadv):
    assert getattr(fastadv, name) is getattr(fastadv, name), name
assert fastadv.backends.table()
assert callable(fastadv.ops.sign_step_)
from fastadv import *
assert Engine is fastadv.Engine and attack is fastadv.attack and attacks is fastadv.attacks
try:
    fastadv.atack
except AttributeError as error:
    assert "module 'fastadv' has no attribute 'atack'" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_help_of_attack_fits_one_screen(monkeypatch, capsys):
    lines = shown(("attack",), monkeypatch, capsys).splitlines()
    assert len(lines) <= 52
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("path", HELPS, ids="-".join)
def test_the_help_has_every_option_with_its_whole_text(path, monkeypatch, capsys):
    said = " ".join(shown(path, monkeypatch, capsys).split())
    for parameter in ALL[path].params:
        if parameter.name in ("help", "install_completion", "show_completion"):
            continue
        text = " ".join((parameter.help or "").removesuffix(".").split())
        assert text in said, parameter.name
        assert "\\[" not in text
    for name in getattr(ALL[path], "commands", {}):
        assert f" {name} " in said


def default(*path):
    """The default of an option, by the path of its command and its name."""
    *command, name = path
    (found,) = (p.default for p in ALL[tuple(command)].params if p.name == name)
    return found


def test_the_names_and_defaults_are_those_of_the_library():
    assert [each.value for each in Goal] == list(GOALS)
    assert [each.value for each in IdentifyGoal] == list(IDENTIFIED)
    assert [each.value for each in LossName] == list(LOSSES)
    assert plan.FORMS == FORMS
    assert controls.FORMS == detect_options.CONTROLS
    (told,) = (p.help for p in ALL[("detect", "fit")].params if p.name == "control")
    usual = controls.fitted_controls(())
    assert ", ".join(map(str, usual)) in told
    assert default("detect", "fit", "outside") == StudyConfig.outside
    assert default("detect", "fit", "split_by").value == StudyConfig.split_by
    assert len(controls.UNSEEN) == 8
    assert train.SYNTHETIC == SYNTHETIC
    assert default("demo", "pairs") == demo.PAIRS
    assert (default("detect", "fit", "head_epochs"), default("detect", "fit", "head_lr")) == (HEAD_EPOCHS, HEAD_LR)
    (quality,) = (p.help for p in ALL[("talfw",)].params if p.name == "quality")
    assert f"(default: {QUALITY})" in quality
    usual = DenoiserConfig()
    for name in ("width", "layers", "stride", "sigma_max", "patch", "epochs", "batch", "lr"):
        assert default("train", "denoiser", name) == getattr(usual, name), name
    assert usual.sigma_min == usual.sigma_max


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("attack", "fmi"), "attack: expected one of 'fastadv attacks', got 'fmi'; did you mean 'fim'?"),
        (("verify", "--attack", "fimm"), "attack: expected one of 'fastadv attacks', got 'fimm'; did you mean 'fim'?"),
        (("verify", "--model", "mobilefacnet"), "got 'mobilefacnet'; did you mean 'mobilefacenet'?"),
        (("train", "--model", "synth-vg"), "model: expected one of 'fastadv models', got 'synth-vg'; did you mean"),
        (("attack", "fim", "--goal", "evad"), "--goal: expected one of evade, impersonate, match, identify-as"),
        (("attack", "fim", "--goal", "evad"), "got 'evad'; did you mean 'evade'?"),
        (("attacks", "pgf"), "got 'pgf'; did you mean 'pgd'?"),
        (("models", "iresnet51"), "got 'iresnet51'; did you mean 'iresnet"),
        (("atack",), "Did you mean 'attack'"),
        (("atack",), "Try 'fastadv --help'"),
        (("attack", "fim", "--stepz", "3"), "--steps"),
    ],
)
def test_a_wrong_name_gets_the_nearest_right_one(words, text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fastadv", *words])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert (left.value.code, text in " ".join(said.split())) == (2, True), said


def test_ctrl_c_is_answered_without_pytorch():
    """It may come while PyTorch is being imported, which cannot be begun again."""
    code = """
import sys
from fastadv import cli
def stopped(**_):
    raise KeyboardInterrupt
cli.app = stopped
try:
    cli.main()
except SystemExit as left:
    print(left.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["130", "False"]
    assert "stopped" in done.stderr
