"""Pickled networks and pickled arrays: what they hold is read, what they would run is not."""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pickles import FORMS, NAME, same, stored
from torch import nn

from fastadv.models import load, read_state_dict


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return load(NAME).backbone


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_network_is_read_as_its_state(tmp_path: Path, network: nn.Module, form: str) -> None:
    path = stored(form, network, tmp_path / "w.pkl")
    same(read_state_dict(path), network.state_dict())
    same(load(NAME, path).backbone.state_dict(), network.state_dict())


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 4"])
def test_a_network_inside_of_a_checkpoint(tmp_path: Path, network: nn.Module, form: str) -> None:
    optimizer = torch.optim.Adam(network.parameters())
    content = {
        "epoch": 3,
        "net": nn.DataParallel(network),
        "args": argparse.Namespace(lr=0.1, out=Path("x")),
        "optimizer": optimizer,
        "scores": defaultdict(list, a=[np.float64(0.5)]),
    }
    same(load(NAME, stored(form, content, tmp_path / "w.pth")).backbone.state_dict(), network.state_dict())
    pair = (7, network)
    same(load(NAME, stored(form, pair, tmp_path / "w.pth")).backbone.state_dict(), network.state_dict())


def test_a_whole_face_model(tmp_path: Path) -> None:
    model = load(NAME)
    model.head = nn.Linear(model.embedding_size, 7)
    loaded = load(NAME, stored("zip", model, tmp_path / "w.pth"))
    assert isinstance(loaded.head, nn.Linear)
    assert torch.equal(loaded.head.weight, model.head.weight)


class Buffers(nn.Module):
    """Every kind of thing that a module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
        self.shared = self.weight
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
        self.none = None
        self.register_parameter("absent", None)
        self.register_buffer("kept", torch.tensor(7))
        self.register_buffer("passing", torch.zeros(1000), persistent=False)
        self.register_buffer("halved", torch.ones(3, dtype=torch.float16))
        self.register_buffer("brain", torch.full((2,), 1.5, dtype=torch.bfloat16))
        self.register_buffer("part", torch.arange(10)[3:9:2])
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("truth", torch.tensor([True, False]))
        self.layers = nn.ModuleList([nn.BatchNorm2d(2), nn.Sequential(OrderedDict(a=nn.Linear(2, 2)))])
        self.loose = torch.zeros(5)  # no part of the state


@pytest.mark.parametrize("form", FORMS)
def test_the_state_is_that_of_the_module(tmp_path: Path, form: str) -> None:
    module = Buffers()
    same(read_state_dict(stored(form, module, tmp_path / "w")), dict(module.state_dict()))


def test_its_classes_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vendored = types.ModuleType("vendored_network")
    exec("import torch\nclass Net(torch.nn.Linear):\n    pass", vendored.__dict__)
    vendored.Net.__module__ = "vendored_network"
    monkeypatch.setitem(sys.modules, "vendored_network", vendored)
    net = vendored.Net(3, 2)
    path = stored("zip", net, tmp_path / "w.pth")
    monkeypatch.delitem(sys.modules, "vendored_network")
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)
    same(read_state_dict(path), dict(net.state_dict()))
    assert "vendored_network" not in sys.modules


def test_modules_of_old_versions(tmp_path: Path) -> None:
    """Torch 0.4: the class with its source text as a persistent id, the parameter as a class, a backend's object."""
    weight = torch.arange(6.0).reshape(2, 3)
    storage = ("storage", torch.FloatStorage, "k", "cpu", 6, None)

    class Writer(pickle._Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.id if isinstance(value, Persistent) else None

    class Persistent:
        def __init__(self, *parts: Any) -> None:
            self.id = parts

    class Call:
        def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
            self.made = (function, arguments) if state is None else (function, arguments, state)

        def __reduce__(self) -> Any:
            return self.made

    data = Call(torch._utils._rebuild_tensor, Persistent(*storage), 0, (2, 3), (3, 1))
    parameter = Call(nn.parameter.Parameter, data, state=(True, False, OrderedDict()))
    module = Call(
        object.__new__,
        Persistent("module", nn.Linear, "net.py", "class Net: ..."),
        state={"_backend": Call(torch.device, "cpu"), "_parameters": OrderedDict(weight=parameter, bias=None)}
        | {"_buffers": OrderedDict(), "_modules": OrderedDict(), "training": True},
    )
    stream = io.BytesIO()
    sizes = {"protocol_version": 1001, "little_endian": True}
    for value in (0x1950A86A20F9469CFC6C, 1001, sizes, module, ["k"]):
        Writer(stream, protocol=2).dump(value)
    stream.write(struct.pack("<q", 6) + weight.numpy().tobytes())
    (tmp_path / "w.pth").write_bytes(stream.getvalue().replace(b"torch\ndevice", b"oldmodule\nbackend"))
    same(read_state_dict(tmp_path / "w.pth"), {"weight": weight})


def arrays() -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    return {
        "a.weight": chance.normal(size=(3, 4, 2, 2)).astype(np.float32),
        "a.columns": np.asfortranarray(chance.normal(size=(3, 4)).astype(np.float32)),
        "a.big": chance.normal(size=(5,)).astype(">f4"),
        "a.half": chance.normal(size=(5,)).astype(np.float16),
        "a.double": chance.normal(size=(2, 2)),
        "a.count": np.array(7, np.int64),
        "a.none": np.zeros((0, 3), np.float32),
        "a.flags": np.array([True, False]),
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("inside", [False, True])
def test_arrays_become_tensors(tmp_path: Path, protocol: int, inside: bool) -> None:
    content = {"state": arrays(), "epoch": 3, "names": np.array(["a", "b"])} if inside else arrays()
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_state_dict(tmp_path / "w.pkl")
    assert found.keys() == arrays().keys()
    for name, array in arrays().items():
        np.testing.assert_array_equal(found[name].numpy(), array)


def python_2(state: dict[str, np.ndarray]) -> bytes:
    """What Python 2 wrote with protocol 2: byte strings for the keys and for the numbers."""
    body = b"\x80\x02}("
    for key, array in state.items():
        body += b"U" + bytes([len(key)]) + key.encode()
        body += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01("
        body += b"".join(b"J" + struct.pack("<i", n) for n in array.shape)
        body += b"tcnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        body += b"\x89T" + struct.pack("<i", array.nbytes) + array.tobytes() + b"tb"
    return body + b"u."


def test_arrays_as_python_2_wrote_them(tmp_path: Path, network: nn.Module) -> None:
    """The form of the published VGGFace2 files of cydonia999/VGGFace2-pytorch."""
    state = {k: v.numpy() for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    (tmp_path / "w.pkl").write_bytes(python_2(state))
    theirs = pickle.loads(python_2(state), encoding="latin1")
    assert all(np.array_equal(theirs[key], value) for key, value in state.items())
    loaded = load(NAME, tmp_path / "w.pkl").backbone.state_dict()
    assert all(torch.equal(loaded[key], torch.from_numpy(value)) for key, value in state.items())
