"""The loop under every training: steps, epochs, the best of them, and an interrupted training that resumes.

It knows nothing of faces or detectors. It lies beside the networks, below both of its users: `fastadv.detection` may
not import `fastadv.training`, and reading a checkpoint needs `fastadv.models.tensor_content`.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fastadv.core.canonical import canonical
from fastadv.core.errors import ArgumentError
from fastadv.core.files import write_atomically

Record = TypeVar("Record")
Losses = Generator[float | Tensor, None, None]


class Part(Protocol):
    """What a checkpoint holds the state of: a module, an optimizer, a learning rate schedule, random generators."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: Any, /) -> object:
        """Takes a state over."""


class Task(Protocol[Record]):
    """What is trained."""

    @property
    def parts(self) -> Mapping[str, Part]:
        """What decides about the next step, by its name in a checkpoint."""

    def steps(self, epoch: int, first: int) -> Losses:
        """Makes the steps of an epoch, both counted from 0, from the step `first` on, and yields the loss of each."""

    def record(self, epoch: int, loss: float) -> Record:
        """Validates after an epoch, counted from 1, with the mean loss of its steps."""

    def best(self, history: Sequence[Record]) -> Record:
        """The best epoch: the last one, or the one that was the best before it."""

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights as they are now."""


class Memory:
    """Where a training keeps what it reaches: here only the best epoch's weights, in memory."""

    kept: Mapping[str, Tensor]

    def restore(self, training: Training[Any]) -> None:
        """Puts a training where an interrupted one was."""

    def save(self, training: Training[Any]) -> None:
        """Keeps the state within an epoch, and after its last step."""

    def record(self, training: Training[Any], *, improved: bool) -> None:
        """Keeps the state after an epoch has been recorded."""
        if improved:
            self.kept = training.task.weights()

    def best(self) -> Mapping[str, Tensor]:
        """The best epoch's weights."""
        return self.kept


class Training(Generic[Record]):
    """A training under way.

    Args:
        task: What is trained.
        store: Where it is kept.
        epochs: At most.
        per_epoch: Steps of an epoch.
        save_steps: Also save the state within an epoch, every so many steps; None saves after epochs only.
        patience: End after so many epochs since the best one; 0 for never.
        progress: Told of epochs done and of all.
    """

    def __init__(
        self,
        task: Task[Record],
        store: Memory,
        *,
        epochs: int,
        per_epoch: int,
        save_steps: int | None = None,
        patience: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.task, self.store, self.epochs, self.per_epoch = task, store, epochs, per_epoch
        self.save_steps, self.patience, self.progress = save_steps, patience, progress
        self.done = 0
        self.sum: float | Tensor = 0.0
        self.history: list[Record] = []

    @property
    def best(self) -> Record:
        """The record of the best epoch."""
        return self.task.best(self.history)

    @property
    def ended(self) -> bool:
        """Whether no epoch is left."""
        count = len(self.history)
        waited = count - 1 - self.history.index(self.best) if count and self.patience else 0
        return count >= self.epochs or waited >= self.patience > 0

    def complete(self) -> int:
        """Makes the epochs that are left; returns the step that it resumed at."""
        self.store.restore(self)
        resumed = self.done
        if len(self.history) < self.done // self.per_epoch:  # killed between an epoch's last step and its record
            self._record()
        while not self.ended:
            self._steps()
            self._record()
        return resumed

    def _steps(self) -> None:
        with contextlib.closing(self.task.steps(*divmod(self.done, self.per_epoch))) as losses:
            for loss in losses:
                self.done += 1
                self.sum += loss
                inside = self.done % self.per_epoch
                if self.save_steps and inside and inside % self.save_steps == 0:
                    self.store.save(self)
        self.store.save(self)

    def _record(self) -> None:
        record = self.task.record(len(self.history) + 1, float(self.sum) / self.per_epoch)
        self.sum = 0.0
        self.history.append(record)
        self.store.record(self, improved=self.best is record)
        if self.progress is not None:
            self.progress(len(self.history), self.epochs)

    def state(self) -> dict[str, Any]:
        """The history and the state of every part, for a checkpoint."""
        parts = {name: part.state_dict() for name, part in self.task.parts.items()}
        return {**parts, "history": [asdict(record) for record in self.history]}  # type: ignore[call-overload]

    def restore(self, state: Mapping[str, Any], history: list[Record]) -> None:
        """Takes over what `state` gave after an epoch's record, its history read again.

        Raises:
            Exception: Anything, where it does not fit; see `restoring`.
        """
        for name, part in self.task.parts.items():
            part.load_state_dict(state[name])
            if isinstance(part, torch.optim.Optimizer):
                _check_optimizer(part)
        self.history, self.done = history, len(history) * self.per_epoch


def annealed(lr: float, step: int, steps: int, *, warmup: float) -> float:
    """The learning rate of a step, counted from 0, of so many, of which the share ``warmup`` rises to ``lr``.

    `lr·(step + 1)/w` in the w warm-up steps, then `lr·(1 + cos(π t))/2` with t from 0 to 1.
    """
    rising = round(warmup * steps)
    if step < rising:
        return lr * (step + 1) / rising
    return lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Makes one step down the gradient; returns the loss, without waiting for the device."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def copied(network: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's weights, where they are."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint whose bytes hang on its values only; an interrupted call leaves the one before."""
    buffer = io.BytesIO()
    torch.save(canonical(state), buffer)
    write_atomically(path, buffer.getvalue(), fsync=True)


@contextlib.contextmanager
def restoring(refused: Callable[[str], Exception]) -> Iterator[None]:
    """Turns whatever a state that does not fit makes PyTorch raise into one error, made from its first line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # PyTorch's readers of a state raise anything from AssertionError to IndexError
        raise refused((str(error).splitlines() or [type(error).__name__])[0]) from error


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Insists that what an optimizer remembers has the sizes of its parameters, and that its rates are numbers."""
    for parameter, remembered in optimizer.state.items():
        for name, value in remembered.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise ArgumentError(
                    f"optimizer: {name}: expected shape {tuple(parameter.shape)}, got {tuple(value.shape)}"
                )
    if not all(type(group.get("lr")) is float for group in optimizer.param_groups):
        raise ArgumentError("optimizer: lr: expected a float in every group, got something else")
