"""The kNN score: whether the training images that look like an image support what was predicted for it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv import ops
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.core.fields import check_least, check_one_of, is_int, is_number
from fastadv.detection import tensor_file
from fastadv.detection.calibration import Thresholds, calibrate
from fastadv.detection.detectors import calibration_tensors, describe, thresholds_of
from fastadv.detection.moments import Moments, Projection, check_labels, check_rows, whitening
from fastadv.detection.neighbours import BACKENDS, Found, Neighbours

PROCESSINGS = ("none", "l2", "pca")
WEIGHTINGS = ("uniform", "rank", "inverse_square")

COMPONENTS = 0.25
"""The share of the channels that PCA keeps. Carrara et al. keep 256 of 1,024."""

# features of the index for each axis: with fewer, the last axes are noise, which whitening makes as large as the first
_ROWS_PER_COMPONENT = 10
_FILE = "knn score"


@dataclass(frozen=True, kw_only=True, eq=False)
class KnnScore:
    r"""Refuses a prediction that the nearest training features do not support.

    .. math:: s(q, c) = \frac{\sum_{i=1}^{k} w_i\,[c_i = c]}{\sum_{i=1}^{k} w_i}

    over the k nearest neighbours of q by L2 distance, with ``w = 1`` ("uniform", kNN), ``1/i`` ("rank", W-kNN) or
    ``1/d^2`` ("inverse_square", DW-kNN).

    Attributes:
        layer: the layer that the features are the pooled output of.
        neighbours: the index of processed features.
        k: how many neighbours vote; 1,000 in the paper.
        weighting: how they are weighted.
        processing: what is done to a feature first: ``"none"``, ``"l2"`` (norm 1), ``"pca"`` (PCA and whitening).
        projection: of ``"pca"``.
        thresholds: of :meth:`score`, or None before :meth:`calibrated`.
        model: the name of the network.
        provenance: further facts.

    Raises:
        ValueError: a field is out of its range, or fields do not fit each other.

    Source:
        Carrara et al. 2017, "Detecting adversarial example attacks to deep neural networks", section 4.
    """

    layer: str
    neighbours: Neighbours
    k: int = 1000
    weighting: str = "inverse_square"
    processing: str = "none"
    projection: Projection | None = None
    thresholds: Thresholds | None = None
    model: str
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_options(self.processing, self.weighting, self.k)
        if self.k > len(self.neighbours):
            raise ArgumentError(f"k: expected at most {len(self.neighbours)}, the size of the index, got {self.k}")
        if (self.projection is not None) != (self.processing == "pca"):
            raise ArgumentError(
                f"processing: expected a projection with 'pca', and only there, got {brief(self.processing)}"
            )
        if self.projection is not None and self.projection.matrix.shape[1] != self.neighbours.features.shape[1]:
            came, expected = self.projection.matrix.shape[1], self.neighbours.features.shape[1]
            raise ArgumentError(f"projection: expected {expected} numbers like the index, got {came}")

    @torch.no_grad()
    def nearest(self, features: Tensor) -> Found:
        """The k nearest training features, which scores of every weighting are made of.

        Args:
            features: ``(N, C)`` float32, pooled outputs of :attr:`layer`, finite.

        Raises:
            TypeError, ValueError: they have the wrong type, shape, device or value.
        """
        width = None if self.projection is None else self.projection.matrix.shape[0]
        return self.neighbours.search(_processed(check_rows("features", features, width), self), self.k)

    @torch.no_grad()
    def support(self, features: Tensor, predicted: Tensor) -> Tensor:
        """The published score: the weighted share of the neighbours with the predicted label.

        Args:
            features: ``(N, C)`` float32, pooled outputs of :attr:`layer`, finite.
            predicted: ``(N,)`` int64.

        Returns:
            ``(N,)`` float32 in [0, 1]: low for what looks adversarial.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape, device or value.
        """
        found = self.nearest(features)
        return ops.knn_score(found.distances, found.labels, predicted, weighting=self.weighting)

    def score(self, features: Tensor, predicted: Tensor) -> Tensor:
        """``1 - support``: higher for what looks adversarial, like every detector's score here."""
        return 1 - self.support(features, predicted)

    def calibrated(
        self, natural: Tensor, adversarial: Tensor | None = None, *, rates: tuple[float, ...] | None = None
    ) -> KnnScore:
        """The same with thresholds (:func:`fastadv.detection.calibrate`) from scores of other images."""
        return replace(self, thresholds=calibrate(natural, adversarial, rates=rates))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into one safetensors file, whole or not at all.

        Raises:
            OSError: with the file's name.
        """
        tensors = {"features": self.neighbours.features, "labels": self.neighbours.labels}
        tensors |= calibration_tensors(self.thresholds)
        if self.projection is not None:
            tensors |= {"mean": self.projection.mean, "matrix": self.projection.matrix}
        about = {
            "layer": self.layer,
            "k": self.k,
            "weighting": self.weighting,
            "processing": self.processing,
            "backend": self.neighbours.backend,
            "model": self.model,
            "provenance": dict(self.provenance),
            **describe(self.thresholds),
        }
        tensor_file.write(path, kind=_FILE, tensors=tensors, about=about)


def fit_knn(
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    layer: str,
    model: str,
    processing: str = "pca",
    dimensions: int | float = COMPONENTS,
    k: int = 1000,
    weighting: str = "inverse_square",
    backend: str = "brute",
    provenance: Mapping[str, str] | None = None,
) -> KnnScore:
    """Index the features of training images.

    Two passes: the first counts and sums mean and covariance (``C**2`` numbers, float64), the second processes the
    features into the index. So millions of rows need the index's memory and no more.

    Args:
        batches: features ``(N, C)`` float32 and labels ``(N,)`` int64 >= 0; iterated twice, so a list or another object
            that begins anew each time, and not a generator.
        layer: what the features are the pooled output of.
        model: the name of the network.
        processing: ``"none"``, ``"l2"`` or ``"pca"``.
        dimensions: of the PCA, at most: a number, or a share of the channels, then at most a tenth of the images too;
            axes without variance are left out.
        k: neighbours that vote, at most the number of features.
        weighting: ``"uniform"``, ``"rank"`` or ``"inverse_square"``.
        backend: of the index: ``"brute"`` or ``"faiss"``.
        provenance: further facts to keep.

    Raises:
        TypeError, ValueError: an argument or a batch is of the wrong type or value, or the second pass differs from
            the first.
        ImportError: FAISS is asked for and not installed, or cannot use the CUDA device.
    """
    _check_options(processing, weighting, k)
    check_components(dimensions)
    if isinstance(batches, Iterator):
        raise ArgumentTypeError(
            f"batches: expected batches to iterate twice, got {type(batches).__name__}, which can be read once"
        )
    count, width, moments, device = 0, 0, None, torch.device("cpu")
    for features, _ in batches:
        check_rows("features", features, width or None)
        if count == 0:
            width, device = features.shape[1], features.device
            moments = Moments(width, device=device) if processing == "pca" else None
        if moments is not None:
            moments.add(features)
        count += len(features)
    if count == 0:
        raise ArgumentError("batches: expected one or more features, got none")
    if k > count:
        raise ArgumentError(f"k: expected at most {count}, the number of features, got {k}")
    projection = None if moments is None else whitening(moments, components(dimensions, width, count))
    size = width if projection is None else projection.matrix.shape[1]
    rows = torch.empty((count, size), dtype=torch.float32, device=device)
    labels = torch.empty(count, dtype=torch.int64, device=device)
    begin = 0
    for features, classes in batches:
        end = begin + len(features)
        if end > count or features.shape[1] != width:
            raise ArgumentError(f"batches: expected {count} rows of {width} again, got other features the second time")
        check_labels("labels", classes, features, 1 << 62)
        rows[begin:end] = _process(features, processing, projection)
        labels[begin:end] = classes
        begin = end
    if begin != count:
        raise ArgumentError(f"batches: expected {count} features again, got {begin} the second time")
    return KnnScore(
        layer=layer,
        neighbours=Neighbours(rows, labels, backend=backend),
        k=k,
        weighting=weighting,
        processing=processing,
        projection=projection,
        model=model,
        provenance=dict(provenance or {}),
    )


def components(dimensions: int | float, width: int, count: int) -> int:
    r"""How many axes PCA keeps of C channels: a number as it is given, and of a share s

    .. math:: \max(1, \min(\mathrm{round}(s\,C), \lfloor M / 10 \rfloor))

    Args:
        dimensions: a whole number of at least 1, or a share s between 0 and 1.
        width: C.
        count: M, the features that the axes are estimated from.

    Raises:
        ValueError: ``dimensions`` is neither.
    """
    check_components(dimensions)
    if is_int(dimensions):
        return int(dimensions)
    return max(1, min(round(dimensions * width), count // _ROWS_PER_COMPONENT))


def check_components(dimensions: int | float) -> None:
    """Refuse what is neither a whole number of at least 1 nor a share between 0 and 1.

    Raises:
        ValueError: It is neither.
    """
    if not (is_number(dimensions) and (dimensions >= 1 if is_int(dimensions) else 0 < dimensions < 1)):
        raise ArgumentError(
            "dimensions: expected a whole number of at least 1, or a share of the channels above 0 and below 1, got "
            f"{brief(dimensions)}"
        )


def load_knn(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu", backend: str | None = None
) -> KnnScore:
    """Read what :meth:`KnnScore.save` wrote.

    Args:
        path: the file.
        device: where the index goes.
        backend: of the index; None for the one that it was saved with.

    Raises:
        DetectionFileError: the file is missing, damaged, of another kind, or holds what cannot be.
        ImportError: FAISS is asked for and not installed, or cannot use the CUDA device.
    """
    file = tensor_file.read(path, kind=_FILE)
    features = file.tensor("features", (None, None))
    labels = file.tensor("labels", (len(features),), torch.int64)
    processing = file.text("processing", known=PROCESSINGS)
    projection = None
    if processing == "pca":
        mean = file.tensor("mean", (None,), torch.float64)
        matrix = file.tensor("matrix", (len(mean), features.shape[1]), torch.float64)
        projection = Projection(mean=mean, matrix=matrix).to(device)
    thresholds = thresholds_of(file)
    held = {"features", "labels", *calibration_tensors(thresholds)}
    file.only(held | {"mean", "matrix"} if projection else held)
    k = file.integer("k")
    if k > len(features):
        raise file.wrong("k", k, f"at most {len(features)}, the size of the index")
    index = Neighbours(features.to(device), labels.to(device), backend=backend or file.text("backend", known=BACKENDS))
    return KnnScore(
        layer=file.text("layer"),
        neighbours=index,
        k=k,
        weighting=file.text("weighting", known=WEIGHTINGS),
        processing=processing,
        projection=projection,
        thresholds=thresholds,
        model=file.text("model"),
        provenance=file.pairs("provenance"),
    )


def _processed(features: Tensor, score: KnnScore) -> Tensor:
    return _process(features, score.processing, score.projection)


def _process(features: Tensor, processing: str, projection: Projection | None) -> Tensor:
    if projection is not None:
        return projection(features)
    return F.normalize(features, dim=1) if processing == "l2" else features


def _check_options(processing: str, weighting: str, k: int) -> None:
    for name, value, known in (("processing", processing, PROCESSINGS), ("weighting", weighting, WEIGHTINGS)):
        check_one_of(name, value, known)
    check_least("k", k, 1)
