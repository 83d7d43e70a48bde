"""A guard as a file for other runtimes: ONNX or a ``torch.export`` program, one graph from pixels to the verdict."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastadv.core.errors import ArgumentError, Error, MissingPackageError
from fastadv.core.fields import check_type
from fastadv.core.files import write_atomically
from fastadv.core.provenance import versions
from fastadv.detection.calibration import Thresholds
from fastadv.detection.detectors import Detector
from fastadv.detection.guard import Guard
from fastadv.detection.one_pass import OnePass, only_of_finite, with_flags
from fastadv.detection.taps import pooled
from fastadv.models.face_model import copy_of
from fastadv.models.folding import fold_batch_norms
from fastadv.models.layers import freeze

FORMATS = {".onnx": "onnx", ".pt2": "torch.export"}
METADATA = "fastadv"

_VERSION = 1
_INPUT = "images"
_AXIS = "N"
_BATCH = "N >= 1: no empty batch, on which onnxruntime ends the process where the detector is an LSTM"
_ELEMENTS = 1 << 20  # of a temporary of the distances, for one image


class ExportError(Error, RuntimeError):
    """An exported graph does not say what the guard says; nothing was written."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written, and how well it agrees with the guard it was made of.

    Attributes:
        path: the file.
        format: ``"onnx"`` or ``"torch.export"``.
        size: bytes.
        embeddings: the largest difference of an entry of an embedding.
        logits: of a logit, relative to it where it is above 1; None without a class head.
        scores: of a score, likewise.
    """

    path: Path
    format: str
    size: int
    embeddings: float
    logits: float | None
    scores: float


def export_guard(guard: Guard, path: str | os.PathLike[str], *, tolerance: float = 1e-4) -> Exported:
    """Write backbone, pooling, distances, detector and class head as one graph, after it was run and compared.

    The graph takes ``images`` ``(N, 3, H, W)`` float32, RGB in [0, 1], any N >= 1 (its documentation says so: on an
    empty batch onnxruntime ends the process where the detector is an LSTM), and gives ``embeddings`` ``(N, D)``,
    ``scores`` ``(N,)``, ``flagged`` ``(N,)`` bool, and ``logits`` ``(N, K)`` if the model has a head. It holds plain
    operations only, all in float32: no part of this package is needed to run it. What a reader has to know (the
    threshold, the preprocessing, layers, versions) is a JSON text under the name ``fastadv``: in the metadata of the
    ONNX model, or an extra file of the ``torch.export`` archive. Where the detector has a calibration set, ``p_values``
    ``(N,)`` float64 come last (:meth:`fastadv.detection.Thresholds.p_values`).

    The own class of a detector of the reading ``relative`` is the one that the class head chooses, where the detector
    knows the head, or else the one nearest in the last layer; no claim can be made.

    The file is executed (by onnxruntime, or PyTorch) on batches of one and of three images and has to agree with the
    guard before it is written, whole or not at all.

    Args:
        guard: with precision ``"fp32"``; its fused operations are replaced by plain ones.
        path: ``.onnx`` or ``.pt2``; the folder must exist.
        tolerance: how much an embedding, a logit or a score may differ; relative where the value is above 1.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or value.
        ImportError: ONNX is asked for and a package of the extra ``onnx`` is missing.
        ExportError: the graph differs from the guard by more than ``tolerance``.
        OSError: with the file's name.
    """
    check_type("guard", guard, Guard)
    file = Path(path)
    if file.suffix not in FORMATS:
        raise ArgumentError(f"path: expected a name that ends in {' or '.join(FORMATS)}, got {str(file)!r}")
    if guard.precision != "fp32":
        raise ArgumentError(f"guard: expected precision 'fp32', what the graph computes in, got {guard.precision!r}")
    if not 0 < tolerance < 1:
        raise ArgumentError(f"tolerance: expected a number in (0, 1), got {tolerance}")
    if not file.parent.is_dir():
        raise ArgumentError(f"path: expected a file in a folder that exists, got {str(file)!r}")
    kind = FORMATS[file.suffix]
    if kind == "onnx":
        _require_onnx()
    module = _plain(guard)
    program = _program(module, guard)
    about = json.dumps(describe(guard), sort_keys=True)
    data = _onnx_bytes(program, module.names, about) if kind == "onnx" else _archive(program, about)
    run = _onnx_runner(data) if kind == "onnx" else _archive_runner(data, module.names)
    worst = _compare(guard, run, tolerance, kind)
    write_atomically(file, data)
    return Exported(path=file, format=kind, size=len(data), **worst)


def describe(guard: Guard) -> dict[str, Any]:
    """What an exported file says of itself."""
    trajectory, thresholds = guard.detector.trajectory, guard.detector.thresholds
    height, width = guard.model.input_size
    return {
        "format": "fastadv.guard",
        "version": _VERSION,
        "model": guard.model.name,
        "input": {
            "name": _INPUT,
            "shape": [_AXIS, 3, height, width],
            "batch": _BATCH,
            "type": "float32",
            "colours": "RGB",
            "range": [0, 1],
            "preprocessing": "aligned face, 8-bit value / 255; mean and deviation are subtracted and divided inside",
        },
        "threshold": guard.threshold,
        "flagged": "score >= threshold, or no number",
        **({} if thresholds is None else _calibration(thresholds)),
        "detector": {
            "architecture": guard.detector.network.architecture.kind,
            "representatives": trajectory.representatives.kind,
            "metric": trajectory.metric,
            "reading": trajectory.reading,
            "layers": list(guard.detector.layers),
            "classes": len(trajectory.representatives.classes),
            "provenance": dict(guard.detector.provenance),
        },
        "made_with": versions(),
    }


def _calibration(thresholds: Thresholds) -> dict[str, Any]:
    """Where the threshold and the p-values come from."""
    about = {"calibration": {"images": thresholds.natural, "calibrated_on": dict(thresholds.calibrated_on)}}
    formula = "(1 + number of calibration scores >= score) / (calibration.images + 1)"
    return about if thresholds.scores is None else {**about, "p_value": formula}


def _known(guard: Guard) -> Tensor | None:
    """The scores of the calibration set."""
    return None if guard.detector.thresholds is None else guard.detector.thresholds.scores


class _PlainScore(nn.Module):
    """A detector in operations that every runtime has, in float32, subtracting first as the fused ones do."""

    def __init__(self, detector: Detector, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.metrics = detector.trajectory.metrics
        self.relative = detector.trajectory.relative
        self.network = copy.deepcopy(detector.network)
        for i, value in enumerate(detector.trajectory.representatives.vectors):
            for metric in self.metrics:
                own = value.detach().clone()
                self.register_buffer(f"{metric}_{i}", _unit(own) if metric == "cosine" else own)

    def forward(self, maps: Sequence[Tensor], images: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = [value.mean((2, 3)) for value in maps]
        by = [
            [self._distances(value, getattr(self, f"{metric}_{i}"), metric) for i, value in enumerate(features)]
            for metric in self.metrics
        ]
        read = [_relative(layers, own) if self.relative else torch.stack(layers, dim=1) for layers in by]
        return with_flags(only_of_finite(self.network(torch.cat(read, dim=2)), images), self.threshold)

    def _distances(self, features: Tensor, vectors: Tensor, metric: str) -> Tensor:
        values = _unit(features) if metric == "cosine" else features
        step = max(1, _ELEMENTS // vectors.shape[1])
        squares = [(values[:, None] - part[None]).square().sum(2) for part in vectors.split(step)]
        total = torch.cat(squares, dim=1) if len(squares) > 1 else squares[0]
        if metric == "l2":
            return total.sqrt()
        # a vector without a direction is at distance 1 from everything
        none = (values == 0).all(1)[:, None] | (vectors == 0).all(1)[None]
        return torch.where(none, torch.ones_like(total), 0.5 * total)


class _Named(nn.Module):
    """The pass with outputs in a fixed order, without the logits and the p-values where there are none."""

    calibration: Tensor | None

    def __init__(self, run: OnePass, calibration: Tensor | None) -> None:
        super().__init__()
        self.run = run
        self.register_buffer("calibration", calibration)
        there = {"logits": run.model.head is not None, "p_values": calibration is not None}
        self.names = ("embeddings", "scores", "flagged", *(name for name, given in there.items() if given))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        embeddings, logits, scores, flagged, _ = self.run(images)
        made = (embeddings, scores, flagged) if logits is None else (embeddings, scores, flagged, logits)
        if self.calibration is None:
            return made
        # an ONNX runtime has no search in a sorted list
        at_least = (self.calibration >= scores[:, None]).sum(1)
        p_values = (1 + at_least).double() / (len(self.calibration) + 1)
        return (*made, torch.where(scores.isnan(), torch.nan, p_values))


def _relative(layers: Sequence[Tensor], own: Tensor | None) -> Tensor:
    """The reading ``relative`` ``(N, L, 5)`` of distances ``(N, K)``, as :class:`fastadv.detection.Trajectory` says."""
    others = layers[-1].shape[1] - 1
    nearest = layers[-1].argmin(1, keepdim=True)
    own = nearest if own is None else torch.where(own[:, None] < 0, nearest, own[:, None])
    is_own = torch.arange(others + 1) == own
    columns = []
    for distances in layers:
        mine = distances.gather(1, own)[:, 0]
        other = torch.where(is_own, torch.inf, distances).amin(1)
        both = mine + other
        ratio = torch.where(both == 0, 0.5, mine / torch.where(both == 0, 1.0, both))
        rank = (distances < mine[:, None]).sum(1).float() / others
        mean = torch.where(is_own, 0.0, distances).sum(1) / others
        columns.append(torch.stack([mine, other, ratio, rank, mine - mean], dim=1))
    return torch.stack(columns, dim=1)


def _unit(rows: Tensor) -> Tensor:
    # By the largest entry first, so that no square overflows or vanishes; a row of zeros stays one.
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / torch.where(largest == 0, torch.ones_like(largest), largest)
    return rows * rows.square().sum(1, keepdim=True).clamp(min=1).rsqrt()


def _plain(guard: Guard) -> _Named:
    model = freeze(copy_of(guard.model))
    keep = {*model.layers, *guard.detector.layers}
    model.backbone = fold_batch_norms(model.backbone, keep=keep, image_shape=model.image_shape)
    assert guard.threshold is not None
    score = _PlainScore(guard.detector, guard.threshold)
    trajectory = guard.detector.trajectory.to("cpu")
    run = OnePass(model, trajectory, score, pool=pooled, early=None)
    return _Named(run, _known(guard)).cpu().eval()


def _program(module: _Named, guard: Guard) -> torch.export.ExportedProgram:
    example = torch.full((2, *guard.model.image_shape), 0.5)
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with _quiet(), torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter", "onnxscript")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _archive(program: torch.export.ExportedProgram, about: str) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: about})
    return buffer.getvalue()


def _archive_runner(data: bytes, names: Sequence[str]) -> Any:
    loaded = torch.export.load(io.BytesIO(data)).module()

    def run(images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(names, loaded(_filled(images)), strict=True))

    return run


def _require_onnx() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingPackageError(
                f"ONNX: expected the package {name}, got no such package ({error}); pip install 'fastadv[onnx]'"
            ) from error


def _onnx_bytes(program: torch.export.ExportedProgram, names: Sequence[str], about: str) -> bytes:
    import onnx

    with _quiet():
        made = torch.onnx.export(
            program, input_names=[_INPUT], output_names=list(names), dynamo=True, verbose=False, external_data=False
        )
    assert made is not None
    proto = made.model_proto
    _name_batch(proto.graph)
    onnx.helper.set_model_props(proto, {METADATA: about})
    onnx.checker.check_model(proto)
    serialised: bytes = proto.SerializeToString()
    return serialised


def _name_batch(graph: Any) -> None:
    """Call the axis of the batch by its name, and say how long it may be."""
    (images,) = graph.input
    symbol = images.type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", _AXIS, dim.dim_param)
    sizes = ", ".join(str(dim.dim_param or dim.dim_value) for dim in images.type.tensor_type.shape.dim)
    images.doc_string = f"Aligned faces ({sizes}), float32, RGB in [0, 1]. {_BATCH}."
    graph.doc_string = f"{_INPUT}: {images.doc_string}"


def _filled(images: Tensor) -> Tensor:
    """``images``, unless there are none."""
    if not len(images):
        raise ArgumentError(f"images: expected a batch (N, 3, H, W) with N >= 1, got shape {tuple(images.shape)}")
    return images


def _onnx_runner(data: bytes) -> Any:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {_INPUT: _filled(images).numpy()})
        return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(names, found, strict=True)}

    return run


def _compare(guard: Guard, run: Any, tolerance: float, kind: str) -> dict[str, Any]:
    """The largest differences on a batch of one and a batch of three.

    Of a relative reading those of up to three draws of images, until one is small enough: two classes that are equally
    near but for rounding change a rank.
    """
    draws = 3 if guard.detector.trajectory.relative else 1
    for seed in range(draws):
        worst = _differences(guard, run, seed)
        wrong = [(name, value) for name, value in worst.items() if value is not None and not value <= tolerance]
        if not wrong:
            return worst
    name, value = wrong[0]
    raise ExportError(
        f"{kind} graph: expected {name} within {tolerance:g} of the guard's, got a difference of {value:.2g}"
    )


def _differences(guard: Guard, run: Any, seed: int) -> dict[str, Any]:
    worst: dict[str, Any] = {"embeddings": 0.0, "logits": None, "scores": 0.0}
    generator = torch.Generator().manual_seed(seed)
    for count in (1, 3):
        images = torch.rand((count, *guard.model.image_shape), generator=generator)
        made, right = run(images), guard(images)
        for name in worst:
            expected = getattr(right, name)
            if expected is None:
                continue
            values = expected.cpu().double()
            apart = (made[name].double() - values).abs() / values.abs().clamp(min=1)
            worst[name] = max(worst[name] or 0.0, float(apart.max()))
    return worst
