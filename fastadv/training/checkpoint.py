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
from safetensors.torch import load, save
from torch import Tensor

from fastadv.core.canonical import canonical
from fastadv.core.differences import difference
from fastadv.core.files import remove_temporaries, write_atomically
from fastadv.core.lock import FolderLock
from fastadv.core.restored import same_json
from fastadv.data.hashes import KEPT, KnownHashes
from fastadv.models import FaceModel
from fastadv.models.tensor_content import CheckpointError, load_torch
from fastadv.training.config import TrainingError

STATE = "checkpoint.pt"
BEST = "best.safetensors"
LAST = "last.safetensors"
RECORD = "training.json"
HALF = "half.safetensors"
HEAD_PREFIX = "class_head."
_LOCK = ".lock"
_BEGIN_AGAIN = "use --fresh or another --out"


@contextmanager
def sole_writer(out: Path | None, *, fresh: bool = False) -> Iterator[None]:
    """The folder of a training, made where it is missing, and held while it lasts; None keeps nothing.

    With `fresh` the training that it holds is removed. A folder in which nothing was written goes again.

    Raises:
        TrainingError: It is a file, or another training holds it.
        OSError: It cannot be made.
    """
    if out is None:
        yield
        return
    if out.exists() and not out.is_dir():
        raise TrainingError(f"out: {out} is a file, expected a folder")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(out / _LOCK)
    except BlockingIOError as error:
        raise TrainingError(f"out: another training is writing to {out}") from error
    try:
        remove_temporaries(out)
        if fresh:
            clear(out)
        yield
    finally:
        lock.release()
        if made and not any(out.iterdir()):
            out.rmdir()  # a call that was refused leaves no folder


def weights_of(model: FaceModel) -> dict[str, Tensor]:
    """The backbone's weights by name and, under `class_head.`, those of the class head; contiguous, on the CPU."""
    state = {k: v for k, v in model.backbone.state_dict().items() if not k.endswith("num_batches_tracked")}
    if model.head is not None:
        state.update({f"{HEAD_PREFIX}{k}": v for k, v in model.head.state_dict().items()})
    return {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}


def save_weights(model: FaceModel, path: Path, *, half: bool = False) -> str:
    """Writes a model's weights as a safetensors file that `fastadv.load(name, weights=path)` reads.

    Args:
        model: Any model.
        path: The file; its folder must exist.
        half: Store tensors of two or more axes in float16 (they are computed with in float32 again): half the size,
            each weight rounded by at most 2^-11 of itself.

    Returns:
        SHA-256 of the file, hexadecimal.

    Raises:
        OSError: With the file's name.
    """
    state = weights_of(model)
    if half:
        state = {k: v.half() if v.dim() > 1 else v for k, v in state.items()}
    data = save(state)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def read_weights(folder: Path, digest: str) -> dict[str, Tensor]:
    """The best epoch's weights, if the file is the one that was written.

    Raises:
        TrainingError: It is gone or damaged.
    """
    file = folder / BEST
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TrainingError(f"{file}: cannot be read: {error.strerror}; use --fresh to train again") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise TrainingError(f"{file}: is not what the training wrote; use --fresh to train again")
    return load(data)


def save_state(folder: Path, state: Mapping[str, Any], known: KnownHashes) -> None:
    """Writes the whole state; an interrupted call leaves the one before. Hashes of images are kept beside it."""
    kept = known.to_bytes()
    if known.entries and (not (folder / KEPT).is_file() or (folder / KEPT).read_bytes() != kept):
        write_atomically(folder / KEPT, kept)
    buffer = io.BytesIO()
    torch.save(canonical(state), buffer)
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
        TrainingError: With the first part that differs.
    """
    found = difference(saved, json.loads(json.dumps(dict(wanted))), where=STATE)
    if found:
        raise TrainingError(f"{folder}: holds another training; {found}")


def clear(folder: Path) -> None:
    """Removes a training from its folder; what else lies there stays. The state goes last."""
    for name in (BEST, LAST, RECORD, HALF, KEPT, STATE):
        (folder / name).unlink(missing_ok=True)


def save_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes `training.json`: what was trained and how it went."""
    text = json.dumps(dict(record), indent=2, sort_keys=True, allow_nan=False)
    write_atomically(folder / RECORD, text.encode() + b"\n")
