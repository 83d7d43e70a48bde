"""ONNX files: parsed and checked without running anything."""

from __future__ import annotations

import copy
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastadv.core.content import file_content
from fastadv.core.errors import ArgumentError
from fastadv.core.extras import require_extra
from fastadv.models.tensor_content import CheckpointError

MOST_BYTES = 2**31 - 1
"""Of a file and its external data: what protobuf, and so every ONNX tool, can hold."""

_MOST_OPERATORS = 20_000
_LEAST_OPSET = 7  # before it, broadcasting was another
_SIDE = 112  # of the images, where neither the file nor the caller says
# TensorProto.DataType
_INPUTS = {1: "float32", 10: "float16", 11: "float64"}
_HALVES = (10, 16)
_FLOATS = (*_INPUTS, 16)
_INTEGERS = (2, 3, 4, 5, 6, 7, 12, 13)
_BOOL = 9
_EXTERNAL = 1  # TensorProto.DataLocation
_TAKEN = frozenset(dir(nn.Module()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """A node of a graph.

    Attributes:
        kind: its operator, with the domain where that is not the standard one.
        name: its own name as a Python name; unique.
        place: which one it is, for messages.
        inputs: names of values; "" for one that is left out.
        outputs: likewise.
        attributes: plain values and tensors.
    """

    kind: str
    name: str
    place: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxGraph:
    """What a file holds, of what its output depends on.

    Attributes:
        file: its path.
        runnable: what onnxruntime is given: the bytes, or the path where weights lie in other files; without operators
            that the output does not depend on.
        opset: version of the standard operators.
        operators: in an order in which they can run.
        constants: weights and other constants by name; floating types as float32, integers as int64.
        input, output: names of values.
        channels, size: of the images, (height, width).
        channels_last: whether the input is (N, H, W, C).
        batch: the only number of images that the file itself takes; None for any.
        dtype: the floating type of the input.
        half: whether there are weights of 16 bits.
    """

    file: Path
    runnable: bytes | str
    opset: int
    operators: tuple[Operator, ...]
    constants: Mapping[str, Tensor]
    input: str
    output: str
    channels: int
    size: tuple[int, int]
    channels_last: bool
    batch: int | None
    dtype: str
    half: bool


def read_onnx(
    path: str | os.PathLike[str], *, size: tuple[int, int] | None, output: str | None, known: Collection[str]
) -> OnnxGraph:
    """Read a graph that takes one batch of images.

    Args:
        path: the file.
        size: height and width of the images, where the file leaves them open.
        output: the name of the output, where there are several.
        known: the operators that can be converted.

    Raises:
        ImportError: the package ``onnx`` is missing.
        CheckpointError: the file is missing, damaged, too large, of another kind, has operators that are not known,
            external data that is not beside it, or another input than one batch of images.
        ArgumentError: ``size`` or ``output`` does not fit the file.
    """
    file = Path(path)
    data = _read_bytes(file)
    require_extra("onnx", "ONNX", only=("onnx",))
    import onnx
    from onnx import checker

    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # of protobuf, whose classes are of its version
        model = None
    if model is None or not all(isinstance(text, str) and text.isprintable() for text in _texts(model.graph)):
        raise refused(file, "an ONNX graph", "one that is cut short or damaged; download it again")
    graph = model.graph
    if not 0 < len(graph.node) <= _MOST_OPERATORS:
        raise refused(file, f"an ONNX graph of 1 to {_MOST_OPERATORS:,} operators", f"one of {len(graph.node):,}")
    output = _chosen_output(file, [value.name for value in graph.output], output)
    nodes, wanted = _needed(graph.node, output)
    operators = list(_operators(file, nodes, len(graph.node)))
    _check_known(file, operators, known)
    external = _load_external(file, model, len(data))
    try:
        checker.check_model(model)
    except Exception as error:  # ValidationError, or an encoding error of protobuf
        raise refused(file, "an ONNX graph that onnx.checker accepts", _first_line(error)) from None
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < _LEAST_OPSET:
        raise refused(file, f"an ONNX graph of opset {_LEAST_OPSET} or later", f"one of opset {opset}")
    image = _image_input(file, graph)
    dead = len(nodes) < len(graph.node)
    half = any(tensor.data_type in _HALVES for tensor in graph.initializer if tensor.name in wanted)
    constants = {tensor.name: _tensor(file, tensor) for tensor in graph.initializer if tensor.name in wanted}
    constants.update(_constant_nodes(file, operators))
    return OnnxGraph(
        file=file,
        runnable=_needed_alone(model, nodes, output) if dead else str(file) if external else data,
        opset=opset,
        operators=tuple(operator for operator in operators if operator.kind != "Constant"),
        constants=constants,
        input=image.name,
        output=output,
        channels=image.channels,
        size=_settled_size(file, image, size),
        channels_last=image.channels_last,
        batch=image.batch,
        dtype=_INPUTS[image.kind],
        half=half,
    )


def refused(file: Path, expected: str, got: object) -> CheckpointError:
    """The error of a file that cannot be taken."""
    return CheckpointError(f"{file}: expected {expected}, got {got}")


def _first_line(error: Exception) -> str:
    return f"one that it refuses ({(str(error).strip().splitlines() or [type(error).__name__])[0][:200]})"


def _read_bytes(file: Path) -> bytes:
    if not file.is_file():
        raise refused(file, "an ONNX file", "a directory" if file.is_dir() else "no such file")
    found = file_content(file)
    if found.kind not in ("onnx", "unknown"):
        raise refused(file, "an ONNX graph", found.said())
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise refused(file, f"an ONNX file of at most {MOST_BYTES:,} bytes", f"one of {size:,}")
    return file.read_bytes()


def _texts(graph: Any) -> Iterator[Any]:
    """Every name in a graph; one that is no UTF-8 comes as bytes."""
    for node in graph.node:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output, *(a.name for a in node.attribute))
    yield from (value.name for value in (*graph.input, *graph.output, *graph.initializer))


def _chosen_output(file: Path, names: list[str], wanted: str | None) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        got = "none" if wanted is None else repr(wanted)
        raise ArgumentError(f"output_name: expected one of {', '.join(names) or 'no outputs'} of {file}, got {got}")
    return wanted


def _needed(nodes: Any, output: str) -> tuple[list[tuple[int, Any]], set[str]]:
    """The nodes that an output depends on, with their numbers, and the names of all that they read."""
    kept, wanted = [], {output}
    for number, node in reversed(list(enumerate(nodes, 1))):
        if wanted.intersection(node.output):
            kept.append((number, node))
            wanted.update(name for name in node.input if name)
    return kept[::-1], wanted


def _needed_alone(model: Any, nodes: list[tuple[int, Any]], output: str) -> bytes:
    """The file without the operators that the output does not depend on: they are not checked, and would be run."""
    graph = model.graph
    kept = copy.deepcopy([node for _, node in nodes])
    outputs = copy.deepcopy([value for value in graph.output if value.name == output])
    for part in (graph.node, graph.output, graph.value_info):
        del part[:]
    graph.node.extend(kept)
    graph.output.extend(outputs)
    return bytes(model.SerializeToString())


def _operators(file: Path, nodes: list[tuple[int, Any]], count: int) -> Iterator[Operator]:
    from onnx import helper

    taken, counts = set(_TAKEN), Counter[str]()
    for number, node in nodes:
        kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        stem = re.sub(r"\W+", "_", node.name, flags=re.ASCII).strip("_")
        stem = stem if stem and not stem[0].isdigit() else f"{node.op_type}_{stem or number}"
        name = stem
        while name in taken:
            counts[stem] += 1
            name = f"{stem}_{counts[stem] + 1}"
        taken.add(name)
        try:
            values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        except ValueError as error:
            raise refused(file, "attributes with values of known types", _first_line(error)) from None
        yield Operator(
            kind=kind,
            name=name,
            place=f"{node.name!r}, operator {number} of {count}" if node.name else f"operator {number} of {count}",
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            attributes={k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in values.items()},
        )


def _check_known(file: Path, operators: list[Operator], known: Collection[str]) -> None:
    unknown: dict[str, str] = {}
    for operator in operators:
        if operator.kind not in known and operator.kind != "Constant":
            unknown.setdefault(operator.kind, operator.place)
    if unknown:
        shown = "; ".join(f"{kind} ({place})" for kind, place in list(unknown.items())[:8])
        raise refused(file, "operators that can be converted", shown)


def _load_external(file: Path, model: Any, size: int) -> bool:
    """Put tensors that lie in other files into the model; whether there are any."""
    from onnx import helper

    graph, folder, total = model.graph, file.resolve().parent, size
    values = (a for node in graph.node for a in node.attribute)
    tensors = [*graph.initializer, *(t for a in values for t in (a.t, *a.tensors))]
    external = [tensor for tensor in tensors if tensor.data_location == _EXTERNAL]
    for tensor in external:
        said = {entry.key: entry.value for entry in tensor.external_data}
        location = said.get("location", "")
        try:
            place = (folder / location).resolve()
            offset, length = int(said.get("offset", 0)), int(said.get("length", -1))
            needs = math.prod(tensor.dims) * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
        except (ValueError, KeyError, TypeError, OSError):
            raise refused(file, f"external data of {tensor.name!r} in numbers", said) from None
        if not location or not place.is_relative_to(folder):
            raise refused(file, "external data beside the file", f"{location!r} of {tensor.name!r}")
        if not place.is_file():
            raise refused(file, f"the external data {location!r} beside the file", "no such file; download it too")
        total += max(needs, 0)
        if total > MOST_BYTES:
            raise refused(file, f"external data of at most {MOST_BYTES:,} bytes in all", "more")
        if needs < 0 or offset < 0 or length not in (-1, needs) or offset + needs > place.stat().st_size:
            got = f"{length} from {offset} on in a file of {place.stat().st_size}"
            raise refused(file, f"{needs} bytes of external data for {tensor.name!r}", got)
        with open(place, "rb") as opened:
            opened.seek(offset)
            tensor.raw_data = opened.read(needs)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return bool(external)


def _tensor(file: Path, tensor: Any) -> Tensor:
    """A constant; float16 and bfloat16 are widened."""
    from onnx import numpy_helper

    kind = tensor.data_type
    if kind not in (*_FLOATS, *_INTEGERS, _BOOL):
        raise refused(file, f"numbers in {tensor.name!r}", f"the data type {kind}")
    try:
        array = np.asarray(numpy_helper.to_array(tensor))
        if array.shape != tuple(tensor.dims):
            raise ValueError(f"{array.size} numbers for the shape {tuple(tensor.dims)}")
    except Exception as error:
        raise refused(file, f"a tensor {tensor.name!r}", _first_line(error)) from None
    dtype = np.float32 if kind in _FLOATS else np.bool_ if kind == _BOOL else np.int64
    return torch.from_numpy(array.astype(dtype).copy())


def _constant_nodes(file: Path, operators: list[Operator]) -> Iterator[tuple[str, Tensor]]:
    for operator in operators:
        if operator.kind == "Constant":
            (name, value), *more = operator.attributes.items() or [("", None)]
            if more or name not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
                raise refused(file, f"a Constant of numbers at {operator.place}", name or "none")
            if name == "value":
                yield operator.outputs[0], _tensor(file, value)
            else:
                yield operator.outputs[0], torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)


@dataclass(frozen=True, kw_only=True)
class _Image:
    """The input of a graph; None for a length that the file leaves open."""

    name: str
    kind: int
    batch: int | None
    channels: int
    size: tuple[int | None, int | None]
    channels_last: bool


def _image_input(file: Path, graph: Any) -> _Image:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs)
        raise refused(file, "one input, a batch of images", f"{len(inputs)} ({names})" if inputs else "none")
    (value,) = inputs
    tensor = value.type.tensor_type
    if tensor.elem_type not in _INPUTS:
        from onnx import TensorProto

        known = tensor.elem_type in TensorProto.DataType.values()
        got = TensorProto.DataType.Name(tensor.elem_type) if known else tensor.elem_type
        raise refused(file, f"an input {value.name!r} of floating-point images", got)
    lengths = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
    if len(lengths) != 4:
        shown = ", ".join(str(d.dim_value or d.dim_param or "?") for d in tensor.shape.dim)
        raise refused(file, f"an input {value.name!r} of images (N, C, H, W)", f"({shown})")
    batch, first, middle, last = lengths
    channels_last = last is not None and last <= 4 and not (first is not None and first <= 4)
    channels = last if channels_last else first if first is not None else 3
    if channels is None or channels > 4:
        raise refused(file, "images of 1 to 4 channels", f"{channels}")
    return _Image(
        name=value.name,
        kind=tensor.elem_type,
        batch=batch,
        channels=channels,
        size=(first, middle) if channels_last else (middle, last),
        channels_last=channels_last,
    )


def _settled_size(file: Path, image: _Image, given: tuple[int, int] | None) -> tuple[int, int]:
    wanted = given or (_SIDE, _SIDE)
    found = (image.size[0] or wanted[0], image.size[1] or wanted[1])
    if given is not None and found != tuple(given):
        raise ArgumentError(f"input_size: expected {found}, what {file} takes, got {given}")
    return found
