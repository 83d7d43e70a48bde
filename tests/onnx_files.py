"""ONNX files made by hand: shared by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastadv.models import FaceModel

onnx = pytest.importorskip("onnx", reason="onnx is not installed: the extra `onnx`")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra `onnx`")

SHAPE = (3, 8, 6)
PLAIN = {"mean": 0.5, "std": 0.5}
RELU = [("Relu", "x", "y")]


def images(model: FaceModel, count: int = 3, seed: int = 1) -> Tensor:
    """Random images of a model's size."""
    return torch.rand(count, *model.image_shape, generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int, seed: int = 0, low: float | None = None) -> np.ndarray:
    """Normal numbers, or positive ones from ``low`` on."""
    values = np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)
    return values if low is None else np.abs(values) + np.float32(low)


def graph(
    nodes,
    constants=None,
    *,
    opset=17,
    batch="N",
    shape=SHAPE,
    flatten=True,
    kind=None,
    outputs=("out",),
    axes=2,
):
    """A model of nodes ``(operator, inputs, outputs[, attributes])`` from ``x`` to ``y``, which becomes ``(N, D)``."""
    kind = kind or onnx.TensorProto.FLOAT
    nodes = [*nodes, *([("Flatten", "y", "out")] if flatten else [])]
    made = [
        onnx.helper.make_node(
            op, inputs.split(" ") if inputs else [], results.split(), name=f"/net/{op}_{i}", **(more[0] if more else {})
        )
        for i, (op, inputs, results, *more) in enumerate(nodes)
    ]
    weights = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    value = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        made, "g", [value("x", kind, [batch, *shape])], [value(name, kind, [None] * axes) for name in outputs], weights
    )
    return onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def saved(folder: Path, model, name: str = "net.onnx") -> Path:
    """The file of a model."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def by_onnxruntime(path: Path, x: Tensor, *, one_by_one: bool = False, output: str | None = None) -> Tensor:
    """What onnxruntime computes."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    parts = x.split(1) if one_by_one else [x]
    found = [session.run([output] if output else None, {given.name: part.numpy()})[0] for part in parts]
    return torch.from_numpy(np.concatenate([value.reshape(len(x) // len(parts), -1) for value in found])).float()


def face_network(*, prelude=(), prelude_constants=None, batch="N", side=16, width=8, seed=0):
    """A small network as InsightFace exports its own: residual blocks of batch norm, convolution and PReLU."""
    made = {**(prelude_constants or {})}

    def weight(name, *shape, low=None):
        made[name] = numbers(*shape, seed=seed + len(made), low=low) / np.float32(np.sqrt(np.prod(shape[1:]) or 1))
        return name

    def norm(source, result, channels):
        stem = f"bn{len(made)}"
        names = [weight(f"{stem}{part}", channels, low=0.5 if part in "sv" else None) for part in "sbmv"]
        return ("BatchNormalization", " ".join((source, *names)), result, {"epsilon": 1e-5})

    def conv(source, result, out, into, stride=1):
        names = f"{source} {weight(f'w{len(made)}', out, into, 3, 3)}"
        return ("Conv", names, result, {"pads": [1] * 4, "strides": [stride] * 2, "kernel_shape": [3, 3]})

    def prelu(source, result, channels):
        made[f"slope{result}"] = np.full((channels, 1, 1), 0.25, np.float32)
        return ("PRelu", f"{source} slope{result}", result)

    nodes = [
        *prelude,
        conv("pre" if prelude else "x", "c0", width, 3),
        norm("c0", "n0", width),
        prelu("n0", "b0", width),
    ]
    for k in range(2):
        nodes += [norm(f"b{k}", f"p{k}", width), conv(f"p{k}", f"q{k}", width, width), norm(f"q{k}", f"r{k}", width)]
        nodes += [prelu(f"r{k}", f"s{k}", width), conv(f"s{k}", f"t{k}", width, width), norm(f"t{k}", f"u{k}", width)]
        nodes += [("Add", f"u{k} b{k}", f"b{k + 1}")]
    weight("fc", 12, width * side * side // 4)
    made["fcb"] = numbers(12, seed=9)
    nodes += [("MaxPool", "b2", "small", {"kernel_shape": [2, 2], "strides": [2, 2]}), ("Flatten", "small", "f")]
    nodes += [("Gemm", "f fc fcb", "g", {"transB": 1}), norm("g", "out", 12)]
    return graph(nodes, made, batch=batch, shape=(3, side, side), flatten=False)
