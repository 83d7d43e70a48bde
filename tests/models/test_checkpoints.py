"""Weights files: what is read, and how a wrong one is refused."""

from __future__ import annotations

import argparse
import io
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import mutated
from safetensors.torch import save_file
from torch import Tensor, nn

from fastadv.core.notices import Notice
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


SYNTH = "synth-mobile"


@pytest.fixture(scope="module")
def synth() -> dict[str, Tensor]:
    return dict(load(SYNTH).backbone.state_dict())


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def check_loads(path: Path, state: dict[str, Tensor]) -> None:
    loaded = load(SYNTH, path).backbone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize("name", ["w.ckpt", "w.pth.tar", "w.bin", "w.pkl", "w.model", "w", "w.SAFETENSORS"])
@pytest.mark.parametrize("form", ["torch", "legacy", "safetensors"])
def test_the_suffix_does_not_matter(tmp_path: Path, synth: dict[str, Tensor], name: str, form: str) -> None:
    if form == "safetensors":
        save_file(synth, tmp_path / name)
    else:
        torch.save(synth, tmp_path / name, _use_new_zipfile_serialization=form == "torch")
    check_loads(tmp_path / name, synth)


@pytest.mark.parametrize(
    "keys",
    [("net_state_dict",), ("net",), ("params",), ("model", "state_dict"), ("a", "b", "c"), ("state_dict_backbone",)],
)
@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "backbone.", "_orig_mod.module.", "module._orig_mod.", "model.backbone.net."]
)
def test_any_wrapper_and_prefix(tmp_path: Path, synth: dict[str, Tensor], keys: tuple[str, ...], prefix: str) -> None:
    content: Any = under(prefix, synth)
    for key in reversed(keys):
        content = {key: content}
    beside = {
        "epoch": 3,
        "acc": np.float64(0.9),
        "best": np.array([1.0, 2.0]),
        "args": argparse.Namespace(lr=0.1, out=Path("x")),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "state_dict_softmax_fc": {"weight": torch.zeros(10, 128)},
    }
    check_loads(saved(tmp_path / "w.pth", {**content, **beside}), synth)


def test_the_state_of_a_face_model_brings_its_head(tmp_path: Path, synth: dict[str, Tensor]) -> None:
    model = load(SYNTH)
    model.head = nn.Linear(model.embedding_size, 7)
    loaded = load(SYNTH, saved(tmp_path / "w.pth", model.state_dict()))
    assert isinstance(loaded.head, nn.Linear)
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_two_states_that_fit_are_refused_by_name(tmp_path: Path, synth: dict[str, Tensor]) -> None:
    other = {k: v + 1 for k, v in synth.items()}
    path = saved(tmp_path / "w.pth", {"model": synth, "ema": {"module": under("module.", other)}})
    with pytest.raises(CheckpointError, match=r"got .* with two, 'model' and 'ema\.module\.module'; save one alone"):
        load(SYNTH, path)
    check_loads(saved(tmp_path / "w.pth", {"model": synth, "best": synth}), synth)
    with pytest.raises(CheckpointError, match=r"expected one dict of tensors, got .* with two, 'model' and 'ema'"):
        read_state_dict(saved(tmp_path / "w.pth", {"model": synth, "ema": other}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "fc.weight": torch.zeros(10, 64)}, r"1 unexpected: fc\.weight \(10, 64\)$"),
        (
            lambda s: {**under("model.", s), "head.conv": torch.zeros(8, 128, 1, 1)},
            r"1 unexpected: head\.conv \(8, 128, 1, 1\); read under the prefix 'model\.'",
        ),
        (
            lambda s: {**s, "fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(11)},
            r"2 unexpected: fc\.weight \(10, 128\), fc\.bias \(11,\)$",
        ),
        (
            lambda s: {("module." + k if i else k): v for i, (k, v) in enumerate(s.items())},
            r"1 missing: conv\.weight; 1 unexpected: conv\.weight .*; read under the prefix 'module\.'",
        ),
        (
            lambda s: {**s, "class_head.weight": torch.zeros(10, 64)},
            r"expected a class head \(classes, 128\) for the 128 features .*, got class_head\.weight \(10, 64\)",
        ),
        (
            lambda s: {**s, "class_head.weight": torch.zeros(10, 128), "class_head.bias": torch.zeros(11)},
            r"1 misshapen: class_head\.bias \(expected \(10,\), got \(11,\)\)",
        ),
        (
            lambda s: under("module.", {**s, "conv.weight": torch.zeros(1, 2)}),
            r"1 misshapen: module\.conv\.weight \(expected \(\d+, 3, 3, 3\), got \(1, 2\)\)",
        ),
        (
            lambda s: {**s, "conv.weight": s["conv.weight"].to_sparse()},
            r"conv\.weight \(expected torch\.float32, got a sparse",
        ),
        (lambda s: {**s, "conv.weight": s["conv.weight"].to(torch.complex64)}, r"wrong type: conv\.weight"),
    ],
)
def test_what_does_not_fit_is_named_with_its_size(
    tmp_path: Path, synth: dict[str, Tensor], change: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(SYNTH, saved(tmp_path / "w.pth", change(synth)))


HEADS: dict[str, dict[str, tuple[int, ...]]] = {
    "a linear layer": {"fc.weight": (10, 128), "fc.bias": (10,)},
    "AdaFace": {"head.kernel": (128, 10), "head.t": (1,), "head.batch_mean": (1,), "head.batch_std": (1,)},
    "MagFace": {"module.fc.weight": (128, 10)},
    "two": {"arc.weight": (10, 128), "cos.weight": (20, 128), "logit_scale": ()},
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("prefix", ["", "model.", "features.module."])
def test_a_classifier_beside_the_network_is_left_out_and_said(
    tmp_path: Path, synth: dict[str, Tensor], head: str, prefix: str
) -> None:
    extra = {key: torch.zeros(shape) for key, shape in HEADS[head].items()}
    path = saved(tmp_path / "w.ckpt", {"state_dict": {**under(prefix, synth), **extra}, "epoch": 3})
    key, shape = next(iter(HEADS[head].items()))
    words = re.escape(f"weights: {len(extra)} left out: {key} {shape}")
    with pytest.warns(Notice, match=rf"{words}.* in .*w\.ckpt: a classifier of the training$"):
        check_loads(path, synth)


def test_lists_and_tuples_are_looked_into(tmp_path: Path, synth: dict[str, Tensor]) -> None:
    check_loads(saved(tmp_path / "w.pth", (3, [{"net": synth}])), synth)
    check_loads(saved(tmp_path / "w.pth", [synth, {"epoch": 3}]), synth)


def test_a_flipped_bit_is_found(tmp_path: Path, synth: dict[str, Tensor]) -> None:
    path = saved(tmp_path / "w.pth", synth)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="its checksums do not fit"):
        load(SYNTH, path)


def test_files_without_checksums_load(tmp_path: Path, synth: dict[str, Tensor]) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "w.pth", synth)
    finally:
        torch.serialization.set_crc32_options(True)
    check_loads(path, synth)


@pytest.mark.parametrize("form", ["zip", "pickle", "legacy", "safetensors"])
def test_damaged_files_give_one_sentence(tmp_path: Path, form: str) -> None:
    """Truncated, with flipped bytes, with other opcodes and lengths; in a zip archive also with right checksums."""
    tensors = {"epoch": np.float64(1), "net": {"a": torch.zeros(3), "b": torch.ones(2, 2)}}
    path = tmp_path / "w"
    if form == "safetensors":
        save_file(tensors["net"], path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form != "legacy")
    whole, chance, said = path.read_bytes(), random.Random(7), list[str]()
    for _ in range(250):
        if form == "pickle":
            stream = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
                for name in old.namelist():
                    new.writestr(name, mutated(old.read(name), chance) if name.endswith("data.pkl") else old.read(name))
            path.write_bytes(stream.getvalue())
        else:
            path.write_bytes(mutated(whole, chance))
        try:
            read_state_dict(path)
        except CheckpointError as error:
            said.append(str(error))
    assert len(said) > 100
    assert not [text for text in said if "\n" in text or "weights_only" in text]


def test_counters_may_be_missing(tmp_path: Path) -> None:
    state = {k: v for k, v in good_state().items() if not k.endswith("num_batches_tracked")}
    load(NAME, saved(tmp_path / "w.safetensors", state))


def test_half_precision_files_are_widened(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in good_state().items()}
    model = load(NAME, saved(tmp_path / "w.safetensors", state))
    assert model.dtype == torch.float32


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights: expected .*, got .*none\.pt, which does not exist"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"got .*, a directory"):
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
    with pytest.raises(CheckpointError, match=r"it calls (_?io)\.open, which could run code; nothing was run"):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_arrays_of_an_npz_are_tensors(save: Any, tmp_path: Path) -> None:
    state = load("mobileface_v2", random_weights_seed=1).backbone.state_dict()
    arrays = {name: value.numpy() for name, value in state.items()}
    arrays["note"] = np.array("of a training")
    name = next(name for name, value in arrays.items() if value.ndim == 4)
    arrays[name] = arrays[name].astype(">f4")
    save(tmp_path / "w.npz", **arrays)
    found = read_state_dict(tmp_path / "w.npz")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    x = torch.rand((1, 3, 112, 112), generator=torch.Generator().manual_seed(0))
    same = load("mobileface_v2", random_weights_seed=1)
    assert torch.equal(load("mobileface_v2", tmp_path / "w.npz")(x), same(x))


def test_an_npz_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.array([Trap(tmp_path / "ran")], dtype=object))
    with pytest.raises(CheckpointError, match=r"NumPy arrays \(\.npz\) that is cut short or damaged \(Object arrays"):
        read_state_dict(tmp_path / "w.npz")
    assert not (tmp_path / "ran").exists()


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
        ([torch.zeros(2)], r"weights: expected a dict of tensors by name, got .*, which holds a list"),
        ({}, r"weights: expected a dict of tensors by name, got .*, which holds an empty dict"),
        (
            {"state_dict": {"a": 3}},
            r"weights: expected a dict of tensors by name, got .*, which holds a int under 'state_dict\.a'",
        ),
        ({"state_dict": {}}, r"weights: expected a dict of tensors by name, got .*, which holds an empty dict"),
        ({4: torch.zeros(2)}, r"weights: expected a dict of tensors by name, got .*, which holds a Tensor under '4'"),
        (torch.zeros(3), r"holds a Tensor"),
    ],
)
def test_other_contents(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(saved(tmp_path / "w.pt", content))


def test_an_empty_safetensors_file(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="weights: expected a dict of tensors by name, got .*, which holds an empty dict"
    ):
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
    with pytest.raises(
        CheckpointError, match=r"weights: expected finite numbers, got NaN or infinity in .*: 1 non-finite: conv1\.bias"
    ):
        load(NAME, saved(tmp_path / "w.safetensors", state))


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", good_state())
    with pytest.raises(
        CheckpointError,
        match=r"expected tensors that fit the model, got others in .*: \d+ missing: .*; \d+ unexpected: ",
    ):
        load("mobilefacenet", path)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_is_no_damaged_file(error: Exception, tmp_path: Path, monkeypatch: Any) -> None:
    def none(*given: object, **how: object) -> None:
        raise error

    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pth")
    monkeypatch.setattr(torch, "load", none)
    with pytest.raises(type(error), match="^$|can't allocate"):
        load(NAME, weights=tmp_path / "w.pth")
