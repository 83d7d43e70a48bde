"""The training of a denoiser: from images to the weights of a RED network."""

from __future__ import annotations

import contextlib
import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from fastadv.core.files import write_atomically
from fastadv.core.progress import Progress, silent
from fastadv.core.restored import check_position, records
from fastadv.data import FaceSource
from fastadv.data.hashes import KnownHashes
from fastadv.models.checkpoints import load_weights
from fastadv.models.red import REDNet
from fastadv.training import checkpoint
from fastadv.training.cache import names_hash
from fastadv.training.config import TrainingError
from fastadv.training.denoiser_config import DenoiserConfig
from fastadv.training.noisy_batches import Gain, HeldImages, batches, draw, epoch_order, measure

# Fields that do not decide about the weights.
_FREE = ("checkpoint_steps",)


@dataclass(frozen=True, kw_only=True)
class DenoiserEpoch:
    """One epoch.

    Attributes:
        epoch: Counted from 1.
        loss: Mean over its steps.
        gains: On the held-out images, by size of the noise; empty without images.
    """

    epoch: int
    loss: float
    gains: tuple[Gain, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class DenoiserResult:
    """What came out.

    Attributes:
        network: With the best epoch's weights (the last one's without held-out images), evaluating and frozen.
        history: One record an epoch.
        best: The epoch with the highest mean PSNR; the last without held-out images.
        steps: Steps of the whole training.
        images: Number of images trained on.
        resumed_at: The step that this call went on from; 0 for a fresh start.
    """

    network: REDNet
    history: tuple[DenoiserEpoch, ...]
    best: DenoiserEpoch
    steps: int
    images: int
    resumed_at: int


def train_denoiser(
    config: DenoiserConfig,
    source: FaceSource,
    *,
    held: HeldImages | None = None,
    out: Path | None = None,
    device: str | torch.device = "cpu",
    fresh: bool = False,
    progress: Progress = silent,
) -> DenoiserResult:
    """Trains a RED network to remove Gaussian noise.

    The weights depend on (config, images) only, for one machine and number of threads. With `out`, a training that was
    killed goes on from its last checkpoint when called again with the same arguments, and ends with the same weights as
    one that was never interrupted; a finished one is only read. The folder then holds `best.safetensors`,
    `last.safetensors`, `training.json` and `checkpoint.pt`, each whole or absent.

    Args:
        config: How.
        source: The images, of one size.
        held: Images to measure on after each epoch, or None; those of `source` are not trained on.
        out: The folder, made where it is missing, or None to keep nothing.
        device: Where.
        fresh: Remove the training that `out` holds, and begin anew.
        progress: Told of steps ("epoch 3/10").

    Raises:
        TrainingError: Images that cannot be trained on, a loss that is not finite, or a folder with another training.
        ImageError, AlignmentError: An image cannot be used.
        OSError: A file cannot be written.
    """
    if source.size is None or source.size < config.patch:
        raise TrainingError(
            f"source: patches of {config.patch} need images of one size, that or more, got {source.size}"
        )
    if held is not None and not held.names:
        raise TrainingError("held: expected one image or more, got none")
    out_of = set(held.names) if held is not None else set()
    names = tuple(sorted(name for name in source.names if name not in out_of))
    if len(names) < config.batch:
        raise TrainingError(f"batch: expected at most the {len(names)} images there are, got {config.batch}")
    run = _Training(config, source, names, held, out, torch.device(device), progress)
    with checkpoint.sole_writer(out, fresh=fresh):
        return run.complete()


def save_denoiser(network: REDNet, path: Path, *, half: bool = False) -> str:
    """Writes a safetensors file that `fastadv.models.red.load_denoiser` reads.

    Args:
        network: Any.
        path: The file; its folder must exist.
        half: Store convolutions in float16 (they are computed with in float32 again): half the size, each weight
            rounded by at most 2^-11 of itself.

    Returns:
        SHA-256 of the file, hexadecimal.

    Raises:
        OSError: With the file's name.
    """
    state = _weights(network)
    if half:
        state = {k: v.half() if v.dim() > 1 else v for k, v in state.items()}
    data = save(state)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


class _Training:
    """A training under way: network, optimiser and position. Nothing else is random: draws hang on seed and image."""

    def __init__(
        self,
        config: DenoiserConfig,
        source: FaceSource,
        names: tuple[str, ...],
        held: HeldImages | None,
        out: Path | None,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.config, self.source, self.names = config, source, names
        self.held, self.out, self.device, self.progress = held, out, device, progress
        self.per_epoch = len(names) // config.batch
        self.steps = self.per_epoch * config.epochs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = REDNet(width=config.width, layers=config.layers, stride=config.stride).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.lr)
        self.done = 0
        self.sum = 0.0
        self.history: list[DenoiserEpoch] = []
        self.best_weights: dict[str, Tensor] | None = None
        self.best_hash = ""
        self.known = KnownHashes()

    def complete(self) -> DenoiserResult:
        about = self._about()
        resumed = self._restore(about)
        if len(self.history) < self.done // self.per_epoch:  # killed between an epoch's last step and its record
            self._finish_epoch(len(self.history), about)
        for epoch in range(self.done // self.per_epoch, self.config.epochs):
            self._epoch(epoch, about)
            self._finish_epoch(epoch, about)
        state = self.best_weights if self.out is None else checkpoint.read_weights(self.out, self.best_hash)
        if state is not None:
            load_weights(self.network, state, source=str(self.out / checkpoint.BEST if self.out else "best"))
        return DenoiserResult(
            network=self.network.eval().requires_grad_(False),
            history=tuple(self.history),
            best=_best(self.history),
            steps=self.steps,
            images=len(self.names),
            resumed_at=resumed,
        )

    def _about(self) -> dict[str, Any]:
        fields = {k: v for k, v in asdict(self.config).items() if k not in _FREE}
        held = names_hash(self.held.names) if self.held is not None else None
        known = self.known = KnownHashes() if self.out is None else KnownHashes.read(self.out)
        return {
            **fields,
            "model": "red",
            "size": self.source.size,
            "images": names_hash(self.names),
            "held": held,
            "faces": self.source.identity(self.names, known=known),
            "held faces": None if self.held is None else self.held.source.identity(self.held.names, known=known),
        }

    def _epoch(self, epoch: int, about: dict[str, Any]) -> None:
        config = self.config
        order = epoch_order(self.names, config, epoch)
        first = self.done - epoch * self.per_epoch
        stage = f"epoch {epoch + 1}/{config.epochs}"
        self.network.train()
        with contextlib.closing(batches(self.source, order[first * config.batch :], config.batch)) as stream:
            for images, ids in stream:
                self._step(images.to(self.device), ids.to(self.device), epoch)
                inside = self.done - epoch * self.per_epoch
                if config.checkpoint_steps and inside < self.per_epoch and inside % config.checkpoint_steps == 0:
                    self._save(about)
                self.progress(stage, inside, self.per_epoch)
        self._save(about)

    def _step(self, images: Tensor, ids: Tensor, epoch: int) -> None:
        clean, given = draw(images, ids, self.config, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.done, self.steps)
        loss = F.mse_loss(self.network(given), clean)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"loss: {value} at step {self.done + 1} of {self.steps}; nothing of this step was kept. "
                f"Expected a finite number: try a lower lr (now {self.config.lr:g})"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.done += 1
        self.sum += value

    def _finish_epoch(self, epoch: int, about: dict[str, Any]) -> None:
        gains: tuple[Gain, ...] = ()
        if self.held is not None:
            gains = measure(self.network.eval(), self.held, seed=self.config.seed, progress=self.progress)
        record = DenoiserEpoch(epoch=epoch + 1, loss=self.sum / self.per_epoch, gains=gains)
        self.sum = 0.0
        self.history.append(record)
        improved = _best(self.history) is record
        if self.out is None:
            if improved:
                self.best_weights = _weights(self.network)
            return
        # The state last: what it says has happened is then on the disk, and an interrupted epoch end is done again.
        if improved:
            self.best_hash = save_denoiser(self.network, self.out / checkpoint.BEST)
        save_denoiser(self.network, self.out / checkpoint.LAST)
        checkpoint.save_record(
            self.out,
            {
                "about": about,
                "images": len(self.names),
                "steps": self.done,
                "history": [asdict(r) for r in self.history],
                "best": asdict(_best(self.history)),
            },
        )
        self._save(about)

    def _save(self, about: dict[str, Any]) -> None:
        if self.out is None:
            return
        checkpoint.save_state(
            self.out,
            {
                "about": about,
                "done": self.done,
                "sum": self.sum,
                "history": [asdict(record) for record in self.history],
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
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
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            checkpoint.check_optimizer(self.optimizer)
            self.done, self.sum = int(state["done"]), float(state["sum"])
            self.best_hash = str(state["best"])
            rows = [{**r, "gains": tuple(Gain(**g) for g in r["gains"])} for r in state["history"]]
            self.history = records(DenoiserEpoch, rows)
            check_position(self.done, steps=self.steps, per_epoch=self.per_epoch, epochs=len(self.history))
            for record in self.history:
                sum(gain.sigma + gain.noisy + gain.denoised for gain in record.gains)  # numbers, or TypeError
        if not (self.out / checkpoint.LAST).is_file() and self.history and not self.sum:
            save_denoiser(self.network, self.out / checkpoint.LAST)
        return self.done


def _weights(network: REDNet) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}


def _best(history: list[DenoiserEpoch]) -> DenoiserEpoch:
    if not history[-1].gains:
        return history[-1]
    return max(history, key=lambda r: (sum(g.denoised for g in r.gains), -r.epoch))
