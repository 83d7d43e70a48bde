"""The training of a denoiser: from images to the weights of a RED network."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.core.progress import Progress, silent
from fastadv.core.restored import records
from fastadv.data import FaceSource
from fastadv.data.hashes import KnownHashes
from fastadv.models.checkpoints import load_weights
from fastadv.models.red import REDNet
from fastadv.models.training_loop import Losses, Part, descend
from fastadv.training import checkpoint
from fastadv.training.batches import batches, shuffled
from fastadv.training.cache import names_hash
from fastadv.training.checkpoint import kept, write_weights
from fastadv.training.config import TrainingError
from fastadv.training.denoiser_config import DenoiserConfig
from fastadv.training.losses import finite
from fastadv.training.noisy_batches import Gain, HeldImages, draw, measure


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
    if source.shape is None or min(source.shape) < config.patch:
        raise TrainingError(
            f"source: expected images of one size, at least {config.patch} as the patches, got {source.size}"
        )
    if held is not None and not held.names:
        raise TrainingError("held: expected one image or more, got none")
    out_of = set(held.names) if held is not None else set()
    names = tuple(sorted(name for name in source.names if name not in out_of))
    if len(names) < config.batch:
        raise TrainingError(f"batch: expected at most the {len(names)} images there are, got {config.batch}")
    task = _Denoiser(config, source, names, held, torch.device(device), progress)
    with checkpoint.sole_writer(out, fresh=fresh):
        facts = {"images": len(names)}
        training, resumed = checkpoint.complete(task, config, out, read=_read_history, facts=facts)
        load_weights(task.network, training.store.best(), source=checkpoint.best_of(out))
    return DenoiserResult(
        network=task.network.eval().requires_grad_(False),
        history=tuple(training.history),
        best=training.best,
        steps=task.steps_in_all,
        images=len(names),
        resumed_at=resumed,
    )


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
    return write_weights(kept(network.state_dict()), path, half=half)


class _Denoiser:
    """The task: patches with noise, measured on whole images. Nothing is random: draws hang on seed and image."""

    def __init__(
        self,
        config: DenoiserConfig,
        source: FaceSource,
        names: tuple[str, ...],
        held: HeldImages | None,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.config, self.source, self.names = config, source, names
        self.held, self.device, self.progress = held, device, progress
        self.per_epoch = len(names) // config.batch
        self.steps_in_all = self.per_epoch * config.epochs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = REDNet(width=config.width, layers=config.layers, stride=config.stride).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.lr)
        self.parts: Mapping[str, Part] = {"network": self.network, "optimizer": self.optimizer}

    def about(self, known: KnownHashes) -> dict[str, Any]:
        return {
            **checkpoint.fields_of(self.config),
            "model": "red",
            "size": self.source.size,
            "images": names_hash(self.names),
            "held": names_hash(self.held.names) if self.held is not None else None,
            "faces": self.source.identity(self.names, known=known),
            "held faces": None if self.held is None else self.held.source.identity(self.held.names, known=known),
        }

    def weights(self) -> dict[str, Tensor]:
        return kept(self.network.state_dict())

    def steps(self, epoch: int, first: int) -> Losses:
        config = self.config
        order = shuffled(self.names, config.batch, seed=config.seed, epoch=epoch)[first * config.batch :]
        self.network.train()
        with contextlib.closing(batches(self.source, order, config.batch)) as stream:
            for inside, (images, ids, _) in enumerate(stream, first):
                step = epoch * self.per_epoch + inside
                clean, given = draw(images.to(self.device), ids.to(self.device), config, epoch)
                for group in self.optimizer.param_groups:
                    group["lr"] = config.rate(step, self.steps_in_all)
                loss = F.mse_loss(self.network(given), clean)
                value = finite(loss, step, self.steps_in_all, f"try a lower lr (now {config.lr:g})")
                descend(self.optimizer, loss)
                yield value
                self.progress(f"epoch {epoch + 1}/{config.epochs}", inside + 1, self.per_epoch)

    def record(self, epoch: int, loss: float) -> DenoiserEpoch:
        gains: tuple[Gain, ...] = ()
        if self.held is not None:
            gains = measure(self.network.eval(), self.held, seed=self.config.seed, progress=self.progress)
        return DenoiserEpoch(epoch=epoch, loss=loss, gains=gains)

    def best(self, history: Sequence[DenoiserEpoch]) -> DenoiserEpoch:
        if not history[-1].gains:
            return history[-1]
        return max(history, key=lambda r: (sum(g.denoised for g in r.gains), -r.epoch))


def _read_history(rows: Sequence[Mapping[str, Any]]) -> list[DenoiserEpoch]:
    made = records(DenoiserEpoch, [{**row, "gains": tuple(Gain(**gain) for gain in row["gains"])} for row in rows])
    for record in made:
        sum(gain.sigma + gain.noisy + gain.denoised for gain in record.gains)  # numbers, or TypeError
    return made
