"""Which images a step sees, and how they are changed: functions of the seed, the epoch and the image alone."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv.data import Face, FaceSource
from fastadv.data.dealt_pairs import by_identity
from fastadv.ops import philox
from fastadv.training.config import TrainConfig, TrainingError

_AUGMENT_LAYER = 16


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Names and their classes.

    Attributes:
        people: The identities, sorted; class k is `people[k]`.
        names: The images.
        label: The class of every image.
    """

    people: tuple[str, ...]
    names: tuple[str, ...]
    label: dict[str, int]


def classes_of(names: Sequence[str], *, config: TrainConfig) -> Classes:
    """Groups images by identity and checks that they can be trained on.

    Raises:
        TrainingError: Fewer than two identities, no full batch, or a single image of an identity with triplets.
    """
    grouped = by_identity(names)
    if len(grouped) < 2:
        raise TrainingError(f"source: expected at least two identities, got {len(grouped)}")
    if len(names) < config.batch:
        raise TrainingError(f"batch: expected at most the {len(names)} images there are, got {config.batch}")
    if config.loss == "triplet":
        single = [person for person, found in grouped.items() if len(found) < 2]
        if single:
            raise TrainingError(
                "source: expected two images of every identity for the triplet loss, got one of "
                f"{len(single)} of {len(grouped)}, first {single[0]!r}"
            )
        if len(grouped) < config.batch // config.per_identity:
            raise TrainingError(
                f"batch: expected at most {len(grouped)} identities with {config.per_identity} images of "
                f"each, got {config.batch // config.per_identity} in {config.batch} images"
            )
    people = tuple(sorted(grouped))
    label = {name: k for k, person in enumerate(people) for name in grouped[person]}
    return Classes(people=people, names=tuple(sorted(names)), label=label)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch, counted from 0, of a training."""
    return (seed * 1_000_003 + epoch) % (1 << 63)


def shuffled(names: Sequence[str], batch: int, *, seed: int, epoch: int) -> list[str]:
    """The images of an epoch, shuffled, a whole number of batches."""
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    order = torch.randperm(len(names), generator=generator)[: len(names) // batch * batch]
    return [names[i] for i in order.tolist()]


def at(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels of each image ``(N, C, H, W)`` at its own rows ``(N, h)`` and columns ``(N, w)``: ``(N, C, h, w)``."""
    batch = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return images[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


def epoch_order(classes: Classes, config: TrainConfig, epoch: int) -> list[str]:
    """The images of an epoch in order, a whole number of batches.

    With the triplet loss every batch holds `per_identity` images of each of its identities (with repeats where an
    identity has fewer); otherwise the images are shuffled.
    """
    if config.loss != "triplet":
        return shuffled(classes.names, config.batch, seed=config.seed, epoch=epoch)
    generator = torch.Generator().manual_seed(epoch_seed(config.seed, epoch))
    steps = len(classes.names) // config.batch
    found: list[list[str]] = [[] for _ in classes.people]
    for name in classes.names:
        found[classes.label[name]].append(name)
    groups = config.batch // config.per_identity
    order_: list[str] = []
    for _ in range(steps):
        for person in torch.randperm(len(found), generator=generator)[:groups].tolist():
            mine = found[person]
            picks = torch.randperm(len(mine), generator=generator).tolist()
            order_ += [mine[picks[i % len(mine)]] for i in range(config.per_identity)]
    return order_


def batch_size(config: TrainConfig) -> int:
    """Images a step really has: a whole number of identities with the triplet loss."""
    if config.loss != "triplet":
        return config.batch
    return config.batch // config.per_identity * config.per_identity


def batches(
    source: FaceSource, order: Sequence[str], size: int
) -> Generator[tuple[Tensor, Tensor, list[str]], None, None]:
    """Images (N, 3, H, W), ids (N,) and names of one batch after the other, decoded ahead."""
    waiting: list[Face] = []
    with source.stream(order, ahead=2 * size) as faces:
        for face in faces:
            waiting.append(face)
            if len(waiting) == size:
                images, ids = torch.stack([f.image for f in waiting]), torch.tensor([f.id for f in waiting])
                yield images, ids, [f.name for f in waiting]
                waiting = []


def augment(images: Tensor, ids: Tensor, config: TrainConfig, epoch: int) -> Tensor:
    """Mirrors and moves each image, as its id, the epoch and the seed say.

    Args:
        images: (N, 3, H, W).
        ids: (N,) int64.
        config: Its `flip`, `shift` and `seed`.
        epoch: Counted from 0.
    """
    if not config.flip and not config.shift:
        return images
    height, width = images.shape[2:]
    drawn = philox.uniform(config.seed, ids, epoch, _AUGMENT_LAYER, (3,)).to(images.device)
    moves = ((drawn * (2 * config.shift + 1)).floor() - config.shift).long()
    rows = (torch.arange(height, device=images.device) + moves[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + moves[:, 1:2]).clamp(0, width - 1)
    if config.flip:
        columns = torch.where(drawn[:, 2:] < 0.5, columns.flip(1), columns)
    return at(images, rows, columns)
