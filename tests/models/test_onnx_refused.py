"""ONNX files that are refused, and those whose weights lie in other files."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch
from onnx_files import PLAIN, RELU, SHAPE, face_network, graph, images, numbers, onnx, saved

import fastadv as fa
from fastadv.core.notices import Notice
from fastadv.models import CheckpointError, load_onnx


def test_unknown_operators_are_named_with_their_places(tmp_path):
    nodes = [("Det", "x", "a"), ("NonZero", "x", "b"), ("Det", "x", "c"), ("Add", "a c", "d"), ("Add", "d b", "y")]
    path = saved(tmp_path, graph(nodes))
    with pytest.raises(CheckpointError) as raised:
        load_onnx(path, **PLAIN)
    words = "Det ('/net/Det_0', operator 1 of 6); NonZero ('/net/NonZero_1', operator 2 of 6)"
    assert str(raised.value) == f"{path}: expected operators that can be converted, got {words}"


def test_an_operator_of_another_domain_is_unknown(tmp_path):
    model = graph(RELU)
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(CheckpointError, match=r"got com\.microsoft::Relu \('/net/Relu_0', operator 1 of 2\)"):
        load_onnx(saved(tmp_path, model), **PLAIN)


def test_a_second_output_of_a_pool_is_not_converted(tmp_path):
    nodes = [("MaxPool", "x", "p i", {"kernel_shape": [2, 2]}), ("Cast", "i", "j", {"to": 1}), ("Add", "p j", "y")]
    with pytest.raises(
        CheckpointError, match=r"expected a value for input 0, got 'i', which is not converted for Cast"
    ):
        load_onnx(saved(tmp_path, graph(nodes)), **PLAIN)


BYTES = {
    "a page": (b"<!DOCTYPE html><html>", "expected an ONNX graph, got an HTML page"),
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\n",
        r"Git LFS pointer, not the file itself; run `git lfs",
    ),
    "nothing": (b"", "an empty file; download it again"),
    "other bytes": (bytes(range(200, 256)) * 9, "one that is cut short or damaged; download it again"),
}


@pytest.mark.parametrize("what", BYTES)
def test_what_is_no_graph_is_named(what, tmp_path):
    data, words = BYTES[what]
    (tmp_path / "net.onnx").write_bytes(data)
    with pytest.raises(CheckpointError, match=words):
        load_onnx(tmp_path / "net.onnx", **PLAIN)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match="expected an ONNX file, got no such file"):
        load_onnx(tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match="expected an ONNX file, got a directory"):
        load_onnx(tmp_path)


def test_damage_anywhere_is_an_error_of_the_file(face, tmp_path):
    """Cut short, or with changed bytes: an error, or the same kind of model; no other exception."""
    data, draw = face.read_bytes(), np.random.default_rng(0)
    path, errors = tmp_path / "damaged.onnx", []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        for k in range(30):
            damaged = bytearray(data if k % 2 else data[: int(draw.integers(len(data)))])
            for place in draw.integers(len(damaged) or 1, size=min(3, len(damaged))):
                damaged[place] = int(draw.integers(256))
            path.write_bytes(bytes(damaged))
            try:
                load_onnx(path, **PLAIN)
            except fa.Error as error:
                errors.append(str(error))
    assert len(errors) > 10
    assert not any("\n" in error for error in errors)


@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_inputs(count, tmp_path):
    model = graph([("Add", "x x", "y")] if count else RELU)
    if count:
        model.graph.input.append(onnx.helper.make_tensor_value_info("z", 1, ["N", *SHAPE]))
        model.graph.node[0].input[1] = "z"
    else:
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers(1, *SHAPE), "x"))
    got = r"2 \('x', 'z'\)" if count else "none"
    with pytest.raises(CheckpointError, match=f"expected one input, a batch of images, got {got}"):
        load_onnx(saved(tmp_path, model), **PLAIN)


def test_another_input_or_output(tmp_path):
    with pytest.raises(CheckpointError, match=r"an input 'x' of images \(N, C, H, W\), got \(N, 3, 8\)"):
        load_onnx(saved(tmp_path, graph(RELU, shape=(3, 8))), **PLAIN)
    with pytest.raises(CheckpointError, match="an input 'x' of floating-point images, got UINT8"):
        load_onnx(saved(tmp_path, graph([("Cast", "x", "y", {"to": 1})], kind=onnx.TensorProto.UINT8)), **PLAIN)
    with pytest.raises(CheckpointError, match="images of 1 to 4 channels, got 7"):
        load_onnx(saved(tmp_path, graph(RELU, shape=(7, 8, 6))), **PLAIN)
    with pytest.raises(CheckpointError, match=r"an output 'out' of shape \(N, D\), got \(1, 3, 8, 6\)"):
        load_onnx(saved(tmp_path, graph([("Relu", "x", "out")], flatten=False, axes=4)), **PLAIN)


def test_old_versions(tmp_path):
    with pytest.raises(CheckpointError, match="expected an ONNX graph of opset 7 or later, got one of opset 6"):
        load_onnx(saved(tmp_path, graph(RELU, opset=6)), **PLAIN)


def test_what_the_checker_refuses(tmp_path):
    model = graph(RELU)
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(CheckpointError, match=r"an ONNX graph that onnx\.checker accepts, got one that it refuses"):
        load_onnx(saved(tmp_path, model), **PLAIN)
    model = graph(RELU)
    model.ir_version = 999
    model.graph.name = ""
    with pytest.raises(CheckpointError, match=r"an ONNX graph"):
        load_onnx(saved(tmp_path, model), **PLAIN)


def test_a_great_file_is_not_read(tmp_path, face):
    os.truncate(face, 2**31)
    with pytest.raises(CheckpointError, match="expected an ONNX file of at most 2,147,483,647 bytes, got one of"):
        load_onnx(face, **PLAIN)


# -- weights in other files --


def external(model, location: str = "net.data", **more: str):
    """The model with the weights of its first convolution in another file, and their bytes."""
    tensor = next(t for t in model.graph.initializer if t.name.startswith("w"))
    data = bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "64", "length": str(len(data)), **more}.items():
        if value is not None:
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    return model, data


@pytest.mark.parametrize("more", [{}, {"length": None}])
def test_external_weights(more, face, tmp_path):
    model, data = external(face_network(), **more)
    (tmp_path / "net.data").write_bytes(bytes(64) + data)
    path = saved(tmp_path, model)
    made, expected = load_onnx(path, **PLAIN), load_onnx(face, **PLAIN)
    assert torch.equal(made(images(made)), expected(images(made)))


@pytest.mark.parametrize("location", ["../net.data", "/etc/hostname", "a/../../net.data", "link", "", "."])
def test_external_weights_elsewhere_are_refused(location, tmp_path):
    model, data = external(face_network(), location)
    (tmp_path / "net.data").write_bytes(bytes(64) + data)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "net.data")
    words = "beside the file, got (no such file|.* of 'w)"
    with pytest.raises(CheckpointError, match=words):
        load_onnx(saved(folder, model), **PLAIN)


def test_external_weights_that_are_missing_or_of_another_length(tmp_path):
    model, data = external(face_network())
    path = saved(tmp_path, model)
    with pytest.raises(
        CheckpointError, match=r"the external data 'net.data' beside the file, got no such file; download"
    ):
        load_onnx(path, **PLAIN)
    (tmp_path / "net.data").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"bytes of external data for 'w\d+', got \d+ from 64 on in a file of"):
        load_onnx(path, **PLAIN)
    (tmp_path / "net.data").write_bytes(bytes(64) + data)
    for key, value in (("length", "8"), ("offset", "-4"), ("offset", "much")):
        model, _ = external(face_network(), **{key: value})
        with pytest.raises(CheckpointError, match="external data"):
            load_onnx(saved(tmp_path, model), **PLAIN)


def test_external_weights_of_a_great_size_are_not_read(tmp_path):
    model, data = external(face_network())
    tensor = next(t for t in model.graph.initializer if t.name.startswith("w"))
    tensor.dims[0] = 2**40
    (tmp_path / "net.data").write_bytes(bytes(64) + data)
    with pytest.raises(CheckpointError, match="external data of at most 2,147,483,647 bytes in all, got more"):
        load_onnx(saved(tmp_path, model), **PLAIN)
