"""What stands for a class in each layer: its centroid or its medoid."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.detection import tensor_file
from fastadv.detection.moments import check_labels, check_rows
from fastadv.detection.tensor_file import TensorFile
from fastadv.ops import checks

KINDS = ("centroid", "medoid")

_FILE = "representatives"

#: One ``(N, C_l)`` float32 for each layer, and the classes ``(N,)`` int64 of the N images.
Batch = tuple[Sequence[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Representatives:
    """One vector for each of K classes in each of L layers.

    Attributes:
        kind: ``"centroid"``, the mean of the class, or ``"medoid"``, its most central member.
        layers: names, shallow to deep.
        classes: names; class k is ``classes[k]``.
        vectors: one ``(K, C_l)`` float32 for each layer.
        counts: ``(K,)`` int64, on the CPU: images of each class.
        members: medoids only: ``(L, K)`` int64, on the CPU: which image of the stream, from 0, each one is.
        model: the name of the network that the layers belong to.
        provenance: further facts, such as the data set and the digest of the weights.

    Raises:
        TypeError, ValueError: a field has the wrong type, shape or value, or fields do not fit each other.
    """

    kind: str
    layers: tuple[str, ...]
    classes: tuple[str, ...]
    vectors: tuple[Tensor, ...]
    counts: Tensor
    members: Tensor | None = None
    model: str
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(f"kind: expected 'centroid' or 'medoid', got {brief(self.kind)}")
        for name, names in (("layers", self.layers), ("classes", self.classes)):
            check_names(name, names)
        if len(self.vectors) != len(self.layers):
            raise ArgumentError(f"vectors: expected {len(self.layers)} layers, like layers, got {len(self.vectors)}")
        for i, value in enumerate(self.vectors):
            check_rows(f"vectors[{i}]", value)
            if value.shape[0] != len(self.classes):
                raise ArgumentError(
                    f"vectors[{i}]: expected {len(self.classes)} rows, like classes, got {value.shape[0]}"
                )
        if self.counts.shape != (len(self.classes),) or self.counts.dtype != torch.int64 or int(self.counts.min()) < 1:
            raise ArgumentError(
                f"counts: expected one >= 1 per class, got {self.counts.dtype} {tuple(self.counts.shape)}"
            )
        if (self.members is not None) != (self.kind == "medoid"):
            came = "None" if self.members is None else "given"
            raise ArgumentError(
                f"members: expected members of medoids, and only there, got {came} with kind {brief(self.kind)}"
            )
        shape = (len(self.layers), len(self.classes))
        if self.members is not None and (self.members.shape != shape or self.members.dtype != torch.int64):
            raise ArgumentError(
                f"members: expected int64 {shape}, got {self.members.dtype} {tuple(self.members.shape)}"
            )

    def to(self, device: torch.device | str) -> Representatives:
        """The same, with the vectors on another device."""
        return replace(self, vectors=tuple(value.to(device) for value in self.vectors))

    def joined(self, *others: Representatives) -> Representatives:
        """Its classes and those of others, on its device. Of several classes with one name the last one counts.

        Members are counted as if the streams had come one after the other.

        Raises:
            ValueError: another one is of another kind, model, layers or widths.
        """
        parts = (self, *others)
        rows: dict[str, int] = {}
        members: list[Tensor] = []
        classes = images = 0
        for part in parts:
            check_alike("others", part, self)
            rows |= {name: classes + k for k, name in enumerate(part.classes)}
            if part.members is not None:
                members.append(part.members + images)
            classes += len(part.classes)
            images += int(part.counts.sum())
        chosen = torch.tensor(list(rows.values()))
        columns = zip(*(part.to(self.vectors[0].device).vectors for part in parts), strict=True)
        return replace(
            self,
            classes=tuple(rows),
            vectors=tuple(torch.cat(column)[chosen.to(column[0].device)] for column in columns),
            counts=torch.cat([part.counts for part in parts])[chosen],
            members=torch.cat(members, dim=1)[:, chosen] if members else None,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            OSError: with the file's name.
        """
        tensor_file.write(path, kind=_FILE, tensors=self.tensors(), about=self.about())

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it: the tensors by name."""
        named = {f"vectors.{i}": value for i, value in enumerate(self.vectors)}
        named["counts"] = self.counts
        return named if self.members is None else {**named, "members": self.members}

    def about(self) -> dict[str, object]:
        """What a file says of it."""
        return {
            "kind": self.kind,
            "layers": list(self.layers),
            "classes": list(self.classes),
            "model": self.model,
            "provenance": dict(self.provenance),
        }


def load_representatives(path: str | os.PathLike[str]) -> Representatives:
    """Read what :meth:`Representatives.save` wrote.

    Raises:
        DetectionFileError: the file is missing, damaged, of another kind, or holds what cannot be.
    """
    file = tensor_file.read(path, kind=_FILE)
    made = from_file(file)
    file.only(set(made.tensors()))
    return made


def from_file(file: TensorFile) -> Representatives:
    """The representatives in an opened file, which may hold more.

    Raises:
        DetectionFileError: what it holds of them cannot be.
    """
    layers, classes = file.texts("layers"), file.texts("classes")
    kind = file.text("kind", known=KINDS)
    vectors = tuple(file.tensor(f"vectors.{i}", (len(classes), None)) for i in range(len(layers)))
    try:
        return Representatives(
            kind=kind,
            layers=layers,
            classes=classes,
            vectors=vectors,
            counts=file.tensor("counts", (len(classes),), torch.int64),
            members=file.tensor("members", (len(layers), len(classes)), torch.int64) if kind == "medoid" else None,
            model=file.text("model"),
            provenance=file.pairs("provenance"),
        )
    except tensor_file.DetectionFileError:
        raise
    except ValueError as error:
        raise tensor_file.DetectionFileError(f"{file.path}: {error}") from error


class CentroidSums:
    """Class sums that centroids are made of: one pass, float64, mergeable.

    Sums do not depend on how the images are cut into batches or shared out among workers, but for float64 rounding.
    Memory: ``K * sum C_l`` float64 numbers on the device of the first batch, whatever the number of images.
    """

    def __init__(self, *, layers: Sequence[str], classes: Sequence[str]) -> None:
        """Begin with no images of these classes.

        Raises:
            TypeError, ValueError: no names, or not distinct ones.
        """
        self.layers, self.classes = check_names("layers", layers), check_names("classes", classes)
        self.counts = torch.zeros(len(self.classes), dtype=torch.int64)
        self.sums: list[Tensor] | None = None

    @torch.no_grad()
    def add(self, values: Sequence[Tensor], labels: Tensor) -> None:
        """Take images.

        Args:
            values: one ``(N, C_l)`` float32 for each layer.
            labels: ``(N,)`` int64, on their device: classes in ``[0, K)``.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape, device or value.
        """
        found = check_batch(values, labels, len(self.layers), len(self.classes))
        if self.sums is None:
            self.sums = [v.new_zeros((len(self.classes), v.shape[1]), dtype=torch.float64) for v in found]
        for i, (total, value) in enumerate(zip(self.sums, found, strict=True)):  # before anything is added
            checks.rows(f"values[{i}]", value, torch.float32, (None, total.shape[1]))
        # One row per class that came, so that no two are added to the same place: the sums repeat their bits on a GPU.
        classes, place, counts = labels.unique(return_inverse=True, return_counts=True)
        choose = (torch.arange(len(classes), device=place.device)[:, None] == place).double()
        for total, value in zip(self.sums, found, strict=True):
            total[classes] += choose @ value.double()
        self.counts[classes.cpu()] += counts.cpu()

    def merge(self, other: CentroidSums) -> None:
        """Take what another one has taken.

        Raises:
            ValueError: its layers, classes or widths are others.
        """
        for name in ("layers", "classes"):
            if getattr(other, name) != getattr(self, name):
                raise ArgumentError(f"other: expected the {name} {', '.join(getattr(self, name)[:3])}, ..., got others")
        if other.sums is None:
            return
        if self.sums is None:
            self.sums = [torch.zeros_like(value) for value in other.sums]
        for i, (total, value) in enumerate(zip(self.sums, other.sums, strict=True)):
            if total.shape != value.shape:
                raise ArgumentError(f"other: expected width {total.shape[1]} in layer {i}, got {value.shape[1]}")
            total += value.to(total.device)
        self.counts += other.counts

    def finish(self, *, model: str, provenance: Mapping[str, str] | None = None) -> Representatives:
        r"""The centroids of everything taken.

        .. math:: c_{l,k} = \frac{1}{n_k} \sum_{n: y_n = k} p_{l,n}

        Args:
            model: the name of the network.
            provenance: further facts to keep.

        Raises:
            ValueError: a class had no image.
        """
        check_complete(self.counts, self.classes)
        assert self.sums is not None
        divisors = self.counts.double()[:, None]
        return Representatives(
            kind="centroid",
            layers=self.layers,
            classes=self.classes,
            vectors=tuple((total / divisors.to(total.device)).float() for total in self.sums),
            counts=self.counts.clone(),
            model=model,
            provenance=dict(provenance or {}),
        )


def centroids(
    batches: Iterable[Batch],
    *,
    layers: Sequence[str],
    classes: Sequence[str],
    model: str,
    provenance: Mapping[str, str] | None = None,
) -> Representatives:
    """The mean of every class in every layer; see :class:`CentroidSums`.

    Args:
        batches: values and labels, as :meth:`CentroidSums.add` takes them.
        layers: their names.
        classes: the names of the classes.
        model: the name of the network.
        provenance: further facts to keep.

    Raises:
        TypeError, ValueError: a batch does not fit, or a class had no image.

    Source:
        Massoli et al. 2021, "Detection of face recognition adversarial attacks", section 4.
    """
    sums = CentroidSums(layers=layers, classes=classes)
    for values, labels in batches:
        sums.add(values, labels)
    return sums.finish(model=model, provenance=provenance)


def check_alike(name: str, other: Representatives, own: Representatives) -> None:
    """Raise ValueError unless ``other`` has the kind, the model, the layers and the widths of ``own``."""
    for what in ("kind", "model", "layers"):
        came, expected = getattr(other, what), getattr(own, what)
        if came != expected:
            raise ArgumentError(f"{name}: expected the {what} {brief(expected)}, got {brief(came)}")
    for layer, mine, value in zip(own.layers, own.vectors, other.vectors, strict=True):
        if value.shape[1] != mine.shape[1]:
            raise ArgumentError(f"{name}: expected {mine.shape[1]} channels of layer {layer!r}, got {value.shape[1]}")


def check_batch(values: Sequence[Tensor], labels: Tensor, layers: int, classes: int) -> list[Tensor]:
    """``values`` as a list, or an error unless they are finite ``(N, C_l)`` float32 for all layers, with labels."""
    if not isinstance(values, (list, tuple)):
        raise ArgumentTypeError(
            f"values: expected a sequence of tensors (N, C), one per layer, got {type(values).__name__}"
        )
    if len(values) != layers:
        raise ArgumentError(f"values: expected {layers} layers, got {len(values)}")
    found = [check_rows(f"values[{i}]", value) for i, value in enumerate(values)]
    check_labels("labels", labels, found[0], classes)
    for i, value in enumerate(found):
        if len(value) != len(found[0]) or value.device != found[0].device:
            raise ArgumentError(
                f"values[{i}]: expected {len(found[0])} rows on {found[0].device}, like values[0], got "
                f"{len(value)} on {value.device}"
            )
    return found


def check_names(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """``names`` as a tuple, or an error unless they are distinct texts, one or more."""
    if isinstance(names, str) or not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
        raise ArgumentTypeError(f"{name}: expected a sequence of names, got {brief(names)}")
    if not names or len(set(names)) != len(names):
        raise ArgumentError(f"{name}: expected distinct names, got {len(names)}, {len(set(names))} of them distinct")
    return tuple(names)


def check_complete(counts: Tensor, classes: tuple[str, ...]) -> None:
    """Raise ValueError where a class had no image."""
    empty = (counts == 0).nonzero()[:, 0].tolist()
    if empty:
        raise ArgumentError(
            f"classes: expected at least one image of each, got none of {len(empty)} of {len(classes)}, "
            f"first {classes[empty[0]]!r}"
        )
