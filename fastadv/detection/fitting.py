"""Fitting a detector's network to examples: deterministic and resumable to the bit."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_least, check_one_of, check_positive
from fastadv.core.restored import records, same_json
from fastadv.detection.examples import Examples, Sampler, balanced_mean
from fastadv.detection.networks import KINDS, STANDARDS, Architecture, Network, standards
from fastadv.detection.tensor_file import DetectionFileError
from fastadv.models.state_fit import problems
from fastadv.models.tensor_content import CheckpointError, load_torch
from fastadv.models.training_loop import Losses, Memory, Part, Training, copied, descend, restoring, write_state
from fastadv.ops import philox

#: Told of epochs done and of all.
Progress = Callable[[int, int], None]

_SEED_LAYER = 3002
_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to fit a detector. Every field decides about the weights that come out.

    Attributes:
        kind: ``"linear"``, ``"mlp"`` or ``"lstm"``.
        hidden: units of the MLP or the LSTM.
        dropout: of the MLP.
        standard: how the embedding is standardised: ``"entry"``, ``"layer"`` or ``"none"``, on the natural examples
            (:func:`fastadv.detection.networks.standards`); None for ``"layer"``, or ``"entry"`` with the reading
            ``relative`` (:meth:`for_reading`). **Choice**: the paper does not mention it; distances of different layers
            differ by orders of magnitude, and without it an MLP on L2 distances hardly learns.
        epochs: at most; an epoch draws as many examples as there are.
        batch: examples of a step.
        lr: first learning rate of Adam; 1e-4 to 1e-3 in the paper.
        weight_decay: of Adam (L2).
        plateau: epochs without a lower loss before the rate is divided by 10.
        patience: epochs without a lower loss before it ends; 0 for never.
        seed: of the weights, the sampler and the dropout, in [0, 2**63).

    Raises:
        ValueError: a field is out of its range.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 5.2.
    """

    kind: str = "lstm"
    hidden: int = 100
    dropout: float = 0.5
    standard: str | None = None
    epochs: int = 150
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.0
    plateau: int = 10
    patience: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        check_one_of("kind", self.kind, KINDS)
        if self.standard is not None:
            check_one_of("standard", self.standard, STANDARDS)
        for name in ("hidden", "epochs", "batch", "plateau"):
            check_least(name, getattr(self, name), 1)
        check_least("patience", self.patience, 0)
        check_positive("lr", self.lr)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ArgumentError(f"weight_decay: expected a number >= 0, got {self.weight_decay}")
        if not 0 <= self.dropout < 1:
            raise ArgumentError(f"dropout: expected a share in [0, 1), got {self.dropout}")
        if not 0 <= self.seed < 1 << 63:
            raise ArgumentError(f"seed: expected a number in [0, 2**63), got {self.seed}")

    def for_reading(self, reading: str) -> FitConfig:
        """The same with a standardisation that fits the trajectory's reading, where none was chosen."""
        return replace(self, standard=self.standard or ("entry" if reading == "relative" else "layer"))


@dataclass(frozen=True, kw_only=True)
class FitRecord:
    """One epoch.

    Attributes:
        epoch: counted from 1.
        loss: mean over its steps.
        held: balanced loss of the held-out examples, or None without them.
        lr: the learning rate it was made with.
    """

    epoch: int
    loss: float
    held: float | None
    lr: float

    @property
    def watched(self) -> float:
        """What decides about the rate, the end and the best epoch."""
        return self.loss if self.held is None else self.held


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """What came out.

    Attributes:
        network: of the best epoch, in evaluation mode, its parameters frozen.
        history: one record an epoch.
        best: the record of the best epoch: the lowest loss, the earliest of equal ones.
        resumed_at: the epoch that this call went on from; 0 for a fresh start.
    """

    network: Network
    history: tuple[FitRecord, ...]
    best: FitRecord
    resumed_at: int


def fit_network(
    config: FitConfig,
    examples: Examples,
    *,
    held: Examples | None = None,
    device: torch.device | str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_epochs: int = 10,
    progress: Progress | None = None,
) -> Fitted:
    """Fit a network that tells adversarial embeddings from natural ones.

    Binary cross-entropy, Adam, batches balanced by :class:`fastadv.detection.examples.Sampler`. The learning rate is
    divided by 10 on a plateau of the held-out loss (of the loss itself without held-out examples); it ends early when
    that does not fall any more, and the best epoch is kept. On the CPU the weights depend on (config, examples, held)
    only, for one number of threads: PyTorch's own random state is neither read nor changed.

    Args:
        config: how.
        examples: to fit to.
        held: of the same shape; other images (see :meth:`Examples.split`).
        device: where the network is fitted; examples are moved there batch by batch.
        checkpoint: a file that keeps the state, or None. A fit that was killed goes on from it when called again with
            the same arguments and ends as if it had never been interrupted; a finished one is only read.
        checkpoint_epochs: how many epochs go by between two writes.
        progress: told of epochs.

    Raises:
        ValueError: examples that do not fit each other, or a loss that is not finite.
        DetectionFileError: the checkpoint is damaged, or of another fit.
        OSError: the checkpoint cannot be written.
    """
    if held is not None and held.embeddings.shape[1:] != examples.embeddings.shape[1:]:
        came, expected = tuple(held.embeddings.shape[1:]), tuple(examples.embeddings.shape[1:])
        raise ArgumentError(f"held: expected embeddings of {expected}, like the examples, got {came}")
    check_least("checkpoint_epochs", checkpoint_epochs, 1)
    config = config.for_reading("raw")  # an embedding alone does not tell
    task = _Detector(config, examples, held, torch.device(device))
    store = Memory() if checkpoint is None else _File(Path(checkpoint), task, checkpoint_epochs)
    steps = math.ceil(len(examples) / config.batch)
    training = Training(task, store, epochs=config.epochs, per_epoch=steps, patience=config.patience, progress=progress)
    resumed = training.complete() // steps
    task.network.load_state_dict(store.best())
    network = task.network.eval().requires_grad_(False)
    return Fitted(network=network, history=tuple(training.history), best=training.best, resumed_at=resumed)


class _Detector:
    """The task: a detector's network on balanced batches of examples, validated on the held-out ones."""

    def __init__(self, config: FitConfig, examples: Examples, held: Examples | None, device: torch.device) -> None:
        self.config, self.examples, self.held, self.device = config, examples, held, device
        layers, width = examples.embeddings.shape[1:]
        architecture = Architecture(
            kind=config.kind, layers=layers, width=width, hidden=config.hidden, dropout=config.dropout
        )
        with _seeded(config.seed, 0, device):
            network = Network(architecture)
        natural = (examples.groups == 0).nonzero()[:, 0]
        assert config.standard is not None
        mean, scale = standards(examples.embeddings, natural, config.standard)
        network.mean.copy_(mean)
        network.scale.copy_(scale)
        self.network = network.to(device)
        self.sampler = Sampler(examples, config.seed)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        # The rate falls after `plateau` epochs without a fall, which torch counts from 0.
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=0.1, patience=config.plateau - 1
        )
        self.parts: Mapping[str, Part] = {"network": self.network, "optimizer": self.optimizer, "plateau": self.plateau}

    def weights(self) -> dict[str, Tensor]:
        return copied(self.network)

    def steps(self, epoch: int, first: int) -> Losses:
        batch = self.config.batch
        order = self.sampler.draw(epoch + 1, math.ceil(len(self.examples) / batch) * batch)
        self.network.train()
        with _seeded(self.config.seed, epoch + 1, self.device):  # dropout
            for rows in order.split(batch)[first:]:
                yield descend(self.optimizer, self._loss(self.examples, rows).mean()).double()  # summed

    def record(self, epoch: int, loss: float) -> FitRecord:
        lr = float(self.optimizer.param_groups[0]["lr"])
        held = None if self.held is None else self._held_loss(self.held)
        record = FitRecord(epoch=epoch, loss=loss, held=held, lr=lr)
        if not (math.isfinite(loss) and math.isfinite(record.watched)):
            raise ArgumentError(
                f"loss: expected a finite number, got {loss} in epoch {epoch}; try a lower lr than {lr:g}"
            )
        self.plateau.step(record.watched)
        return record

    def best(self, history: Sequence[FitRecord]) -> FitRecord:
        return min(history, key=lambda record: (record.watched, record.epoch))

    def _loss(self, examples: Examples, rows: Tensor) -> Tensor:
        values = examples.embeddings[rows.to(examples.embeddings.device)].to(self.device)
        wanted = (examples.groups[rows] > 0).float().to(self.device)
        return F.binary_cross_entropy_with_logits(self.network(values), wanted, reduction="none")

    @torch.no_grad()
    def _held_loss(self, held: Examples) -> float:
        self.network.eval()
        return balanced_mean(torch.cat([self._loss(held, r).cpu() for r in torch.arange(len(held)).split(_ROWS)]), held)


class _File(Memory):
    """A fit in one file, the best epoch's weights too, written every so many epochs and at the end."""

    def __init__(self, path: Path, task: _Detector, every: int) -> None:
        self.path, self.every, self.kept = path, every, task.weights()
        self.about = {
            "config": asdict(task.config),
            "examples": task.examples.digest(),
            "held": task.held.digest() if task.held else None,
        }

    def record(self, training: Training[Any], *, improved: bool) -> None:
        super().record(training, improved=improved)
        if len(training.history) % self.every == 0 or training.ended:
            write_state(self.path, {**training.state(), "about": self.about, "best": self.kept})

    def restore(self, training: Training[Any]) -> None:
        if not self.path.exists():
            return
        try:
            state = load_torch(self.path)
            about = dict(state["about"])
        except CheckpointError as error:
            raise DetectionFileError(
                f"{self.path}: expected a whole checkpoint of a fit, got {error.what}; remove it to begin again"
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise DetectionFileError(
                f"{self.path}: expected a whole checkpoint of a fit, got a damaged one; remove it to begin again"
            ) from error
        for name, wanted in self.about.items():
            if not same_json(about.get(name), wanted):
                raise DetectionFileError(
                    f"{self.path}: expected a fit with the same {name}, or no file, got one with another"
                )
        with restoring(self._refused):
            training.restore(state, records(FitRecord, state["history"]))
            best = {name: state["best"][name] for name in self.kept}
            wrong = problems(self.kept, best)
            if wrong:
                raise CheckpointError(f"best: {wrong}")
            self.kept = best

    def _refused(self, why: str) -> DetectionFileError:
        return DetectionFileError(
            f"{self.path}: expected a checkpoint that fits this fit, got another: {why}; remove it to begin again"
        )


@contextlib.contextmanager
def _seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """PyTorch's generators as a function of (seed, epoch), and afterwards as they were."""
    high, low = philox.words(seed, torch.tensor([epoch]), 0, _SEED_LAYER, 2)[0].tolist()
    indices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=indices):
        torch.manual_seed((high << 32 | low) >> 1)
        yield
