"""The state of a training on the disk: whole or absent, and read without running code."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fastadv.core.restored import same_json
from fastadv.data.files import write_atomically
from fastadv.data.lock import FolderLock
from fastadv.models import FaceModel
from fastadv.models.tensor_content import CheckpointError, load_torch
from fastadv.training.config import TrainingError

STATE = "checkpoint.pt"
BEST = "best.safetensors"
LAST = "last.safetensors"
RECORD = "training.json"
HEAD_PREFIX = "class_head."
_LOCK = ".lock"
_BEGIN_AGAIN = "give another folder, or remove this one to begin again"


@contextmanager
def sole_writer(out: Path | None) -> Iterator[None]:
    """The folder of a training, made where it is missing, and held while it lasts; None keeps nothing.

    Raises:
        TrainingError: It is a file, or another training holds it.
        OSError: It cannot be made.
    """
    if out is None:
        yield
        return
    if out.exists() and not out.is_dir():
        raise TrainingError(f"out: {out} is a file, expected a folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(out / _LOCK)
    except BlockingIOError as error:
        raise TrainingError(f"out: another training is writing to {out}") from error
    try:
        yield
    finally:
        lock.release()


def weights_of(model: FaceModel) -> dict[str, Tensor]:
    """The backbone's weights by name and, under `class_head.`, those of the class head; contiguous, on the CPU."""
    state = {k: v for k, v in model.backbone.state_dict().items() if not k.endswith("num_batches_tracked")}
    if model.head is not None:
        state.update({f"{HEAD_PREFIX}{k}": v for k, v in model.head.state_dict().items()})
    return {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}


def weights_hash(model: FaceModel) -> str:
    """SHA-256 of the names and values of the weights, hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(weights_of(model).items()):
        digest.update(name.encode() + b"\0" + value.float().numpy().tobytes())
    return digest.hexdigest()


def save_weights(model: FaceModel, path: Path, *, half: bool = False) -> None:
    """Writes a model's weights as a safetensors file that `fastadv.load(name, weights=path)` reads.

    Args:
        model: Any model.
        path: The file; its folder must exist.
        half: Store tensors of two or more axes in float16 (they are computed with in float32 again): half the size,
            each weight rounded by at most 2^-11 of itself.

    Raises:
        OSError: With the file's name.
    """
    state = weights_of(model)
    if half:
        state = {k: v.half() if v.dim() > 1 else v for k, v in state.items()}
    write_atomically(path, save(state))


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes the whole state; an interrupted call leaves the one before."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(folder / STATE, buffer.getvalue(), fsync=True)


def read_state(folder: Path) -> dict[str, Any] | None:
    """The state in a folder, or None where there is none.

    Raises:
        TrainingError: A damaged file, or one that holds more than tensors and plain values.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        state = load_torch(path)
    except CheckpointError as error:
        raise TrainingError(f"{path}: not a whole checkpoint of a training, but {error.what}; {_BEGIN_AGAIN}") from None
    about = state.get("about") if isinstance(state, dict) else None
    if not isinstance(about, dict) or not same_json(about, about):
        raise TrainingError(f"{path}: not a checkpoint of a training; {_BEGIN_AGAIN}")
    return dict(state)


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Turns whatever a state that does not fit makes PyTorch raise into one sentence.

    Raises:
        TrainingError: Anything was raised.
    """
    try:
        yield
    except Exception as error:  # PyTorch's readers of a state raise anything from AssertionError to IndexError
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"{folder}: the checkpoint does not fit this training: {first}; {_BEGIN_AGAIN}") from error


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Insists that what an optimiser remembers has the sizes of its parameters, and that its rates are numbers.

    Raises:
        ValueError: It has not.
    """
    for parameter, remembered in optimizer.state.items():
        for name, value in remembered.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise TrainingError(f"optimizer: {name}: expected {tuple(parameter.shape)}, got {tuple(value.shape)}")
    if not all(type(group.get("lr")) is float for group in optimizer.param_groups):
        raise TrainingError("optimizer: lr: expected a number")


def check_same(folder: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Insists that a training goes on with what it began with.

    Raises:
        TrainingError: With the first field that differs.
    """
    for key in sorted({*saved, *wanted}, key=str):
        before, now = saved.get(key), wanted.get(key)
        if not same_json(before, now):
            raise TrainingError(f"{folder}: holds a training with another {key}: {before!r} there, {now!r} now")


def save_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes `training.json`: what was trained and how it went."""
    text = json.dumps(dict(record), indent=2, sort_keys=True, allow_nan=False)
    write_atomically(folder / RECORD, text.encode() + b"\n")
