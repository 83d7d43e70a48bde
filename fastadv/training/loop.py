"""The training loop: from faces to the weights of an embedding network."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.core.progress import Progress, silent
from fastadv.core.restored import records
from fastadv.data import FaceSource
from fastadv.data.hashes import KnownHashes
from fastadv.models import FaceModel, prepare
from fastadv.models.checkpoints import load_weights
from fastadv.models.face_model import evaluating
from fastadv.models.identity import model_identity
from fastadv.models.training_loop import Losses, Part
from fastadv.training import checkpoint
from fastadv.training.adversarial import Adversary
from fastadv.training.batches import Classes, augment, batch_size, batches, classes_of, epoch_order
from fastadv.training.cache import names_hash
from fastadv.training.config import TrainConfig, TrainingError
from fastadv.training.losses import finite, logits_of, make_loss, start_from_means
from fastadv.training.validation import Held, embed_faces, hold_out, verify_pairs

# Of the clean accuracy that the best epoch of an adversarial training keeps.
_KEPT = 0.99


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: Counted from 1.
        loss: Mean over its steps.
        accuracy: Verification accuracy over the folds of the held-out pairs, or None without pairs.
        auc: Area under their ROC, or None.
        eer: Their equal error rate, or None.
    """

    epoch: int
    loss: float
    accuracy: float | None
    auc: float | None
    eer: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainResult:
    """What came out.

    Attributes:
        model: The model that was given, with the best epoch's weights (the last one's without pairs), evaluating.
        history: One record an epoch.
        best: The record of the best epoch: highest accuracy, then highest AUC, then earliest; of an adversarial
            training the last that keeps 99 % of the highest accuracy; without pairs the last.
        steps: Steps of the whole training.
        classes: The identities that were trained on.
        resumed_at: The step that this call went on from; 0 for a fresh start.
    """

    model: FaceModel
    history: tuple[EpochRecord, ...]
    best: EpochRecord
    steps: int
    classes: tuple[str, ...]
    resumed_at: int


def train(
    config: TrainConfig,
    model: FaceModel,
    source: FaceSource,
    *,
    held: Held | None = None,
    out: Path | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> TrainResult:
    """Trains a model in place.

    The weights depend on (config, initial weights, images) only, for one machine and number of threads. With `out`,
    a training that was killed goes on from its last checkpoint when called again with the same arguments, and ends
    with the same weights as one that was never interrupted; a finished one is only read. The folder then holds
    `best.safetensors`, `last.safetensors`, `training.json` and `checkpoint.pt`, each whole or absent.

    Args:
        config: How.
        model: Its backbone is trained; `head` is left alone (see `train_head`).
        source: The faces. Identities in the held-out pairs are left out.
        held: Pairs to validate on after each epoch, or None.
        out: The folder, made where it is missing, or None to keep nothing.
        fresh: Remove the training that `out` holds, and begin anew.
        progress: Told of steps ("epoch 3/10").

    Raises:
        TrainingError: Faces that cannot be trained on, a loss that is not finite, or a folder with another training.
        ImportError: The loss needs pytorch-metric-learning and it is not installed.
        ImageError, AlignmentError: An image cannot be used.
        OSError: A file cannot be written.
    """
    if source.shape != model.input_size:
        raise TrainingError(f"source: expected images of {model.input_size} for {model.name!r}, got size={source.size}")
    classes = classes_of(hold_out(source.names, held), config=config)
    task = _Network(config, model, source, classes, held, progress)
    device = model.device
    with (
        checkpoint.sole_writer(out, fresh=fresh),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(config.seed)
        facts = {"classes": len(classes.people), "images": len(classes.names)}
        training, resumed = checkpoint.complete(task, config, out, read=partial(records, EpochRecord), facts=facts)
        best = training.store.best()
        backbone = {k: v for k, v in best.items() if not k.startswith(checkpoint.HEAD_PREFIX)}
    load_weights(model.backbone, backbone, source=checkpoint.best_of(out))
    model.eval()
    return TrainResult(
        model=model,
        history=tuple(training.history),
        best=training.best,
        steps=task.steps_in_all,
        classes=classes.people,
        resumed_at=resumed,
    )


class _Random:
    """PyTorch's generators, of the CPU and of a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state_dict(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], /) -> None:
        state = dict(state)
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)


class _Network:
    """The task: an embedding network on batches of augmented, perhaps attacked faces, validated on pairs."""

    def __init__(
        self,
        config: TrainConfig,
        model: FaceModel,
        source: FaceSource,
        classes: Classes,
        held: Held | None,
        progress: Progress,
    ) -> None:
        self.config, self.model, self.source, self.classes = config, model, source, classes
        self.held, self.progress = held, progress
        self.per_epoch = len(classes.names) // config.batch
        self.steps_in_all = self.per_epoch * config.epochs
        for parameter in model.backbone.parameters():
            parameter.requires_grad_(True)
        self.loss = make_loss(config, features=model.embedding_size, classes=len(classes.people)).to(model.device)
        self.optimizer = _optimizer(config, model.backbone, self.loss)
        self.adversary = _adversary(config, model, self.loss)
        self.first = _first(model) if config.loss == "keep" else None
        self.parts: Mapping[str, Part] = {
            "backbone": model.backbone,
            "loss": self.loss,
            "optimizer": self.optimizer,
            "random": _Random(model.device),
        }

    def about(self, known: KnownHashes) -> dict[str, Any]:
        return {
            **checkpoint.fields_of(self.config),
            "first network": model_identity(self.model),
            "images": names_hash(self.classes.names),
            "faces": self.source.identity(self.classes.names, known=known),
            "pairs": names_hash(tuple(map(repr, self.held.pairs))) if self.held else None,
            "held faces": None if self.held is None else self.held.source.identity(self.held.names, known=known),
        }

    def weights(self) -> dict[str, Tensor]:
        return checkpoint.weights_of(self.model)

    def steps(self, epoch: int, first: int) -> Losses:
        config, size = self.config, batch_size(self.config)
        if config.fine_tune and self.first is None and not epoch and not first:
            self._start_from_means()
        order = epoch_order(self.classes, config, epoch)[first * size :]
        self._train_mode()
        with contextlib.closing(batches(self.source, order, size)) as stream:
            for inside, (images, ids, names) in enumerate(stream, first):
                labels = torch.tensor([self.classes.label[name] for name in names])
                yield self._step(images, labels, ids, epoch, epoch * self.per_epoch + inside)
                self.progress(f"epoch {epoch + 1}/{config.epochs}", inside + 1, self.per_epoch)

    def _train_mode(self) -> None:
        self.model.train()
        if self.config.fine_tune:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    @torch.no_grad()
    def _kept(self, images: Tensor) -> Tensor:
        """The embeddings by the network before the training."""
        assert self.first is not None
        kept: Tensor = self.first(images)
        return kept

    def _start_from_means(self) -> None:
        names, features = embed_faces(self.model, self.source, self.classes.names, progress=self.progress)
        labels = torch.tensor([self.classes.label[name] for name in names])
        start_from_means(self.loss, self.config, features, labels)

    def _step(self, images: Tensor, labels: Tensor, ids: Tensor, epoch: int, step: int) -> float:
        device = self.model.device
        images = augment(images.to(device), ids, self.config, epoch).contiguous(memory_format=torch.channels_last)
        wanted = labels.to(device) if self.first is None else self._kept(images)
        if self.adversary is not None:
            images = self.adversary.mixed(images, labels, ids, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(step, self.steps_in_all)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            features = self.model.features(images)
        loss = self.loss(features.float(), wanted)
        value = finite(loss, step, self.steps_in_all, f"try a lower lr (now {self.config.lr:g}) or a longer warmup")
        if loss.requires_grad:  # a batch without triplets has nothing to learn from
            loss.backward()
            if self.config.clip is not None:
                weights = [p for group in self.optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(weights, self.config.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)  # now: the copy that is attacked next should not carry them
        return value

    def record(self, epoch: int, loss: float) -> EpochRecord:
        report = None
        if self.held is not None:
            report = verify_pairs(self.model, self.held.source, self.held.pairs, progress=self.progress)
        return EpochRecord(
            epoch=epoch,
            loss=loss,
            accuracy=report.accuracy if report else None,
            auc=report.auc if report else None,
            eer=report.eer if report else None,
        )

    def best(self, history: Sequence[EpochRecord]) -> EpochRecord:
        if history[-1].auc is None:
            return history[-1]
        if self.config.adversarial is not None:
            # the highest clean accuracy is that of the least trained; Zhong and Deng too keep 99 % of it
            clean = [r.auc or 0.0 if r.accuracy is None else r.accuracy for r in history]
            return next(r for r, c in zip(reversed(history), reversed(clean), strict=True) if c >= _KEPT * max(clean))
        return max(history, key=lambda r: (r.accuracy or 0.0, r.auc or 0.0, -r.epoch))


def _optimizer(config: TrainConfig, backbone: nn.Module, loss: nn.Module) -> torch.optim.Optimizer:
    parameters = [*backbone.parameters(), *loss.parameters()]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)


def _first(model: FaceModel) -> FaceModel:
    """The network as it is now, for good."""
    with evaluating(model):
        return prepare(model)


def _adversary(config: TrainConfig, model: FaceModel, loss: nn.Module) -> Adversary | None:
    if config.adversarial is None:
        return None
    head = logits_of(loss, config)
    return Adversary(config.adversarial, model, head, seed=config.seed, precision=config.precision)
