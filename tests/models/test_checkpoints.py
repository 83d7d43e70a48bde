"""Weights files: what is read, and how a wrong one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastadv.models import CheckpointError, load, read_state_dict

NAME = "mobileface_v2"


def good_state() -> dict[str, Tensor]:
    backbone = load(NAME, random_weights_seed=3).backbone
    return {key: value.clone() for key, value in backbone.state_dict().items()}


def saved(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    state = good_state()
    path = saved(tmp_path / f"w{suffix}", state)
    read = read_state_dict(path)
    assert read.keys() == state.keys()
    model = load(NAME, path)
    assert all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_wrapper_and_prefix_are_removed(tmp_path: Path, wrapper: str) -> None:
    state = good_state()
    content = {wrapper: {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
    assert read_state_dict(saved(tmp_path / "w.pt", content)).keys() == state.keys()


def test_counters_may_be_missing(tmp_path: Path) -> None:
    state = {k: v for k, v in good_state().items() if not k.endswith("num_batches_tracked")}
    load(NAME, saved(tmp_path / "w.safetensors", state))


def test_half_precision_files_are_widened(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in good_state().items()}
    model = load(NAME, saved(tmp_path / "w.safetensors", state))
    assert model.dtype == torch.float32


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights: .*none\.pt does not exist"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"is a directory"):
        read_state_dict(tmp_path)


def test_unknown_bytes(tmp_path: Path) -> None:
    (tmp_path / "w.onnx").write_bytes(bytes(range(200, 256)))
    with pytest.raises(CheckpointError, match=r"got .*w\.onnx, bytes of no known kind \(they begin with c8 c9"):
        read_state_dict(tmp_path / "w.onnx")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("keep", [0, 5, 100, -7])
def test_truncated_file(tmp_path: Path, suffix: str, keep: int) -> None:
    path = saved(tmp_path / f"w{suffix}", good_state())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"got .*w{suffix}, .*(cut short|empty).*; download it again$"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_garbage(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(CheckpointError, match="bytes of no known kind"):
        read_state_dict(path)


class Trap:
    """A pickle that would create a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"a": Trap(tmp_path / "ran")})
    with pytest.raises(CheckpointError, match=r"asks for (_?io)\.open; it holds code, which is never run"):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"asks for torch\.nn\.modules\.linear\.Linear; .* save the module's state_dict\(\)"
    ):
        read_state_dict(saved(tmp_path / "w.pt", nn.Linear(2, 2)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2).eval(), torch.zeros(1, 2)), path)
    with pytest.raises(
        CheckpointError, match=r"a TorchScript archive; load it with torch\.jit\.load and save its state_dict"
    ):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], r"holds a list; expected a dict of tensors by name"),
        ({}, r"holds an empty dict; expected a dict of tensors"),
        ({"state_dict": {"a": 3}}, r"holds a int under 'state_dict\.a'; expected a dict of tensors"),
        ({"state_dict": {}}, r"holds a dict under 'state_dict'; expected"),
        ({4: torch.zeros(2)}, r"holds a Tensor under '4'; expected a dict of tensors by name"),
        (torch.zeros(3), r"holds a Tensor"),
    ],
)
def test_other_contents(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(saved(tmp_path / "w.pt", content))


def test_an_empty_safetensors_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds an empty dict; expected a dict of tensors"):
        read_state_dict(saved(tmp_path / "w.safetensors", {}))


def test_missing_unexpected_and_misshapen_names_are_counted(tmp_path: Path) -> None:
    state = good_state()
    for key in ("conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias"):
        del state[key]
    state["head.weight"] = torch.zeros(2)
    state["fc5.weight"] = torch.zeros(256, 4)
    with pytest.raises(CheckpointError) as caught:
        load(NAME, saved(tmp_path / "w.safetensors", state))
    message = str(caught.value)
    assert "4 missing: conv1.weight, conv1.bias, bn1.weight, ... (1 more)" in message
    assert "1 unexpected: head.weight (2,)" in message
    assert "1 misshapen: fc5.weight (expected (256, 2048), got (256, 4))" in message


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    state = good_state()
    state["conv1.bias"] = torch.zeros(32, dtype=torch.int64)
    with pytest.raises(CheckpointError, match=r"1 of the wrong type: conv1\.bias \(expected torch\.float32"):
        load(NAME, saved(tmp_path / "w.safetensors", state))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(tmp_path: Path, value: float) -> None:
    state = good_state()
    state["conv1.bias"][3] = value
    with pytest.raises(CheckpointError, match=r"NaN or infinity: 1 non-finite: conv1\.bias"):
        load(NAME, saved(tmp_path / "w.safetensors", state))


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", good_state())
    with pytest.raises(CheckpointError, match=r"does not fit the model: \d+ missing: .*; \d+ unexpected: "):
        load("mobilefacenet", path)
