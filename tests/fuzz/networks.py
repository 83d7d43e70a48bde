"""Detectors, descriptions of networks, and ONNX graphs."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastadv.core.errors import ArgumentError
from fastadv.detection import (
    Architecture,
    DetectionFileError,
    Detector,
    Network,
    Trajectory,
    centroids,
    fit_knn,
    load_detector,
    load_knn,
    load_representatives,
)
from fastadv.models.description import DescriptionError, read_description
from fastadv.models.onnx_model import load_onnx
from fastadv.models.tensor_content import CheckpointError

from .judge import Target
from .lists import written
from .weights import HEADER_TOKENS, right_header

# -- detectors --


@cache
def _detectors() -> tuple[bytes, bytes, bytes]:
    generator = torch.Generator().manual_seed(0)
    batch = [torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)], torch.arange(8) % 4
    found = centroids([batch], layers=("a", "b"), classes=("w", "x", "y", "z"), model="m", provenance={"data": "made"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(Architecture(kind="mlp", layers=2, width=4, hidden=3)).eval()
    detector = Detector(trajectory=Trajectory(representatives=found), network=network)
    detector = detector.calibrated(torch.randn(40, generator=generator), rates=(0.1,))
    rows = torch.randn(40, 3, generator=generator), torch.arange(40) % 4
    knn = fit_knn([rows], processing="pca", dimensions=2, k=3, layer="a", model="m")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("detector", "knn", "representatives")]
        for path, made in zip(paths, (detector, knn, found), strict=True):
            made.save(path)
        one, other, third = (path.read_bytes() for path in paths)
    return one, other, third


def _hostile_detector(k: int) -> Callable[[], list[bytes]]:
    def made() -> list[bytes]:
        data = _detectors()[k]
        size = int.from_bytes(data[:8], "little")
        found = []
        for name in json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["about"]):
            for value in ("1e999", "[" * 900 + "]" * 900, "-1", "9" * 400, "null", "{}", '["a", "a"]', "1048576", "[]"):
                found.append(_with_about(data, size, name, value))
        return found

    return made


def _with_about(data: bytes, size: int, name: str, value: str) -> bytes:
    header = json.loads(data[8 : 8 + size])
    about = json.loads(header["__metadata__"]["about"])
    about[name] = "HERE"
    header["__metadata__"]["about"] = json.dumps(about).replace('"HERE"', value)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _file_reader(read: Callable[[Path], object], name: str = "x.safetensors") -> Callable[[bytes, Path], None]:
    def wrapped(data: bytes, folder: Path) -> None:
        read(written(folder, name, data))

    return wrapped


# -- descriptions and graphs --


def _description(path: Path) -> None:
    found = read_description(path)
    found.normalisation  # noqa: B018
    found.points((112, 112))


_TOML = b"""# a network
architecture = "iresnet50"
weights = "w.pth"
channels = "bgr"
mean = [127.5, 127.5, 127.5]
std = 128.0
range = 255
input_size = [112, 96]
template = [[38.0, 51.0], [73.0, 51.0], [56.0, 71.0], [41.0, 92.0], [70.0, 92.0]]
mirror = true
"""


def _onnx(data: bytes, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_onnx(written(folder, "net.onnx", data), mean=0.5, std=0.5)


def graph(nodes: Sequence[tuple[Any, ...]], constants: dict[str, Any] | None = None, **more: Any) -> bytes:
    """An ONNX file of nodes ``(operator, inputs, outputs[, attributes])`` from ``x`` to ``out``."""
    from onnx import TensorProto, helper, numpy_helper

    made = [
        helper.make_node(op, inputs.split(), outputs.split(), name=f"{op}_{k}", **(rest[0] if rest else {}))
        for k, (op, inputs, outputs, *rest) in enumerate(nodes)
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, ["N", 3, 8, 6])]
    body = helper.make_graph(made, "g", inputs, [value("out", TensorProto.FLOAT, [None, None])], weights)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _graphs() -> list[bytes]:
    draw = np.random.default_rng(0)

    def number(*shape: int) -> Any:
        return draw.normal(size=shape).astype(np.float32)

    conv = ("Conv", "x w", "c", {"pads": [1] * 4, "strides": [2, 2]})
    norm = ("BatchNormalization", "c s b m v", "n", {"epsilon": 1e-5})
    rest = [
        ("PRelu", "n a", "p"),
        ("MaxPool", "p", "q", {"kernel_shape": [2, 2]}),
        ("Flatten", "q", "f"),
        ("Gemm", "f g", "out"),
    ]
    constants = {
        "w": number(4, 3, 3, 3),
        "s": number(4),
        "b": number(4),
        "m": number(4),
        "v": abs(number(4)),
        "a": number(4, 1, 1),
    }
    shaped = [
        ("Shape", "x", "d"),
        ("Gather", "d i", "n"),
        ("Unsqueeze", "n z", "u"),
        ("Concat", "u k", "t", {"axis": 0}),
    ]
    shaped += [("Reshape", "x t", "out")]
    sizes = {"i": np.int64(0), "z": np.array([0]), "k": np.array([-1])}
    return [graph([conv, norm, *rest], {**constants, "g": number(24, 5)}), graph(shaped, sizes)]


def _hostile_graphs() -> list[bytes]:
    out = ("Flatten", "x", "f")
    wide = {"a": np.zeros((1 << 15, 1), np.float32), "b": np.zeros((1, 1 << 15), np.float32)}
    count = {"k": np.array([1 << 15], np.int64), "z": np.float32(0)}
    large = ("ConstantOfShape", "k", "o")
    double = [("Concat", f"o{k} o{k}", f"o{k + 1}", {"axis": 0}) for k in range(30)]
    split = ("Split", "x s", " ".join(f"y{k}" for k in range(3000)), {"axis": 1})
    zeros = np.array([0] * 2999 + [3], np.int64)
    tail = [("ReduceMax", "r", "q"), ("Add", "f q", "out")]
    return [
        graph([("Add", "a b", "r"), *tail[:1], out, tail[1]], wide),
        graph([("MatMul", "a b", "r"), *tail[:1], out, tail[1]], wide),
        graph([("Einsum", "a b", "r", {"equation": "ij,kl->il"}), *tail[:1], out, tail[1]], wide),
        graph([large, ("Pad", "o p", "r"), *tail[:1], out, tail[1]], {**count, "p": np.array([1 << 30, 1 << 30])}),
        graph([*double, ("Identity", "o30", "r"), *tail[:1], out, tail[1]], {"o0": np.zeros(64, np.float32)}),
        graph([split, ("Flatten", "y2999", "out")], {"s": zeros}),
        graph(
            [("Gather", "a i", "r", {"axis": 1}), *tail[:1], out, tail[1]], {**wide, "i": np.zeros(1 << 14, np.int64)}
        ),
        graph([("ConstantOfShape", "k", "dead"), ("Flatten", "x", "out")], {"k": np.array([1 << 29], np.int64)}),
        graph(
            [("Loop", "n c v", "dead", _endless()), ("Flatten", "x", "out")],
            {"n": np.int64(2**62), "c": np.bool_(True), "v": np.float32(0)},
        ),
        graph([("Flatten", "x", "out", {"axis": -(1 << 62)})]),
        graph([("Flatten", "x", "out", {"unknown": b"\xff"})]),
        graph(
            [("Resize", "x r s", "y", {"mode": "nearest"}), ("Flatten", "y", "out")],
            {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 1e5, 1e5], np.float32)},
        ),
    ]


def _endless() -> dict[str, Any]:
    """The body of a loop that goes on."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["v"], ["w"])]
    inputs = [value("k", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, [])]
    outputs = [value("d", TensorProto.BOOL, []), value("w", TensorProto.FLOAT, [])]
    return {"body": helper.make_graph(nodes, "body", inputs, outputs)}


TARGETS = [
    *(
        Target(
            name=name,
            seeds=lambda k=k: [_detectors()[k]],  # type: ignore[misc]
            hostile=_hostile_detector(k),
            read=_file_reader(read),
            errors=(DetectionFileError,),
            repair=right_header,
            tokens=HEADER_TOKENS,
            weight=1,
            guided=k == 0,
        )
        for k, (name, read) in enumerate(
            (("detector", load_detector), ("knn", load_knn), ("representatives", load_representatives))
        )
    ),
    Target(
        name="toml",
        seeds=lambda: [_TOML, b'weights = "net.onnx"\ninput_size = 112\ntemplate = "arcface"\n'],
        hostile=lambda: [
            *(
                _TOML.replace(b"128.0", value)
                for value in (b"9" * 400, b"0x" + b"f" * 5000, b"nan", b"1e999", b"[" * 300 + b"]" * 300)
            ),
            *(_TOML.replace(b"w.pth", value) for value in (b"a/" * 3000, b"a" * 300, b"\\u0000", b"../../w")),
            *(_TOML.replace(b"112", value) for value in (b"9" * 400, b"-1", b"0x" + b"f" * 5000)),
            *(
                b"a." * 8000 + b"b = 1",
                b"a." * 50_000 + b"b = 1",
                b"[" * 5000,
                b"a = " + b"[" * 5000,
                b"range = 0x" + b"f" * 5000,
                b"range = 1e999",
            ),
        ],
        read=_file_reader(_description, "net.toml"),
        errors=(DescriptionError, ArgumentError),
        tokens=(b"0x", b"nan", b"inf", b"1979-05-27", b'"""', b"mirror = ", b"range = ", b"template = ", b"[[", b"rgb"),
        weight=1,
    ),
]
if importlib.util.find_spec("onnx"):
    TARGETS.append(
        Target(
            name="onnx",
            seeds=_graphs,
            hostile=_hostile_graphs,
            read=_onnx,
            errors=(CheckpointError, ArgumentError),
            tokens=(
                b"Conv",
                b"Gemm",
                b"Reshape",
                b"Loop",
                b"axis",
                b"pads",
                b"\x0a\x00",
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            ),
            weight=0.1,
            examples=15,
            seconds=10,
            memory=700 << 20,
        )
    )
