"""Pickled networks that would run code, and damaged ones: refused, and nothing is run."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import mutated
from pickles import FORMS, NAME, same, stored
from torch import nn

from fastadv.core import symbolic_pickle
from fastadv.models import CheckpointError, load, read_state_dict


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return load(NAME).backbone


class Trap:
    """Would call a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["beside", "inside", "key"])
def test_code_is_refused_and_not_run(tmp_path: Path, form: str, place: str) -> None:
    mark = tmp_path / "was_here"
    trap = Trap(os.system, f"touch {mark}")
    net = nn.Linear(2, 2)
    net.trap = trap
    content = {"beside": {"w": torch.zeros(2), "x": trap}, "inside": net, "key": {"n": net, "l": [(trap, 3)]}}[place]
    path = stored(form, content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"it calls (posix|nt)\.system, which could run code; nothing was run$"):
        read_state_dict(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("opcodes", "name"),
    [
        (b"cos\nsystem\nX\x04\x00\x00\x00true\x85R", r"os\.system"),
        (b"(cos\nsystem\nX\x04\x00\x00\x00trueo", r"os\.system"),
        (b"(X\x04\x00\x00\x00trueios\nsystem\n", r"os\.system"),
        (b"cbuiltins\neval\nX\x01\x00\x00\x001\x85\x81", r"builtins\.eval"),
        (b"\x8c\x0asubprocess\x8c\x05Popen\x93)}\x92", r"subprocess\.Popen"),
        (b"c__builtin__\nexec\n)R", r"__builtin__\.exec"),
        (b"crunpy\nrun_path\n)R", r"runpy\.run_path"),
        (b"cpickle\nloads\n)R", r"pickle\.loads"),
        (b"cimportlib\nimport_module\n)R", r"importlib\.import_module"),
    ],
)
def test_every_opcode_that_calls(tmp_path: Path, opcodes: bytes, name: str) -> None:
    (tmp_path / "w.pkl").write_bytes(b"\x80\x04" + opcodes + b".")
    with pytest.raises(CheckpointError, match=rf"it calls {name}, which could run code; nothing was run"):
        read_state_dict(tmp_path / "w.pkl")


def test_code_in_the_bytes_of_a_storage_is_not_run(tmp_path: Path) -> None:
    mark, stream = tmp_path / "was_here", io.BytesIO()
    torch.save(Trap(os.system, f"touch {mark}"), stream, _use_new_zipfile_serialization=False)
    storage = Trap(torch.storage._load_from_bytes, stream.getvalue())
    tensor = Trap(torch._utils._rebuild_tensor_v2, storage, 0, (2,), (1,), False, OrderedDict())
    with pytest.raises(CheckpointError, match=r"it calls posix\.system"):
        read_state_dict(stored("pickle 4", {"a": tensor}, tmp_path / "w.pkl"))
    assert not mark.exists()


def test_functions_of_other_packages_are_not_called_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand for objects, and what is beside them is read."""
    called: list[object] = []
    package = types.ModuleType("some_package")
    package.make = called.append
    monkeypatch.setitem(sys.modules, "some_package", package)
    data = pickle.dumps({"w": torch.ones(2)}, protocol=2)
    assert data.startswith(b"\x80\x02}q\x00X\x01\x00\x00\x00w")
    made = b"\x80\x02}(X\x01\x00\x00\x00xcsome_package\nmake\nK\x01\x85R" + data[5:-2] + b"u."
    (tmp_path / "w.pkl").write_bytes(made)
    same(read_state_dict(tmp_path / "w.pkl"), {"w": torch.ones(2)})
    assert called == []


def tensor_of(*parts: Any, storage: tuple[Any, ...] = ("storage", torch.FloatStorage, "0", "cpu", 4)) -> bytes:
    """An archive of torch.save with one tensor of a storage of four numbers, rebuilt from these parts."""

    class Persistent:
        pass

    class Writer(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return storage if isinstance(value, Persistent) else None

    pickled, stream = io.BytesIO(), io.BytesIO()
    tensor = Trap(torch._utils._rebuild_tensor_v2, Persistent(), *parts, False, OrderedDict())
    # a class that torch does not know makes it a file of objects
    Writer(pickled, protocol=2).dump({"w": tensor, "l": nn.Identity})
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("w/data.pkl", pickled.getvalue())
        archive.writestr("w/data/0", np.arange(4, dtype=np.float32).tobytes())
    return stream.getvalue()


def test_the_tensor_that_is_damaged_below(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(tensor_of(1, (1, 3), (3, 1)))
    same(read_state_dict(tmp_path / "w"), {"w": torch.tensor([[1.0, 2.0, 3.0]])})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: tensor_of(0, (5,), (1,)), r"a tensor of shape \(5,\) goes beyond its 4 numbers"),
        (lambda: tensor_of(2, (3,), (1,)), "goes beyond its 4 numbers"),
        (lambda: tensor_of(0, (2, 2), (1 << 40, 1)), "goes beyond its 4 numbers"),
        (lambda: tensor_of(0, (1 << 30, 1 << 15), (0, 0)), "goes beyond its 4 numbers"),
        (lambda: tensor_of(0, (-1,), (1,)), "gives a size that is no whole number"),
        (lambda: tensor_of(-1, (1,), (1,)), "gives a size that is no whole number"),
        (lambda: tensor_of(0, (1,), (-1,)), "gives a size that is no whole number"),
        (lambda: tensor_of(0, (1, 1), (1,)), "another number of sizes than of strides"),
        (lambda: tensor_of(0, 4, 1), "gives a size that is no whole number"),
        (lambda: tensor_of("0", (4,), (1,)), "gives a size that is no whole number"),
        (
            lambda: tensor_of(0, (1,), (1,), storage=("storage", torch.FloatStorage, "0", "cpu", 1 << 40)),
            "uncompressed bytes were expected for '0', 16 are there",
        ),
        (
            lambda: tensor_of(0, (1,), (1,), storage=("storage", torch.FloatStorage, "0", "cpu", 1 << 60)),
            "gives a size that is no whole number",
        ),
        (
            lambda: tensor_of(0, (1,), (1,), storage=("storage", torch.QInt8Storage, "0", "cpu", 4)),
            "numbers of the type 'QInt8Storage', which is not read|quantised",
        ),
        (
            lambda: tensor_of(0, (1,), (1,), storage=("storage", nn.Linear, "0", "cpu", 4)),
            "numbers of the type 'Linear', which is not read",
        ),
        (lambda: tensor_of(0, (1,), (1,), storage=("other", 3)), "a tensor without its numbers"),
        (
            lambda: tensor_of(0, (1,), (1,), storage=("storage", torch.FloatStorage, "9", "cpu", 4)),
            "cut short or damaged",
        ),
    ],
)
def test_tensors_that_cannot_be(tmp_path: Path, data: Callable[[], bytes], message: str) -> None:
    (tmp_path / "w").write_bytes(data())
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state_dict(tmp_path / "w")
    assert "\n" not in str(caught.value)


def claimed(opcodes: bytes) -> bytes:
    return b"\x80\x04cmine\nNet\n0" + opcodes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (claimed(b"\x8e" + struct.pack("<Q", 1 << 60) + b"x."), "a string of 1152921504606846976 bytes"),
        (
            claimed(b"B" + struct.pack("<I", 1000) + b"x."),
            "cut short: 1000 bytes .* the file has 20; download it again",
        ),
        (claimed(b"(((((((."), "ends with 0 values"),
        (claimed(b"K\x01s."), "takes more from its stack"),
        (claimed(b"(o."), "an object of no class"),
        (claimed(b"Fx\n."), "is no number"),
        (claimed(b"\x82\x01."), "uses the opcode EXT1, which weights do not need"),
        (claimed(b"\x97."), "uses the opcode NEXT_BUFFER"),
        (claimed(b"K\x01."), "expected a dict of tensors by name, got .*, which holds a int"),
    ],
)
def test_hostile_pickles_give_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "w.pkl").write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state_dict(tmp_path / "w.pkl")
    assert "\n" not in str(caught.value)


def test_too_many_opcodes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic_pickle, "MAX_OPCODES", 1000)
    (tmp_path / "w.pkl").write_bytes(claimed(b"]" * 1000 + b"."))
    with pytest.raises(CheckpointError, match="more than 1000 opcodes"):
        read_state_dict(tmp_path / "w.pkl")


def test_values_in_themselves_and_too_deep(tmp_path: Path) -> None:
    ring: dict[str, Any] = {"w": torch.ones(2)}
    ring["again"] = [ring]
    net = nn.Linear(2, 2)
    net._modules["again"] = net
    same(read_state_dict(stored("pickle 4", {"a": ring}, tmp_path / "w")), {"w": torch.ones(2)})
    same(read_state_dict(stored("zip", net, tmp_path / "w")), {"weight": net.weight, "bias": net.bias})
    deep = b"\x80\x04cmine\nNet\n0" + b"(" * 100_000 + b"l" * 100_000 + b"."
    (tmp_path / "w").write_bytes(deep)
    with pytest.raises(CheckpointError, match="which holds a list"):
        read_state_dict(tmp_path / "w")


def test_modules_that_multiply_are_refused(tmp_path: Path) -> None:
    """Each holds the one below twice: 2^30 tensors by name."""
    net: nn.Module = nn.Linear(1, 1, bias=False)
    for _ in range(25):
        net = nn.ModuleList([net, net])
    with pytest.raises(CheckpointError, match="a network of more than 100000 tensors"):
        read_state_dict(stored("pickle 4", net, tmp_path / "w"))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_damaged_files_give_one_sentence(tmp_path: Path, form: str) -> None:
    path = tmp_path / "w"
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    whole = stored(form, {"net": net, "a": np.arange(3)}, path).read_bytes()
    chance, said = random.Random(5), list[str]()
    for _ in range(250):
        if form == "zip":
            stream = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
                for name in old.namelist():
                    data = old.read(name)
                    new.writestr(name, mutated(data, chance) if name.endswith("data.pkl") else data)
            path.write_bytes(stream.getvalue())
        else:
            path.write_bytes(mutated(whole, chance))
        try:
            read_state_dict(path)
        except CheckpointError as error:
            said.append(str(error))
    assert len(said) > 100
    assert not [text for text in said if "\n" in text or "weights_only" in text]


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 4"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, form: str) -> None:
    whole = stored(form, nn.Linear(3, 2), tmp_path / "w").read_bytes()
    for end in range(0, len(whole) - 1, 7):
        (tmp_path / "w").write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            read_state_dict(tmp_path / "w")


def test_a_flipped_bit_in_the_numbers_is_found(tmp_path: Path) -> None:
    path = stored("zip", nn.Linear(200, 200), tmp_path / "w")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        read_state_dict(path)
