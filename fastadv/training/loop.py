"""The training loop: from faces to the weights of an embedding network."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.core.progress import Progress, silent
from fastadv.core.restored import check_position, records
from fastadv.data import FaceSource
from fastadv.data.hashes import KnownHashes
from fastadv.models import FaceModel, prepare
from fastadv.models.checkpoints import load_weights
from fastadv.models.identity import model_identity
from fastadv.training import checkpoint
from fastadv.training.adversarial import Adversary, evaluating
from fastadv.training.batches import Classes, augment, batch_size, batches, classes_of, epoch_order
from fastadv.training.cache import names_hash
from fastadv.training.config import TrainConfig, TrainingError
from fastadv.training.losses import logits_of, make_loss, start_from_means
from fastadv.training.validation import Held, embed_faces, hold_out, verify_pairs

# Fields that do not decide about the weights.
_FREE = ("checkpoint_steps",)
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
    if source.size is None or (source.size, source.size) != model.input_size:
        raise TrainingError(f"source: {model.name!r} takes images of {model.input_size}, got size={source.size}")
    classes = classes_of(hold_out(source.names, held), config=config)
    run = _Training(config, model, source, classes, held, out, progress)
    with checkpoint.sole_writer(out, fresh=fresh):
        return run.complete()


class _Training:
    """A training under way: model, loss, optimiser and position."""

    def __init__(
        self,
        config: TrainConfig,
        model: FaceModel,
        source: FaceSource,
        classes: Classes,
        held: Held | None,
        out: Path | None,
        progress: Progress,
    ) -> None:
        self.config, self.model, self.source, self.classes = config, model, source, classes
        self.held, self.out, self.progress = held, out, progress
        self.size = batch_size(config)
        self.per_epoch = len(classes.names) // config.batch
        self.steps = self.per_epoch * config.epochs
        for parameter in model.backbone.parameters():
            parameter.requires_grad_(True)
        self.loss = make_loss(config, features=model.embedding_size, classes=len(classes.people)).to(model.device)
        self.optimizer = _optimizer(config, model.backbone, self.loss)
        self.adversary = _adversary(config, model, self.loss)
        self.first = _first(model) if config.loss == "keep" else None
        self.done = 0
        self.sum = 0.0
        self.history: list[EpochRecord] = []
        self.random: dict[str, Tensor] | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.best_hash = ""
        self.known = KnownHashes()

    def complete(self) -> TrainResult:
        about = self._about()
        resumed = self._restore(about)
        if self.config.fine_tune and self.first is None and not self.done:
            self._start_from_means()
        device = self.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.config.seed)
            if self.random is not None:
                torch.set_rng_state(self.random["cpu"])
                if device.type == "cuda" and "cuda" in self.random:
                    torch.cuda.set_rng_state(self.random["cuda"], device)
            if len(self.history) < self.done // self.per_epoch:  # killed between an epoch's last step and its record
                self._finish_epoch(len(self.history), about)
            for epoch in range(self.done // self.per_epoch, self.config.epochs):
                self._epoch(epoch, about)
                self._finish_epoch(epoch, about)
        best = self._best()
        state = self.best_weights if self.out is None else checkpoint.read_weights(self.out, self.best_hash)
        if state is not None:
            backbone = {k: v for k, v in state.items() if not k.startswith(checkpoint.HEAD_PREFIX)}
            load_weights(self.model.backbone, backbone, source=str(self.out / checkpoint.BEST if self.out else "best"))
        self.model.eval()
        return TrainResult(
            model=self.model,
            history=tuple(self.history),
            best=best,
            steps=self.steps,
            classes=self.classes.people,
            resumed_at=resumed,
        )

    def _about(self) -> dict[str, Any]:
        known = KnownHashes() if self.out is None else KnownHashes.read(self.out)
        self.known = known
        fields = {k: v for k, v in asdict(self.config).items() if k not in _FREE}
        return {
            **fields,
            "first network": model_identity(self.model),
            "images": names_hash(self.classes.names),
            "faces": self.source.identity(self.classes.names, known=known),
            "pairs": names_hash(tuple(map(repr, self.held.pairs))) if self.held else None,
            "held faces": None if self.held is None else self.held.source.identity(self.held.names, known=known),
        }

    def _epoch(self, epoch: int, about: dict[str, Any]) -> None:
        config = self.config
        order = epoch_order(self.classes, config, epoch)
        first = self.done - epoch * self.per_epoch
        stage = f"epoch {epoch + 1}/{config.epochs}"
        self._train_mode()
        with contextlib.closing(batches(self.source, order[first * self.size :], self.size, self.classes)) as stream:
            for images, labels, ids in stream:
                self._step(images, labels, ids, epoch)
                inside = self.done - epoch * self.per_epoch
                if config.checkpoint_steps and inside < self.per_epoch and inside % config.checkpoint_steps == 0:
                    self._save(about)
                self.progress(stage, inside, self.per_epoch)
        self._save(about)

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

    def _step(self, images: Tensor, labels: Tensor, ids: Tensor, epoch: int) -> None:
        device = self.model.device
        images = augment(images.to(device), ids, self.config, epoch).contiguous(memory_format=torch.channels_last)
        wanted = labels.to(device) if self.first is None else self._kept(images)
        if self.adversary is not None:
            images = self.adversary.mixed(images, labels, ids, epoch)
        rate = self.config.rate(self.done, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            features = self.model.features(images)
        loss = self.loss(features.float(), wanted)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"loss: {value} at step {self.done + 1} of {self.steps}; nothing of this step was kept. "
                f"Expected a finite number: try a lower lr (now {self.config.lr:g}) or a longer warmup"
            )
        if loss.requires_grad:  # a batch without triplets has nothing to learn from
            loss.backward()
            if self.config.clip is not None:
                weights = [p for group in self.optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(weights, self.config.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)  # now: the copy that is attacked next should not carry them
        self.done += 1
        self.sum += value

    def _finish_epoch(self, epoch: int, about: dict[str, Any]) -> None:
        report = None
        if self.held is not None:
            report = verify_pairs(self.model, self.held.source, self.held.pairs, progress=self.progress)
        record = EpochRecord(
            epoch=epoch + 1,
            loss=self.sum / self.per_epoch,
            accuracy=report.accuracy if report else None,
            auc=report.auc if report else None,
            eer=report.eer if report else None,
        )
        self.sum = 0.0
        self.history.append(record)
        improved = self._best() is record
        if self.out is None:
            if improved:
                self.best_weights = checkpoint.weights_of(self.model)
            return
        # The state last: what it says has happened is then on the disk, and an interrupted epoch end is done again.
        if improved:
            self.best_hash = checkpoint.save_weights(self.model, self.out / checkpoint.BEST)
        checkpoint.save_weights(self.model, self.out / checkpoint.LAST)
        checkpoint.save_record(self.out, self._record(about))
        self._save(about)

    def _best(self) -> EpochRecord:
        history = self.history
        if history[-1].auc is None:
            return history[-1]
        if self.config.adversarial is not None:
            # the highest clean accuracy is that of the least trained; Zhong and Deng too keep 99 % of it
            clean = [r.auc or 0.0 if r.accuracy is None else r.accuracy for r in history]
            return next(r for r, c in zip(reversed(history), reversed(clean), strict=True) if c >= _KEPT * max(clean))
        return max(history, key=lambda r: (r.accuracy or 0.0, r.auc or 0.0, -r.epoch))

    def _record(self, about: dict[str, Any]) -> dict[str, Any]:
        return {
            "about": about,
            "classes": len(self.classes.people),
            "images": len(self.classes.names),
            "steps": self.done,
            "history": [asdict(record) for record in self.history],
            "best": asdict(self._best()),
        }

    def _save(self, about: dict[str, Any]) -> None:
        if self.out is None:
            return
        random = {"cpu": torch.get_rng_state()}
        if self.model.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.model.device)
        checkpoint.save_state(
            self.out,
            {
                "about": about,
                "done": self.done,
                "sum": self.sum,
                "history": [asdict(record) for record in self.history],
                "backbone": self.model.backbone.state_dict(),
                "loss": self.loss.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": random,
                "best": self.best_hash,
            },
            self.known,
        )

    def _restore(self, about: dict[str, Any]) -> int:
        state = None if self.out is None else checkpoint.read_state(self.out)
        if state is None:
            if self.out is not None and any((self.out / f).exists() for f in (checkpoint.BEST, checkpoint.LAST)):
                raise TrainingError(f"out: {self.out} holds weights without a checkpoint; give another folder")
            return 0
        assert self.out is not None
        checkpoint.check_same(self.out, state["about"], about)
        with checkpoint.restoring(self.out):
            self.model.backbone.load_state_dict(state["backbone"])
            self.loss.load_state_dict(state["loss"])
            self.optimizer.load_state_dict(state["optimizer"])
            checkpoint.check_optimizer(self.optimizer)
            self.done, self.sum = int(state["done"]), float(state["sum"])
            self.history = records(EpochRecord, state["history"])
            check_position(self.done, steps=self.steps, per_epoch=self.per_epoch, epochs=len(self.history))
            self.random = dict(state["random"])
            torch.Generator().set_state(self.random["cpu"])
            self.best_hash = str(state["best"])
        if not (self.out / checkpoint.LAST).is_file() and self.history and not self.sum:
            checkpoint.save_weights(self.model, self.out / checkpoint.LAST)
        return self.done


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
