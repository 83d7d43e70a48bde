"""What the layers say of many images: computed once, kept in a file, and turned into trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError
from fastadv.core.progress import Progress, silent
from fastadv.data import FaceSource
from fastadv.detection import DetectionFileError, Detector, LayerTap, Trajectory, tensor_file
from fastadv.detection.representatives import Batch
from fastadv.detection.taps import EMBEDDING, submodules
from fastadv.models import FaceModel, fixed_batches, prepare
from fastadv.runs import list_hash
from fastadv.runs.workers import Workers, each

_BATCH = 32
_SENT = 4 * _BATCH  # images of a call of a worker
_ROWS = 256
_FILE = "layer features"


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Images as the network sees them.

    Attributes:
        names: Of the N images.
        values: One ``(N, C_l)`` float32 for each layer, on the CPU.
        embeddings: ``(N, D)`` float32, unit embeddings.
        predicted: ``(N,)`` int64, the class of the largest logit; -1 where the network has no head.
    """

    names: tuple[str, ...]
    values: tuple[Tensor, ...]
    embeddings: Tensor
    predicted: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Tensor) -> Features:
        """Some of them, by ``(M,)`` places or ``(N,)`` booleans."""
        places = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        return Features(
            names=tuple(self.names[k] for k in places.tolist()),
            values=tuple(value[places] for value in self.values),
            embeddings=self.embeddings[places],
            predicted=self.predicted[places],
        )

    def of(self, names: Iterable[str]) -> Features:
        """Those with the names, in the order here."""
        wanted = set(names)
        return self.take(torch.tensor([name in wanted for name in self.names], dtype=torch.bool))

    def at(self, layers: Sequence[str]) -> tuple[Tensor, ...]:
        """The values of a detector's layers: all that were tapped and, where it reads it, last the embedding."""
        return (*self.values, self.embeddings) if layers[-1] == EMBEDDING else self.values


def joined(parts: Sequence[Features]) -> Features:
    """All of them, one after the other."""
    return Features(
        names=tuple(name for part in parts for name in part.names),
        values=tuple(torch.cat(values) for values in zip(*(part.values for part in parts), strict=True)),
        embeddings=torch.cat([part.embeddings for part in parts]),
        predicted=torch.cat([part.predicted for part in parts]),
    )


def images_of(source: FaceSource, names: Iterable[str] | None = None) -> Iterator[Tensor]:
    """The images of a source, in the order of the names; all where none are given."""
    with source.stream(names) as faces:
        for face in faces:
            yield face.image


def extract(
    model: FaceModel,
    layers: Sequence[str],
    names: Sequence[str],
    images: Iterable[Tensor],
    *,
    stage: str = "tapping",
    workers: Workers | None = None,
    progress: Progress = silent,
) -> Features:
    """Run the network over images and keep what the layers say, averaged over each map.

    In float32 and batches of one fixed shape, so that an image's numbers do not depend on the others.

    Args:
        model: In evaluation mode.
        layers: To tap; the embedding is there in any case.
        names: Of the images, at least one.
        images: As many, each ``(3, H, W)`` in [0, 1]; they are read as they are needed.
        stage: The name that progress gets.
        workers: Other processes that are sent the images and evaluate them; None: this one does.
        progress: Told of the images.

    Raises:
        ValueError: A layer does not exist, there are no images, or not as many as names.
    """
    if not names:
        raise ArgumentError(f"{stage}: expected at least one image, got none")
    view = _View(model=model, layers=submodules(layers))
    found: dict[int, list[Tensor]] = {}
    done = 0
    for place, columns in each(workers, view, _batched(images, _SENT if workers else _BATCH)):
        found[place] = columns
        done += len(columns[0])
        progress(stage, done, len(names))
    if done != len(names):
        raise ArgumentError(f"{stage}: expected {len(names)} images like names, got {done}")
    blocks = [found[place] for place in sorted(found)]
    *values, embeddings, predicted = map(torch.cat, zip(*blocks, strict=True))
    return Features(names=tuple(names), values=tuple(values), embeddings=embeddings, predicted=predicted[:, 0].long())


@dataclass(frozen=True, kw_only=True, eq=False)
class _View:
    """A network with the layers to tap: what an image is evaluated by, here or in a worker."""

    model: FaceModel
    layers: tuple[str, ...]

    @cached_property
    def tap(self) -> LayerTap:
        """The network, prepared."""
        return LayerTap(model=prepare(self.model, precision="fp32", keep=self.layers), layers=self.layers)

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Values of the layers, embeddings and classes ``(N, 1)`` as float32, on the CPU."""
        widths: list[int] = []

        def seen(batch: Tensor) -> Tensor:
            tapped, head = self.tap(batch.contiguous(memory_format=torch.channels_last)), self.tap.model.head
            columns = [*tapped.values, torch.nn.functional.normalize(tapped.features, dim=1)]
            none = columns[-1].new_full((len(batch), 1), -1)
            columns.append(none if head is None else head(tapped.features).argmax(1, keepdim=True).float())
            widths[:] = [column.shape[1] for column in columns]
            return torch.cat(columns, 1)  # a class is exact below 2**24

        made = fixed_batches(seen, torch.stack([*images]).to(self.model.device), _BATCH).cpu()
        return list(made.split(widths, 1))


def kept(file: Path, key: str, layers: Sequence[str], names: Sequence[str], make: Callable[[], Features]) -> Features:
    """Features that an earlier call has left in a file, or else those that are made now.

    Args:
        file: Where the features are kept; its folder is made.
        key: What they depend on besides layers and names, such as the weights; another key makes them anew.
        layers: That are tapped.
        names: Of the images.
        make: Extracts them; see ``extract``.

    Raises:
        ValueError: As ``extract``.
        OSError: The file cannot be written.
    """
    wanted = list_hash([key, *layers, *names])
    found = _read(file, wanted, names, len(layers))
    if found is not None:
        return found
    made = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"values.{k}": value for k, value in enumerate(made.values)}
    tensors |= {"embeddings": made.embeddings, "predicted": made.predicted}
    tensor_file.write(file, kind=_FILE, tensors=tensors, about={"of": wanted})
    return made


def _read(file: Path, wanted: str, names: Sequence[str], layers: int) -> Features | None:
    """What the file holds, where it is whole and of the same images; a damaged one is made again."""
    try:
        found = tensor_file.read(file, kind=_FILE)
        if found.text("of") != wanted:
            return None
        rows = len(names)
        return Features(
            names=tuple(names),
            values=tuple(found.tensor(f"values.{k}", (rows, None)) for k in range(layers)),
            embeddings=found.tensor("embeddings", (rows, None)),
            predicted=found.tensor("predicted", (rows,), torch.int64),
        )
    except DetectionFileError:
        return None


def _batched(images: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    source = iter(images)
    while block := list(islice(source, size)):
        yield block


def embed(trajectory: Trajectory, features: Features) -> Tensor:
    """Trajectories ``(N, L, K)`` or ``(N, L, 5)``, a block of images at a time."""
    return _by_blocks(trajectory, trajectory, features, trajectory.shape)


def _chosen(trajectory: Trajectory, features: Features) -> Tensor | None:
    """The classes that the network's head chose, where the trajectory reads them."""
    if trajectory.head is None or bool((features.predicted < 0).any()):
        return None
    return trajectory.to("cpu").own_of(features.predicted)


def batches(features: Features, labels: Tensor, layers: Sequence[str]) -> Iterator[Batch]:
    """Values of the layers and labels in blocks, as representatives are made of them."""
    values = features.at(layers)
    for part in _blocks(features):
        yield [value[part] for value in values], labels[part]


def scores_of(detector: Detector, features: Features, own: Tensor | None = None) -> Tensor:
    """A detector's scores ``(N,)``, a block of images at a time; ``own``: claimed classes, or None."""
    return _by_blocks(detector.score, detector.trajectory, features, (), own)


def _blocks(features: Features) -> list[slice]:
    return [slice(begin, begin + _ROWS) for begin in range(0, len(features), _ROWS)]


@torch.no_grad()
def _by_blocks(
    work: Callable[[list[Tensor], Tensor | None], Tensor],
    trajectory: Trajectory,
    features: Features,
    shape: tuple[int, ...],
    own: Tensor | None = None,
) -> Tensor:
    """``(N, *shape)``, made of the values on the device of the trajectory's representatives."""
    own = _chosen(trajectory, features) if own is None else own
    device = trajectory.representatives.vectors[0].device
    values = features.at(trajectory.representatives.layers)
    made = torch.empty((len(features), *shape))
    for part in _blocks(features):
        claimed = None if own is None else own[part].to(device)
        made[part] = work([value[part].to(device) for value in values], claimed).cpu()
    return made
