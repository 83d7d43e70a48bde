"""Other weights as a defence: what the defended model is, who knows of it, and files that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from fastadv.attacks import Impersonate, ffm
from fastadv.cli import app
from fastadv.data import write_pairs_csv
from fastadv.data.synthetic import SyntheticFaces, write_faces
from fastadv.defences import PerfectKnowledge, Retrained, ZeroKnowledge
from fastadv.engine import run
from fastadv.models import CheckpointError, load, prepare
from fastadv.studies.defences.plan import Planned, files_of, parse_defence
from fastadv.training import save_weights


@pytest.fixture
def file(make_model, tmp_path):
    """The weights of another network of the same architecture, without a class head."""
    save_weights(make_model(5, head=False), tmp_path / "best.safetensors")
    return tmp_path / "best.safetensors"


def test_the_defended_model_has_the_files_weights(model, make_model, faces, file):
    x = faces(3)
    before = model(x).detach()
    value = Retrained(file=file)
    made = value.wrap(model, seed=9)
    assert torch.equal(made(x), make_model(5)(x))
    assert not torch.equal(made(x), before)
    assert torch.equal(model(x), before)
    assert made.layers == model.layers
    assert made.head is None  # that of the model knows other features
    assert not made.training
    torch.testing.assert_close(prepare(made)(x), made(x))
    assert not value.random
    assert value.name == f"weights:{file.parent.name}/best"
    assert made.name == f"{model.name}+{value.name}"


def test_a_class_head_comes_with_the_weights(model, make_model, faces, tmp_path):
    save_weights(make_model(5), tmp_path / "with.safetensors")
    made = Retrained(file=tmp_path / "with.safetensors").wrap(model)
    assert torch.equal(made.logits(faces(2)), make_model(5).logits(faces(2)))
    assert not any(m.training for m in made.modules())


def test_who_knows_the_weights_attacks_them(model, make_model, faces, file):
    defence, sources, targets = Retrained(file=file), faces(4), faces(4, 2)
    goal = Impersonate(targets, threshold=0.99)
    made = {}
    for threat in (ZeroKnowledge(), PerfectKnowledge(samples=4)):
        attacker = threat.attacker(ffm(), model, defence)
        made[threat.name] = run(attacker.recipe, attacker.goal(goal), attacker.model, sources).images
    assert torch.equal(made["zero"], run(ffm(), goal, model, sources).images)
    assert torch.equal(made["perfect:4"], run(ffm(), goal, make_model(5), sources).images)


def test_from_text(file):
    planned = parse_defence(f"weights:{file}")
    label = f"weights:{file.parent.name}/best"
    assert planned == Planned(label=label, defence=Retrained(file=file))
    found = files_of([planned, parse_defence("mean"), parse_defence("none")])
    assert list(found) == [label]
    save_file({"0.weight": torch.zeros(1)}, file)
    assert files_of([planned]) != found


@pytest.mark.parametrize("text", ["weights", "weights:", "weights:missing.safetensors", "weights:."])
def test_files_that_are_not_there(text):
    with pytest.raises(ValueError, match=f"defence: expected weights:FILE with a file that exists, got '{text}'"):
        parse_defence(text)


def test_files_that_do_not_fit(model, file, tmp_path):
    with pytest.raises(TypeError, match="expected a FaceModel, got Linear"):
        Retrained(file=file).wrap(nn.Linear(1, 1))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"best.safetensors, a safetensors file that is cut short"):
        Retrained(file=file).wrap(model)
    with pytest.raises(CheckpointError, match=r"gone.safetensors, which does not exist"):
        Retrained(file=tmp_path / "gone.safetensors").wrap(model)
    save_weights(load("synth-shuffle"), file)
    with pytest.raises(
        CheckpointError, match=r"expected tensors that fit the model, got others in .*best.safetensors: .* missing"
    ):
        Retrained(file=file).wrap(model)
    state = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    state["0.weight"][0, 0, 0, 0] = torch.nan
    save_file(state, file)
    with pytest.raises(CheckpointError, match="weights: expected finite numbers, got NaN or infinity"):
        Retrained(file=file).wrap(model)
    save_file({**model.backbone.state_dict(), "class_head.bias": torch.zeros(3)}, file)
    with pytest.raises(
        CheckpointError,
        match="weights: expected a class head with its weight, got .*best.safetensors with class_head.bias alone",
    ):
        Retrained(file=file).wrap(model)


def test_the_commands(tmp_path):
    """Fine-tuned adversarially by one command, evaluated by the other."""
    people = SyntheticFaces(identities=8, per_identity=3, seed=5)
    write_faces(people, people.names, tmp_path / "faces")
    write_pairs_csv(tmp_path / "pairs.csv", (replace(p, fold=None) for p in people.pairs(8, folds=2, seed=2)))
    robust = tmp_path / "robust"
    given = ["train", "--data", tmp_path / "faces", "--model", "synth-shuffle"]
    given += ["--loss", "softmax", "--epochs", 1, "--batch", 12, "--fine-tune", "--adversarial", "fgsm@4/255"]
    given += ["--adversarial-share", 0.25, "--out", robust, "--json"]
    done = CliRunner().invoke(app, [str(a) for a in given], catch_exceptions=False)
    summary = json.loads(done.stdout)
    assert summary["adversarial"] == "fgsm@4/255"
    about = json.loads((robust / "training.json").read_text())["about"]
    assert about["adversarial"] == {"attack": "fgsm", "eps": 4 / 255, "share": 0.25, "steps": None}
    assert (about["fine_tune"], about["lr"]) == (True, 0.01)

    out = tmp_path / "study"
    given = ["defend", "--data", tmp_path / "faces", "--model", "synth-shuffle", "--pairs", tmp_path / "pairs.csv"]
    given += ["--defence", f"weights:{summary['weights']}", "--attack", "ffm", "--out", out, "--json"]
    done = CliRunner().invoke(app, [str(a) for a in given], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert [d["defence"] for d in found["defences"]] == ["none", "weights:robust/best"]
    assert len(found["cells"]) == 4
    assert list(json.loads((out / "run.json").read_text())["config"]["files"]) == ["weights:robust/best"]
