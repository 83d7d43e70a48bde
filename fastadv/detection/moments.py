"""Mean and scatter of rows that come in batches, and the linear maps that are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_least, check_type
from fastadv.ops import checks

#: Directions whose variance is below this share of the largest carry rounding, not data.
_RANK = 1e-10
_ROWS = 8192


class Moments:
    r"""Count, mean and scatter of rows, in one pass and float64.

    .. math:: S = \sum_n (x_n - \bar x)(x_n - \bar x)^T

    Batches are joined by the update of Chan et al., so nothing cancels however far the mean is from 0, and the result
    is the same, up to float64 rounding, however the rows are cut into batches or shared out among workers.

    Memory: ``C**2`` numbers.

    Source:
        Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self, width: int, *, device: torch.device | str = "cpu") -> None:
        """Begin with no rows of ``width`` numbers."""
        check_least("width", width, 1)
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Take rows ``(N, C)`` float32, finite.

        Raises:
            TypeError, ValueError: they are of another type, width or device, or not finite.
        """
        if isinstance(rows, Tensor):
            checks.on_device("rows", rows, self.mean)
        check_rows("rows", rows, self.mean.shape[0])
        for part in rows.split(_ROWS):
            values = part.double()
            mean = values.mean(0)
            values = values - mean
            self._join(len(part), mean, values.T @ values)

    def merge(self, other: Moments) -> None:
        """Take what another one has taken.

        Raises:
            ValueError: it is of another width.
        """
        if other.mean.shape != self.mean.shape:
            raise ArgumentError(f"other: expected width {self.mean.shape[0]}, got {other.mean.shape[0]}")
        self._join(other.count, other.mean.to(self.mean.device), other.scatter.to(self.mean.device))

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if count == 0:
            return
        total = self.count + count
        apart = mean - self.mean
        self.scatter += scatter + torch.outer(apart, apart) * (self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """``y = (x - mean) @ matrix``, in float64, rounded to float32 once. Differentiable.

    Attributes:
        mean: ``(C,)`` float64.
        matrix: ``(C, D)`` float64.
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """``(N, C)`` float32 to ``(N, D)`` float32."""
        return ((rows.double() - self.mean) @ self.matrix).float()

    def to(self, device: torch.device | str) -> Projection:
        """The same on another device."""
        return Projection(mean=self.mean.to(device), matrix=self.matrix.to(device))


def whitening(moments: Moments, dimensions: int) -> Projection:
    r"""PCA to at most ``dimensions`` axes, each scaled to variance 1 on the rows that ``moments`` took.

    .. math:: y = \Lambda^{-1/2} U^T (x - \bar x), \qquad U \Lambda U^T = S / (n - 1)

    with the largest eigenvalues first, and each eigenvector's largest component positive. Axes without variance (below
    1e-10 of the largest) are left out: they could not be scaled.

    Raises:
        ValueError: ``dimensions`` is below 1, or the rows do not vary.
    """
    check_least("dimensions", dimensions, 1)
    if moments.count < 2:
        raise ArgumentError(f"rows: expected two or more, to have a variance, got {moments.count}")
    values, vectors = torch.linalg.eigh(moments.scatter / (moments.count - 1))
    values, vectors = values.flip(0), vectors.flip(1)
    kept = min(dimensions, int((values > _RANK * values[0].clamp(min=0)).sum()))
    if kept == 0:
        raise ArgumentError("rows: expected some that differ, got equal ones")
    values, vectors = values[:kept], vectors[:, :kept]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return Projection(mean=moments.mean.clone(), matrix=vectors * largest.sign() / values.sqrt())


def check_rows(name: str, value: Any, width: int | None = None) -> Tensor:
    """``value``, or an error unless it is finite float32 ``(N, C)`` with the width, if one is given."""
    check_type(name, value, Tensor, "a torch.Tensor")
    checks.rows(name, value, torch.float32, (None, width))
    if value.shape[1] == 0:
        raise ArgumentError(f"{name}: expected shape (N, C) with C >= 1, got {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        raise ArgumentError(f"{name}: expected finite values, got NaN or infinity")
    return value


def check_labels(name: str, value: Any, rows: Tensor, classes: int) -> Tensor:
    """``value``, or an error unless it is int64 ``(N,)``, one class in [0, classes) for each of the rows."""
    check_type(name, value, Tensor, "a torch.Tensor")
    checks.per_image(name, value, rows, torch.int64)
    if len(value) and not 0 <= int(value.min()) <= int(value.max()) < classes:
        raise ArgumentError(f"{name}: expected classes in [0, {classes}), got {int(value.min())} to {int(value.max())}")
    return value
