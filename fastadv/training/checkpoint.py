"""The state of a training on the disk: whole or absent, and read without running code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from fastadv.core.differences import difference
from fastadv.core.files import remove_temporaries, write_atomically
from fastadv.core.lock import FolderLock
from fastadv.core.restored import check_position, same_json
from fastadv.data.hashes import KEPT, KnownHashes
from fastadv.models import FaceModel
from fastadv.models.tensor_content import CheckpointError, load_torch
from fastadv.models.training_loop import Memory, Training, restoring, write_state
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
        raise TrainingError(f"out: expected a folder, got the file {out}")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(out / _LOCK)
    except BlockingIOError as error:
        raise TrainingError(f"out: expected a folder that no other training writes to, got {out}") from error
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
    return kept(state)


def kept(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of weights by name, contiguous, on the CPU."""
    return {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}


def fields_of(config: Any) -> dict[str, Any]:
    """The settings of a training that decide about its weights."""
    return {name: value for name, value in asdict(config).items() if name != "checkpoint_steps"}


def complete(
    task: Any, config: Any, out: Path | None, *, read: Callable[[Any], list[Any]], facts: Mapping[str, Any]
) -> tuple[Training[Any], int]:
    """Train, in a folder or in memory, from where an interrupted training was.

    Args:
        task: With ``per_epoch`` and ``about``, besides what a ``Task`` has.
        config: With ``epochs`` and ``checkpoint_steps``.
        out: The folder, or None.
        read: Makes the records again from the history in a checkpoint.
        facts: What else `training.json` says.

    Returns:
        The training, and the step that it went on from.
    """
    store = Memory() if out is None else Folder(out, read=read, about=task.about, facts=facts)
    training = Training(task, store, epochs=config.epochs, per_epoch=task.per_epoch, save_steps=config.checkpoint_steps)
    return training, training.complete()


def best_of(out: Path | None) -> str:
    """Where the best epoch's weights come from, for messages."""
    return str(out / BEST if out else "best")


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
    return write_weights(weights_of(model), path, half=half)


def write_weights(state: Mapping[str, Tensor], path: Path, *, half: bool = False) -> str:
    """Writes weights by name, as `save_weights` does; returns the SHA-256 of the file, hexadecimal."""
    data = save({k: v.half() if half and v.dim() > 1 else v for k, v in state.items()})
    write_atomically(path, data, fsync=True)
    return hashlib.sha256(data).hexdigest()


def clear(folder: Path) -> None:
    """Removes a training from its folder; what else lies there stays. The state goes last."""
    for name in (BEST, LAST, RECORD, HALF, KEPT, STATE):
        (folder / name).unlink(missing_ok=True)


class Folder(Memory):
    """A training in a folder: what is written after which step, and what is read again."""

    def __init__(
        self,
        out: Path,
        *,
        read: Callable[[Any], list[Any]],
        about: Callable[[KnownHashes], dict[str, Any]],
        facts: Mapping[str, Any],
    ) -> None:
        """Describes the training, with the hashes of images that the folder holds.

        Args:
            out: The folder.
            read: Makes the records again from the history in a checkpoint.
            about: What decides about the weights, in the order in which a difference is looked for.
            facts: What else `training.json` says.
        """
        self.out, self.read, self.facts = out, read, facts
        self.known = KnownHashes.read(out)
        self.about = about(self.known)
        self.best_hash = ""

    def restore(self, training: Training[Any]) -> None:
        """Puts a training where an interrupted one was.

        Raises:
            TrainingError: The folder holds another training, a damaged one, or weights without one.
        """
        state = self._read()
        if state is None:
            if any((self.out / name).exists() for name in (BEST, LAST)):
                raise TrainingError(
                    f"out: expected a folder with a checkpoint or without weights, got {self.out} with weights "
                    "alone; give another folder"
                )
            return
        found = difference(state["about"], json.loads(json.dumps(self.about)), where=STATE)
        if found:
            raise TrainingError(f"{self.out}: holds another training; {found}")
        with restoring(self._refused):
            training.restore(state, self.read(state["history"]))
            training.done, training.sum = int(state["done"]), float(state["sum"])
            epochs, per_epoch = len(training.history), training.per_epoch
            check_position(training.done, steps=training.epochs * per_epoch, per_epoch=per_epoch, epochs=epochs)
            self.best_hash = str(state["best"])
        if not (self.out / LAST).is_file() and training.history and not training.sum:
            write_weights(training.task.weights(), self.out / LAST)

    def save(self, training: Training[Any]) -> None:
        """Writes the whole state; hashes of images are kept beside it."""
        kept = self.known.to_bytes()
        if self.known.entries and (not (self.out / KEPT).is_file() or (self.out / KEPT).read_bytes() != kept):
            write_atomically(self.out / KEPT, kept)
        position = {"done": training.done, "sum": float(training.sum), "best": self.best_hash}
        write_state(self.out / STATE, {**training.state(), **position, "about": self.about})

    def record(self, training: Training[Any], *, improved: bool) -> None:
        """Writes the weights, `training.json`, and the state last: an epoch end that is interrupted is made again."""
        weights = training.task.weights()
        if improved:
            self.best_hash = write_weights(weights, self.out / BEST)
        write_weights(weights, self.out / LAST)
        reached = {
            "steps": training.done,
            "history": [asdict(r) for r in training.history],
            "best": asdict(training.best),
        }
        text = json.dumps({**self.facts, **reached, "about": self.about}, indent=2, sort_keys=True, allow_nan=False)
        write_atomically(self.out / RECORD, text.encode() + b"\n")
        self.save(training)

    def best(self) -> dict[str, Tensor]:
        """The best epoch's weights.

        Raises:
            TrainingError: The file is gone or damaged.
        """
        file = self.out / BEST
        try:
            data = file.read_bytes()
        except OSError as error:
            raise TrainingError(
                f"{file}: expected the best weights, got a file that cannot be read ({error.strerror}); use "
                "--fresh to train again"
            ) from error
        if hashlib.sha256(data).hexdigest() != self.best_hash:
            raise TrainingError(
                f"{file}: expected the weights that the training wrote, got others; use --fresh to train again"
            )
        return load(data)

    def _read(self) -> dict[str, Any] | None:
        """The state in the folder, or None where there is none."""
        path = self.out / STATE
        if not path.exists():
            return None
        try:
            state = load_torch(path)
        except CheckpointError as error:
            raise TrainingError(
                f"{path}: expected a whole checkpoint of a training, got {error.what}; {_BEGIN_AGAIN}"
            ) from None
        about = state.get("about") if isinstance(state, dict) else None
        if not isinstance(about, dict) or not same_json(about, about):
            raise TrainingError(f"{path}: expected a checkpoint of a training, got another file; {_BEGIN_AGAIN}")
        return dict(state)

    def _refused(self, why: str) -> TrainingError:
        return TrainingError(
            f"{self.out}: expected a checkpoint that fits this training, got another: {why}; {_BEGIN_AGAIN}"
        )
