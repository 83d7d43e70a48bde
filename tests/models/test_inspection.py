"""What `fastadv models inspect` says of a file."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fastadv.cli import app
from fastadv.models import CheckpointError, load
from fastadv.models.inspection import inspect_file

NAME = "synth-mobile"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(load(NAME).backbone.state_dict())


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_a_checkpoint_of_a_training(tmp_path: Path, state: dict[str, Tensor]) -> None:
    model = load(NAME)
    optimizer = torch.optim.SGD(model.backbone.parameters(), momentum=0.9)
    for parameter in model.backbone.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    inner = {f"module.{k}": v.half() if v.is_floating_point() else v for k, v in state.items()}
    content = {
        "epoch": 3,
        "model": {**inner, "fc.weight": torch.zeros(10, 128)},
        "optimizer": optimizer.state_dict(),
        "ema": {"decay": torch.tensor(0.5)},
    }
    found = inspect_file(saved(tmp_path / "w.ckpt", content))
    assert (found.form, found.networks, found.nearest, found.loads, found.problem) == (
        "a torch checkpoint",
        (NAME,),
        None,
        True,
        "",
    )
    assert (found.prefix, found.left_out) == ("module.", ("fc.weight (10, 128)",))
    parts = {part.path: part for part in found.parts}
    assert parts.keys() == {"model", "ema", "optimizer"}
    numbers = sum(v.numel() for v in state.values())
    assert (parts["model"].tensors, parts["model"].numbers) == (len(state) + 1, numbers + 1280)
    assert (parts["model"].types, parts["model"].read) == (("float16", "float32", "int64"), True)
    parameters = [p.numel() for p in model.backbone.parameters()]
    assert (parts["optimizer"].tensors, parts["optimizer"].numbers) == (len(parameters), sum(parameters))
    assert not parts["optimizer"].read
    assert not parts["ema"].read


@pytest.mark.parametrize(
    ("write", "form"),
    [
        (lambda s, p: save_file(s, p), "a safetensors file"),
        (lambda s, p: torch.save(load(NAME).backbone, p), "a pickled object that asks for fastadv"),
        (lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False), "the form before torch 1.6"),
        (lambda s, p: p.write_bytes(pickle.dumps({k: v.numpy() for k, v in s.items()})), "a pickle of NumPy arrays"),
    ],
)
def test_every_form_is_named_and_loads(
    tmp_path: Path, state: dict[str, Tensor], write: Callable[..., Any], form: str
) -> None:
    write(state, tmp_path / "w.bin")
    found = inspect_file(tmp_path / "w.bin")
    assert form in found.form
    assert (found.networks, found.loads) == ((NAME,), True)


def test_networks_of_the_same_tensors_are_all_named(tmp_path: Path) -> None:
    state = load("iresnet18", random_weights_seed=0).backbone.state_dict()
    halved = {f"features.{k}": v.half() if v.is_floating_point() else v for k, v in state.items()}
    found = inspect_file(saved(tmp_path / "w.pt", halved))
    assert (found.networks, found.prefix, found.loads) == (("iresnet18", "magface_iresnet18"), "features.", True)


def test_what_does_not_load(tmp_path: Path, state: dict[str, Tensor]) -> None:
    broken = {**state, "conv.weight": state["conv.weight"] * torch.nan}
    found = inspect_file(saved(tmp_path / "w.pt", broken))
    assert (found.networks, found.loads) == ((NAME,), False)
    assert "1 non-finite: conv.weight" in found.problem
    fewer = {k: v for k, v in state.items() if not k.startswith("embed.")}
    found = inspect_file(saved(tmp_path / "w.pt", fewer))
    assert (found.networks, found.nearest, found.loads) == ((), NAME, False)
    assert "1 missing: embed.weight" in found.problem
    found = inspect_file(saved(tmp_path / "w.pt", {"own.weight": torch.zeros(3)}))
    assert (found.networks, found.nearest, found.loads) == ((), None, False)
    assert "no architecture" in found.problem
    assert [part.path for part in found.parts] == [""]
    found = inspect_file(saved(tmp_path / "w.pt", {"epoch": 3}))
    assert "expected a dict of tensors by name" in found.problem
    other = {k: v + 1 for k, v in state.items()}
    found = inspect_file(saved(tmp_path / "w.pt", {"model": state, "ema": other}))
    assert not found.loads
    assert "with two, 'model' and 'ema'" in found.problem


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"hello", "a text"),
        (bytes(range(200, 256)), "bytes of no known kind"),
    ],
)
def test_other_files_are_named(tmp_path: Path, data: bytes, form: str) -> None:
    (tmp_path / "w.pth").write_bytes(data)
    found = inspect_file(tmp_path / "w.pth")
    assert found.form.startswith(form)
    assert not found.loads
    assert "weights: expected a safetensors file" in found.problem


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="which does not exist"):
        inspect_file(tmp_path / "w.pth")


def test_a_value_that_holds_itself(tmp_path: Path, state: dict[str, Tensor]) -> None:
    content: dict[str, Any] = {"model": state, "log": [np.arange(2)]}
    content["log"].append(content["log"])
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    assert inspect_file(tmp_path / "w.pkl").loads


def test_the_command(tmp_path: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "[b]w.pt", {"net": state, "head": {"weight": torch.zeros(7, 128)}})
    app(["models", "inspect", str(path)], standalone_mode=False)
    said = capsys.readouterr().out
    for words in ("[b]w.pt", "a torch checkpoint", NAME, "yes", "the network", "left out"):
        assert words in said
    assert f"next: fastadv models check --model {NAME} --weights" in said
    app(["models", "inspect", str(path), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["networks"], found["loads"]) == ([NAME], True)
