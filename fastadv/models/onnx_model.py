"""`load_onnx`: a face network from an ONNX file, compared with onnxruntime before anybody uses it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, Error
from fastadv.core.extras import EXTRAS
from fastadv.core.notices import notify
from fastadv.models.devices import open_device
from fastadv.models.face_model import FaceModel
from fastadv.models.memory import is_out_of_memory
from fastadv.models.modes import plain_modes
from fastadv.models.onnx_convert import OPERATORS, convert
from fastadv.models.onnx_file import OnnxGraph, read_onnx, refused
from fastadv.models.wrap import wrap

TOLERANCE = 1e-4
"""How far an embedding may be from onnxruntime's, in parts of its length."""
HALF_TOLERANCE = 2e-2
"""The same for a file with weights of 16 bits, which onnxruntime may compute in 16 bits too."""

_Numbers = float | Sequence[float] | Tensor


@plain_modes(torch.device("cpu"))
def load_onnx(
    path: str | os.PathLike[str],
    *,
    mean: _Numbers | None = None,
    std: _Numbers | None = None,
    input_size: int | tuple[int, int] | None = None,
    output: str = "embedding",
    output_name: str | None = None,
    layers: Sequence[str] | None = None,
    name: str | None = None,
    device: torch.device | str = "cpu",
) -> FaceModel:
    """Convert an ONNX file to a network that can be attacked like any other. ::

        model = fa.load_onnx("w600k_r50.onnx")

    The file is parsed and checked by the package ``onnx``; nothing in it is run. Convolutions, batch norms, PReLUs and
    linear layers become those of torch, under the names of the file's operators, so that batch norms are folded and
    layers can be tapped. Weights of 16 bits become float32. A file that was exported for a fixed number of images
    takes any.

    Two random images are embedded by the network and by onnxruntime, where that is installed: the embeddings must agree
    within 1e-4 of their length, or 2e-2 for a file with weights of 16 bits. Without onnxruntime a notice says that this
    was not checked, and a batch is compared with its images alone.

    Args:
        path: the file; external data must lie beside it, 2 GiB in all at most.
        mean: what is subtracted from pixels in [0, 1]: a number, or one for each channel. None, with ``std``: as the
            file says. Where its first operators normalise pixels from 0 to 255, or in [0, 1], the network is given
            those; else (x - 127.5) / 127.5 of pixels from 0 to 255, InsightFace's convention, which a notice says.
        std: what the difference is divided by.
        input_size: height and width of the images, or one number for a square, where the file leaves them open; None:
            the file's, or 112.
        output: "embedding" or "logits", see `wrap`.
        output_name: which output of the file is taken, where it has several.
        layers: names of submodules that are offered as taps, shallow to deep; None: the sums at the ends of residual
            blocks, or the activations of a network without them.
        name: what reports call the model; None: the file's name without suffix.
        device: where the model goes.

    Returns:
        The model, in evaluation mode.

    Raises:
        ImportError: the package ``onnx`` is missing.
        CheckpointError: the file is missing, damaged, no ONNX graph of one batch of images, or has operators that are
            not converted (the message names them, and where they are); or its embeddings are not onnxruntime's.
        ValueError: an argument does not fit the file, or the device is not there.
    """
    where = open_device(device)
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    graph = read_onnx(path, size=size, output=output_name, known=OPERATORS)
    mean, std = _preprocessing(graph, mean, std)
    network, taps = convert(graph)
    model = wrap(
        network,
        input_size=graph.size,
        mean=mean,
        std=std,
        channels=graph.channels,
        output=output,
        layers=taps if layers is None else layers,
        name=name or Path(path).stem,
    )
    _compare(model, graph)
    return model.to(where)


def _preprocessing(graph: OnnxGraph, mean: _Numbers | None, std: _Numbers | None) -> tuple[_Numbers, _Numbers]:
    """What is subtracted, and what it is divided by; a normalisation in the graph is not applied twice."""
    given = None if mean is None or std is None else (mean, std)
    if given is None and not (mean is None and std is None):
        raise ArgumentError(f"mean, std: expected both or none, got mean={brief(mean)}, std={brief(std)}")
    inside = normalisation(graph)
    if inside is None:
        if given is None:
            notify(
                f"{graph.file}: has no normalisation of its own; (x - 127.5) / 127.5 of pixels from 0 to 255 is taken, "
                "InsightFace's convention; for another give mean= and std= to load_onnx",
                stacklevel=5,
            )
        return given or (0.5, 0.5)
    middle, scale = inside
    said = f"(x - {middle:.4g}) / {scale:.4g}"
    if 80 <= middle <= 160 or (16 <= scale <= 300 and -1 <= middle <= 160):
        right, pixels = (0.0, 1 / 255), "from 0 to 255"
    elif 0.2 <= middle <= 0.8 and 0.1 <= scale <= 1.2:
        right, pixels = (0.0, 1.0), "in [0, 1]"
    elif given is None:
        raise ArgumentError(
            f"mean, std: expected them for {graph.file}, whose first operators compute {said}, of pixels of a range "
            "that is not recognised, got none"
        )
    else:
        return given
    if given is not None and not all(map(_near, given, right)):
        raise ArgumentError(
            f"mean, std: expected none, or {right[0]:g} and {right[1]:.6g}, for {graph.file}, which normalises pixels "
            f"{pixels} itself, {said}, got mean={brief(mean)}, std={brief(std)}"
        )
    return right


def _near(given: _Numbers, right: float) -> bool:
    try:
        return bool(np.allclose(np.asarray(given, np.float64), right, rtol=1e-3, atol=1e-6))
    except (TypeError, ValueError):  # no numbers
        return False


def normalisation(graph: OnnxGraph) -> tuple[float, float] | None:
    """``(m, s)`` of a graph that begins with ``(x - m) / s``, as means over the channels; None of any other."""
    value, scale, shift, found = graph.input, 1.0, 0.0, False
    while True:
        readers = [operator for operator in graph.operators if value in operator.inputs]
        if len(readers) != 1:
            break
        kind, inputs = readers[0].kind, readers[0].inputs
        if kind in ("Add", "Sub", "Mul", "Div"):
            other = graph.constants.get(inputs[1] if inputs[0] == value else inputs[0])
            first = inputs[0] == value
            if other is None or (kind == "Div" and not first):
                break
            number, found = float(other.float().mean()), True
            if kind in ("Mul", "Div"):
                factor = number if kind == "Mul" else 1 / number if number else 0.0
                scale, shift = scale * factor, shift * factor
            elif kind == "Add":
                shift += number
            else:
                scale, shift = (scale, shift - number) if first else (-scale, number - shift)
        elif kind not in ("Identity", "Cast", "Transpose", "Dropout"):
            break
        value = readers[0].outputs[0]
    return (0.0 - shift / scale, 1 / scale) if found and scale else None


def _compare(model: FaceModel, graph: OnnxGraph) -> None:
    """Refuse a network whose embeddings are not onnxruntime's, or of an image not the same alone and in a batch."""
    count = max(2, graph.batch or 0)
    images = torch.rand((count, *model.image_shape), generator=torch.Generator().manual_seed(0), device="cpu")
    try:
        with torch.no_grad():
            made = model.features(images)
            alone = model.features(images[:1])
    except (Error, RuntimeError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise refused(
            graph.file, f"a graph that takes {count} images, and one", f"one that does not ({reason})"
        ) from error
    tolerance = HALF_TOLERANCE if graph.half else TOLERANCE
    apart = _apart(made[:1], alone)
    if not apart <= TOLERANCE:
        raise refused(graph.file, "the same embedding of an image alone and in a batch", f"a difference of {apart:.2g}")
    expected = _of_onnxruntime(model, graph, images)
    if expected is not None and not (apart := _apart(made, expected)) <= tolerance:
        raise refused(
            graph.file,
            f"embeddings within {tolerance:g} of onnxruntime's, in parts of their length",
            f"a difference of {apart:.2g}",
        )


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest distance of two embeddings, in parts of the other's length."""
    if one.shape != other.shape:
        return float("inf")
    return float(((one - other).norm(dim=1) / other.norm(dim=1).clamp_min(1e-12)).max())


def _of_onnxruntime(model: FaceModel, graph: OnnxGraph, images: Tensor) -> Tensor | None:
    """The embeddings that onnxruntime computes; None where it cannot, which a notice says."""
    if importlib.util.find_spec("onnxruntime") is None:
        notify(
            f"{graph.file}: the network is not compared with onnxruntime, which is not installed; "
            f"{EXTRAS['onnx'][0].install}",
            stacklevel=6,
        )
        return None
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what it cannot do it raises too
    normalised = ((images - model.mean) / model.std).numpy()
    batch = (normalised.transpose(0, 2, 3, 1) if graph.channels_last else normalised).astype(graph.dtype)
    step = graph.batch or len(batch)
    try:
        session = onnxruntime.InferenceSession(graph.runnable, options, providers=["CPUExecutionProvider"])
        parts = [
            np.asarray(session.run([graph.output], {graph.input: batch[i : i + step]})[0], np.float32).reshape(step, -1)
            for i in range(0, len(batch), step)
        ]
    except Exception as error:  # its errors have no common class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        notify(f"{graph.file}: the network is not compared with onnxruntime, which fails: {reason}", stacklevel=6)
        return None
    return torch.from_numpy(np.concatenate(parts))
