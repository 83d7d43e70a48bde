"""Files of networks and detectors: checkpoints, ONNX graphs, descriptions."""

from __future__ import annotations

import io
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from fastadv.models.checkpoints import read_fitting_state, read_state_dict
from fastadv.models.tensor_content import CheckpointError
from fastadv.models.training_loop import Training
from fastadv.training.checkpoint import STATE, Folder
from fastadv.training.config import TrainingError

from .archives import evil
from .judge import Target
from .lists import written


@cache
def _network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()


def _state() -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in _network().state_dict().items()}


def _weights(data: bytes, folder: Path) -> None:
    path = written(folder, "w", data)
    fitted = read_fitting_state(path, _network())
    assert all(isinstance(value, torch.Tensor) for value in fitted.state.values())
    read_state_dict(path)


# -- safetensors --


def right_header(data: bytes) -> bytes:
    """A safetensors file whose length of the header is right."""
    end = data.rfind(b"}") + 1
    return (end - 8).to_bytes(8, "little") + data[8:] if end > 8 else data


def _safetensors() -> list[bytes]:
    state = _state()
    return [
        save(state),
        save({f"module.{k}": v.half() if v.is_floating_point() else v for k, v in state.items()}, {"a": "b"}),
    ]


def _header(text: str, more: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + more


def _hostile_safetensors() -> list[bytes]:
    one = '{"a": {"dtype": "%s", "shape": %s, "data_offsets": [%s, %s]}}'
    sizes = ("[1099511627776, 1099511627776]", "[0, 1152921504606846976]", "[-1]", "[" + "1, " * 100 + "1]", "[1e999]")
    made = [_header(one % ("F32", size, 0, 4), bytes(4)) for size in sizes]
    made += [_header(one % (kind, "[1]", 0, 4), bytes(4)) for kind in ("F8_E4M3", "F4", "C64", "BOOL", "X")]
    return [
        *made,
        _header(one % ("F32", "[1]", 0, 9**99), bytes(4)),
        _header("[" * 5000),
        (1 << 62).to_bytes(8, "little") + b"{",
    ]


# -- torch and pickle --


def _saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def _values() -> list[Any]:
    extra = {"epoch": 3, "net": {f"module.{k}": v for k, v in _state().items()}, "score": np.float64(0.5)}
    return [_state(), extra, _network()]


@cache
def _members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(_saved(_state()))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def repacked(pickled: bytes, *, compression: int = zipfile.ZIP_STORED, **others: bytes) -> bytes:
    """An archive of `torch.save` with another pickle and other parts in it, and right checksums."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as new:
        for name, data in _members().items():
            new.writestr(name, pickled if name.endswith("data.pkl") else others.get(name.rpartition("/")[2], data))
    return stream.getvalue()


def _inner(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _archives() -> list[bytes]:
    return [_saved(value) for value in _values()]


def bombs() -> list[bytes]:
    """Archives of 64 KiB with a part of 64 MiB that is deflated: of weights, and of a whole network."""
    made = []
    for value in (_state(), _network()):
        pickled = _inner(_saved(value))
        made.append(repacked(pickled, compression=zipfile.ZIP_DEFLATED, byteorder=bytes(1 << 26)))
    return made


def multiplied(count: int = 4000, size: int = 200_000) -> bytes:
    """A pickle of many arrays that share one text of numbers: each would be a copy of it."""
    text = b"\x80\x04cnumpy._core.multiarray\n_reconstruct\n\x94cnumpy\nndarray\n\x94cnumpy\ndtype\n\x94"
    text += b"B" + size.to_bytes(4, "little") + bytes(size) + b"\x94" + b"0000"
    dtype = b"h\x02\x8c\x02u1\x85R\x94"  # memo 4
    one = b"h\0h\1K\0\x85\x8c\1b\x87R(K\1J" + size.to_bytes(4, "little") + b"\x85h\4\x89h\3tb"
    keys = (b"\x8c\6" + b"%06d" % k + one for k in range(count))
    return text + dtype + b"0}(" + b"".join(keys) + b"u."


def named_long(depth: int = 18) -> bytes:
    """A network whose modules multiply, with names of 500 letters."""
    inner: Any = {"_parameters": {"w": torch.zeros(1)}, "_buffers": {}, "_modules": {}}
    made = _Module(inner)
    for _ in range(depth):
        made = _Module({"_parameters": {}, "_buffers": {}, "_modules": {"a" * 500: made, "b" * 500: made}})
    return pickle.dumps(made, protocol=4)


class _Module:
    def __init__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _legacy() -> list[bytes]:
    return [_saved(value, _use_new_zipfile_serialization=False) for value in _values()[:2]]


def _pickles() -> list[bytes]:
    plain = {k: v.numpy() for k, v in _state().items()}
    return [pickle.dumps(value, protocol=p) for p in (0, 2, 4, 5) for value in (plain, [plain], _state())]


def _npz() -> list[bytes]:
    made = []
    for write in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        write(file, **{k: v.numpy() for k, v in _state().items()})  # type: ignore[operator]
        made.append(file.getvalue())
    return made


class _Task:
    """A training of one linear layer."""

    per_epoch = 2

    def __init__(self) -> None:
        self.net = nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.parts = {"net": self.net, "optimizer": self.optimizer}

    def about(self, known: object) -> dict[str, Any]:
        return {"steps": 4, "deep": {"a": [1, 2]}}

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(self.net.state_dict())

    def best(self, history: Sequence[Any]) -> Any:
        return history[-1]


def _training(folder: Path) -> Training[Any]:
    task = _Task()
    store = Folder(folder, read=list, about=task.about, facts={})
    return Training(task, store, epochs=2, per_epoch=2)  # type: ignore[arg-type]


def _resumed(data: bytes, folder: Path) -> None:
    path = written(folder, f"training/{STATE}", data)
    training = _training(path.parent)
    training.store.restore(training)


def _states() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        training = _training(Path(folder))
        task: Any = training.task
        task.net(torch.ones(1, 2)).sum().backward()
        task.optimizer.step()
        training.done = 1
        training.store.save(training)
        return [(Path(folder) / STATE).read_bytes()]


def _checkpoint(name: str, seeds: Callable[[], list[bytes]], **more: Any) -> Target:
    return Target(name=name, seeds=seeds, read=_weights, errors=(CheckpointError,), memory=60 << 20, **more)


_PICKLE_TOKENS = (
    b"cos\nsystem\n",
    b"R",
    b"\x93",
    b"\x94",
    b"h\0",
    b"\x81",
    b"b",
    b"}",
    b"Q",
    b"\x8c\x08builtins",
    b"(",
    b"u.",
)

HEADER_TOKENS = (
    b'"dtype"',
    b'"F32"',
    b'"shape":[',
    b'"data_offsets":[',
    b'\\"',
    b"[0,",
    b"1e999",
    b"{}",
    b"[]",
    b"NaN",
)

TARGETS = [
    _checkpoint(
        "safetensors",
        _safetensors,
        hostile=_hostile_safetensors,
        repair=right_header,
        tokens=HEADER_TOKENS,
        weight=3,
        guided=False,
    ),
    Target(
        name="torch pickle",
        seeds=lambda: [_inner(data) for data in _archives()],
        hostile=lambda: [*evil(), b"\x80\x02" + b"(" * 100_000, named_long()],
        read=lambda data, folder: _weights(repacked(data), folder),
        errors=(CheckpointError,),
        tokens=_PICKLE_TOKENS,
        memory=100 << 20,
        weight=0.4,
    ),
    _checkpoint("torch archive", _archives, hostile=bombs, weight=0.4),
    _checkpoint("torch before 1.6", _legacy, tokens=_PICKLE_TOKENS, weight=1),
    _checkpoint(
        "pickle", _pickles, hostile=lambda: [*evil(), multiplied(), named_long()], tokens=_PICKLE_TOKENS, weight=1.5
    ),
    _checkpoint("npz", _npz, weight=1.5, guided=False),
    Target(
        name="training",
        seeds=_states,
        hostile=lambda: [repacked(data) for data in evil()],
        read=_resumed,
        errors=(TrainingError,),
        weight=0.2,
        guided=False,
        examples=20,
    ),
]
