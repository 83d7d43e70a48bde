"""A class head on a frozen backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_least, check_one_of, check_positive
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource
from fastadv.data.dealt_pairs import by_identity
from fastadv.models import FaceModel
from fastadv.models.training_loop import Losses, Memory, Part, Training, copied, descend
from fastadv.training.config import TrainingError
from fastadv.training.validation import embed_faces

STARTS = ("random", "means")
_CHUNK = 1024
_SCALE = 16.0  # of the logits of class means: of 8 to 64 the lowest cross-entropy on held-out LFW faces


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How to train a class head.

    The defaults are those of Massoli et al. 2021 ("Detection of face recognition adversarial attacks"): SGD, batches
    of 256, learning rate 1e-3, halved when the validation loss stops to fall.

    Attributes:
        epochs: Passes over the images.
        batch: Images a step.
        lr: First learning rate.
        momentum: Of SGD.
        patience: Epochs without a lower validation loss before the rate is halved.
        held_out: Images of each identity that validate, the last ones by name.
        start: The first weights: ``"random"``, or ``"means"``, the unit means of each identity's unit features, times
            16 over the mean norm of the features: the nearest class mean by cosine, which training goes on from. With
            a few images of an identity it ends far better than a random start.
        seed: Of random first weights and of the order.

    Raises:
        ValueError: A field out of its range.
    """

    epochs: int = 60
    batch: int = 256
    lr: float = 1e-3
    momentum: float = 0.9
    patience: int = 2
    held_out: int = 2
    start: str = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "patience", "held_out"):
            check_least(name, getattr(self, name), 1)
        check_one_of("start", self.start, STARTS)
        check_positive("lr", self.lr)
        if not 0 <= self.momentum < 1:
            raise ArgumentError(f"momentum: expected a number in [0, 1), got {self.momentum}")


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadResult:
    """A trained class head.

    Attributes:
        model: The model that was given, with the head; its backbone is as it was.
        classes: The identity of each logit.
        accuracy: Share of the held-out images whose identity is recognised.
        train_accuracy: The same on the images trained on.
    """

    model: FaceModel
    classes: tuple[str, ...]
    accuracy: float
    train_accuracy: float


def train_head(config: HeadConfig, model: FaceModel, source: FaceSource, *, progress: Progress = silent) -> HeadResult:
    """Trains a linear layer from the raw features to one logit an identity, and makes it the model's head.

    The backbone is not changed, so every image is embedded once. The head with the lowest validation loss is kept.

    Raises:
        TrainingError: Fewer than two identities, one without an image left to train on, or a loss that is not finite.
        ImageError, AlignmentError: An image cannot be used.
    """
    grouped = by_identity(source.names)
    if len(grouped) < 2:
        raise TrainingError(f"source: expected at least two identities for a class head, got {len(grouped)}")
    few = [person for person, found in grouped.items() if len(found) <= config.held_out]
    if few:
        raise TrainingError(
            f"source: expected more than the {config.held_out} held-out images of every identity, got too "
            f"few of {len(few)} of {len(grouped)}, first {few[0]!r}"
        )
    people = tuple(sorted(grouped))
    names = [n for k in people for n in grouped[k]]
    features = _features(model, source, names, progress)
    labels = torch.tensor([k for k, person in enumerate(people) for _ in grouped[person]])
    last = {name for found in grouped.values() for name in found[-config.held_out :]}
    held = torch.tensor([name in last for name in names])
    task = _Head(config, features, labels, held, len(people))
    store, per_epoch = Memory(), math.ceil(int((~held).sum()) / config.batch)
    told = partial(progress, "class head")
    Training(task, store, epochs=config.epochs, per_epoch=per_epoch, progress=told).complete()
    head = task.head
    head.load_state_dict(store.best())
    model.head = head.to(model.device).requires_grad_(False)
    model.eval()
    right = head.cpu()(features).argmax(1) == labels
    head.to(model.device)
    return HeadResult(
        model=model,
        classes=people,
        accuracy=float(right[held].float().mean()),
        train_accuracy=float(right[~held].float().mean()),
    )


def _features(model: FaceModel, source: FaceSource, names: list[str], progress: Progress) -> Tensor:
    rows = []
    for start in range(0, len(names), _CHUNK):
        rows.append(embed_faces(model, source, names[start : start + _CHUNK])[1])
        progress("embedding", min(start + _CHUNK, len(names)), len(names))
    return torch.cat(rows)


class _Head:
    """The task: a linear layer on features that stay, validated on the held-out ones; a record is (loss, epoch)."""

    def __init__(self, config: HeadConfig, features: Tensor, labels: Tensor, held: Tensor, classes: int) -> None:
        self.batch, self.parts = config.batch, dict[str, Part]()  # no checkpoint
        self.seen, self.held = (features[~held], labels[~held]), (features[held], labels[held])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = nn.Linear(features.shape[1], classes)
        if config.start == "means":
            self._start_at_means(classes)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = torch.optim.SGD(self.head.parameters(), lr=config.lr, momentum=config.momentum)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, factor=0.5, patience=config.patience)

    @torch.no_grad()
    def _start_at_means(self, classes: int) -> None:
        features, labels = self.seen
        sums = torch.zeros(classes, features.shape[1]).index_add_(0, labels, F.normalize(features, dim=1))
        self.head.weight.copy_(_SCALE * F.normalize(sums, dim=1) / features.norm(dim=1).mean())
        self.head.bias.zero_()

    def weights(self) -> dict[str, Tensor]:
        return copied(self.head)

    def steps(self, epoch: int, first: int) -> Losses:
        features, labels = self.seen
        for rows in torch.randperm(len(labels), generator=self.generator).split(self.batch):
            yield descend(self.optimizer, F.cross_entropy(self.head(features[rows]), labels[rows]))

    def record(self, epoch: int, loss: float) -> tuple[float, int]:
        features, labels = self.held
        with torch.no_grad():
            value = float(F.cross_entropy(self.head(features), labels))
        if not math.isfinite(value):
            raise TrainingError(f"loss: expected a finite number, got {value} in epoch {epoch}; try a lower lr")
        self.plateau.step(value)
        return value, epoch

    def best(self, history: Sequence[tuple[float, int]]) -> tuple[float, int]:
        return min(history)
