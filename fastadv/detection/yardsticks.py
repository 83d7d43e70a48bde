"""Detectors of the field on the same taps, to compare with: Mahalanobis, LID and deep kNN.

Each gives one number a layer, ``(N, L)``, higher for what looks adversarial, and a score from all layers without
training. The papers of the first two join the layers by a logistic regression on adversarial examples instead: that is
:func:`fastadv.detection.fit_network` with ``kind="linear"`` on the numbers as embeddings ``(N, L, 1)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv import ops
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.detection.moments import Moments, Projection, check_labels, check_rows
from fastadv.detection.neighbours import Neighbours
from fastadv.detection.representatives import Batch, CentroidSums, check_batch

# A ratio of float32 distances nearer to 1 than this says nothing.
_RESOLUTION = 2.0**-24


@dataclass(frozen=True, kw_only=True, eq=False)
class Mahalanobis:
    r"""Distance to the nearest class, by the covariance that all classes share.

    .. math:: M_l(x) = \min_k (p_l - \mu_{l,k})^T \Sigma_l^{-1} (p_l - \mu_{l,k}), \qquad
              \Sigma_l = (1 - \gamma) S_l + \gamma \frac{\operatorname{tr} S_l}{C_l} I, \qquad
              S_l = \frac{1}{n} \sum_k \sum_{i: y_i = k} (p_{l,i} - \mu_{l,k})(p_{l,i} - \mu_{l,k})^T

    Differentiable in the values. **Choice**: the shrinkage gamma, which the paper lacks, so that fewer images than
    channels are no obstacle; and no small perturbation of the input first, which would cost a backward pass.

    Attributes:
        projections: one for each layer: whitens by the shared covariance.
        means: one ``(K, C_l)`` float32 for each layer: the classes' means, whitened.

    Source:
        Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
        eq. 1 and 2.
    """

    projections: tuple[Projection, ...]
    means: tuple[Tensor, ...]

    @classmethod
    def fit(
        cls, batches: Iterable[Batch], *, layers: Sequence[str], classes: Sequence[str], shrinkage: float = 0.01
    ) -> Mahalanobis:
        """Means and shared covariances of natural images, in one pass.

        Args:
            batches: values and labels, as :class:`fastadv.detection.CentroidSums` takes them.
            layers: their names.
            classes: the names of the classes.
            shrinkage: gamma, in [0, 1].

        Raises:
            TypeError, ValueError: a batch does not fit, a class had no image, ``shrinkage`` is out of its range, or a
                covariance is singular.
        """
        if not 0 <= shrinkage <= 1:
            raise ArgumentError(f"shrinkage: expected a share in [0, 1], got {shrinkage}")
        sums = CentroidSums(layers=layers, classes=classes)
        moments: list[Moments] = []
        for values, labels in batches:
            sums.add(values, labels)
            moments = moments or [Moments(value.shape[1], device=value.device) for value in values]
            for moment, value in zip(moments, values, strict=True):
                moment.add(value)
        sums.finish(model="")  # every class is there
        assert sums.sums is not None
        made = []
        for layer, total, moment in zip(layers, sums.sums, moments, strict=True):
            counts = sums.counts.double().to(total.device)[:, None]
            centres = total / counts
            apart = (centres - moment.mean) * counts.sqrt()
            within = (moment.scatter - apart.T @ apart) / moment.count
            projection = _whitening(layer, moment.mean, within, shrinkage)
            made.append((projection, ((centres - moment.mean) @ projection.matrix).float()))
        return cls(projections=tuple(p for p, _ in made), means=tuple(m for _, m in made))

    def by_layer(self, values: Sequence[Tensor]) -> Tensor:
        """Squared distances to the nearest class, layer by layer.

        Args:
            values: one ``(N, C_l)`` float32 for each layer.

        Returns:
            ``(N, L)`` float32.

        Raises:
            TypeError, ValueError: the values do not fit.
        """
        _check_values(values, [projection.matrix.shape[0] for projection in self.projections])
        whitened = [projection(value) for projection, value in zip(self.projections, values, strict=True)]
        return ops.centroid_distances(whitened, self.means).amin(2).square()

    def score(self, values: Sequence[Tensor]) -> Tensor:
        """``(N,)``: the sum over the layers, as if they were independent."""
        return self.by_layer(values).sum(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalDimension:
    r"""Local intrinsic dimensionality by maximum likelihood: adversarial images are where it is high.

    .. math:: \operatorname{LID}_l(x) = -\left( \frac1k \sum_{i=1}^{k} \log \frac{r_i}{r_k} \right)^{-1}

    with the distances r to the k nearest of a batch of natural reference images. A reference at distance 0 is the image
    itself and does not count, so natural images may be scored against a batch that they belong to, as the paper does.

    Attributes:
        reference: one ``(M, C_l)`` float32 for each layer, M > k; 100 images in the paper.
        k: neighbours; 20 in the paper.

    Raises:
        TypeError, ValueError: a field has the wrong type, shape or value.

    Source:
        Ma et al. 2018, "Characterizing adversarial subspaces using local intrinsic dimensionality", section 3.
    """

    reference: tuple[Tensor, ...]
    k: int = 20

    def __post_init__(self) -> None:
        if not isinstance(self.reference, tuple) or not self.reference:
            raise ArgumentTypeError(
                f"reference: expected a tuple of tensors (M, C), one per layer, got {brief(self.reference)}"
            )
        for i, value in enumerate(self.reference):
            check_rows(f"reference[{i}]", value)
            if len(value) != len(self.reference[0]):
                raise ArgumentError(f"reference[{i}]: expected {len(self.reference[0])} rows, got {len(value)}")
        if not 2 <= self.k < len(self.reference[0]):
            raise ArgumentError(
                f"k: expected 2 or more, and fewer than the {len(self.reference[0])} rows, got {self.k}"
            )

    @torch.no_grad()
    def by_layer(self, values: Sequence[Tensor]) -> Tensor:
        """Dimensions, layer by layer.

        Args:
            values: one ``(N, C_l)`` float32 for each layer.

        Returns:
            ``(N, L)`` float32, at most 2**24: what k equal distances give.

        Raises:
            TypeError, ValueError: the values do not fit, or fewer than k references are at a distance above 0.
        """
        _check_values(values, [value.shape[1] for value in self.reference])
        distances = ops.centroid_distances(list(values), self.reference)
        nearest = torch.where(distances == 0, torch.inf, distances).topk(self.k, dim=2, largest=False).values.double()
        if bool(nearest.isinf().any()):
            raise ArgumentError(f"values: expected k={self.k} references or more at a distance above 0, got fewer")
        return 1 / (nearest[:, :, -1:] / nearest).log().mean(2).clamp(min=_RESOLUTION).float()

    def score(self, values: Sequence[Tensor]) -> Tensor:
        """``(N,)``: the mean over the layers."""
        return self.by_layer(values).mean(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class DeepKnn:
    r"""Deep k-nearest neighbours: how unusual the neighbours' labels are, in all layers, for the predicted class.

    .. math:: \alpha(x, c) = \sum_l \#\{\text{neighbours of } p_l \text{ with another label than } c\}, \qquad
              p_c(x) = \frac{\#\{i: \alpha(x_i, y_i) \ge \alpha(x, c)\}}{n}

    over n natural images x_i with labels y_i that calibrate, and are not in the index. **Choice**: the neighbours are
    exact ones of the pooled outputs, and p is that of the class that the network predicted.

    Attributes:
        neighbours: an index for each layer; of features of norm 1, if ``normalise``.
        calibration: ``(n,)`` int64, ascending: the alphas of the images that calibrate.
        k: neighbours in each layer; 75 in the paper.
        normalise: bring features to norm 1 first: neighbours by cosine, as in the paper.

    Source:
        Papernot and McDaniel 2018, "Deep k-nearest neighbors", algorithm 1.
    """

    neighbours: tuple[Neighbours, ...]
    calibration: Tensor
    k: int
    normalise: bool

    @classmethod
    def fit(
        cls,
        values: Sequence[Tensor],
        labels: Tensor,
        *,
        held_values: Sequence[Tensor],
        held_labels: Tensor,
        k: int = 75,
        normalise: bool = True,
        backend: str = "brute",
    ) -> DeepKnn:
        """Index natural images, and calibrate on others.

        Args:
            values: one ``(M, C_l)`` float32 for each layer, to be indexed.
            labels: ``(M,)`` int64.
            held_values: the same of the n images that calibrate.
            held_labels: ``(n,)`` int64: their true classes.
            k: neighbours in each layer, at most M.
            normalise: bring features to norm 1 first.
            backend: of the indices: ``"brute"`` or ``"faiss"``.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape, device or value.
            ImportError: FAISS is asked for and not installed, or cannot use the CUDA device.
        """
        found = check_batch(values, labels, len(values), 1 << 62)
        held = check_batch(held_values, held_labels, len(found), 1 << 62)
        if not len(held[0]):
            raise ArgumentError("held_values: expected one or more rows, got none")
        if not 1 <= k <= len(found[0]):
            raise ArgumentError(f"k: expected an integer in [1, {len(found[0])}], the size of the index, got {k}")
        scaled = [F.normalize(value, dim=1) if normalise else value for value in found]
        indices = tuple(Neighbours(value, labels, backend=backend) for value in scaled)
        bare = cls(neighbours=indices, calibration=held_labels[:0], k=k, normalise=normalise)
        made = bare.by_layer(held, held_labels).sum(1).to(torch.int64)
        return cls(neighbours=indices, calibration=made.sort().values, k=k, normalise=normalise)

    def by_layer(self, values: Sequence[Tensor], predicted: Tensor) -> Tensor:
        """How many of the k neighbours have another label than the predicted one, layer by layer.

        Args:
            values: one ``(N, C_l)`` float32 for each layer.
            predicted: ``(N,)`` int64.

        Returns:
            ``(N, L)`` float32.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape, device or value.
        """
        _check_values(values, [index.features.shape[1] for index in self.neighbours])
        check_labels("predicted", predicted, values[0], 1 << 62)
        counts = []
        for index, value in zip(self.neighbours, values, strict=True):
            found = index.search(F.normalize(value, dim=1) if self.normalise else value, self.k)
            counts.append((found.labels != predicted[:, None]).sum(1))
        return torch.stack(counts, dim=1).float()

    def credibility(self, values: Sequence[Tensor], predicted: Tensor) -> Tensor:
        """``(N,)`` float32 in [0, 1]: p of the predicted class."""
        strange = self.by_layer(values, predicted).sum(1).to(torch.int64)
        below = torch.searchsorted(self.calibration, strange)
        return (len(self.calibration) - below) / len(self.calibration)

    def score(self, values: Sequence[Tensor], predicted: Tensor) -> Tensor:
        """``1 - credibility``."""
        return 1 - self.credibility(values, predicted)


def _whitening(layer: str, mean: Tensor, within: Tensor, shrinkage: float) -> Projection:
    width = len(within)
    eye = torch.eye(width, dtype=within.dtype, device=within.device)
    covariance = (1 - shrinkage) * within + shrinkage * within.trace() / width * eye
    values, vectors = torch.linalg.eigh(covariance)
    if float(values[0]) <= 1e-12 * float(values[-1]):
        raise ArgumentError(
            f"shrinkage: expected a larger one, since layer {layer!r} has a singular covariance, got {shrinkage}"
        )
    return Projection(mean=mean.clone(), matrix=vectors / values.sqrt())


def _check_values(values: Sequence[Tensor], widths: Sequence[int]) -> None:
    if not isinstance(values, (list, tuple)) or len(values) != len(widths):
        came = len(values) if isinstance(values, (list, tuple)) else type(values).__name__
        raise ArgumentError(f"values: expected a sequence of {len(widths)} layers, got {came}")
    for i, (value, width) in enumerate(zip(values, widths, strict=True)):
        check_rows(f"values[{i}]", value, width)
        if len(value) != len(values[0]):
            raise ArgumentError(f"values[{i}]: expected {len(values[0])} rows, like values[0], got {len(value)}")
