"""How much the nearest neighbours of an image support the label that was predicted for it."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadv.ops import foreign
from fastadv.ops.arguments import Argument, choice, per_image, result, rows
from fastadv.ops.declaration import Op

Array = TypeVar("Array")


def knn_score(
    distances: Array,
    labels: Any,
    predicted: Any,
    *,
    weighting: str = "uniform",
    backend: str | None = None,
) -> Array:
    r"""Weighted share of the nearest neighbours that carry the predicted label.

    .. math:: s_n = \frac{\sum_{i=1}^{k} w_{n,i}\,[c_{n,i} = c_n]}{\sum_{i=1}^{k} w_{n,i}}

    with ``w = 1`` ("uniform", kNN), ``1/i`` ("rank", W-kNN) or ``1/d^2`` ("inverse_square", DW-kNN). Where a neighbour
    is at distance 0, "inverse_square" is the limit: the neighbours at distance 0 vote alone, all alike. A neighbour at
    infinity has no weight there; the score is NaN where no weight is left, or where a distance is NaN. Sums are made in
    float64. There is no derivative.

    Args:
        distances: ``(N, k)`` float32, k >= 1, ascending in every row: "rank" counts on it.
        labels: ``(N, k)`` int64, those of the neighbours.
        predicted: ``(N,)`` int64.
        weighting: ``"uniform"``, ``"rank"`` or ``"inverse_square"``.
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; None for the fastest that can run.

    Returns:
        ``(N,)`` float32 in [0, 1]; the values of ``distances`` are not looked at, since that would wait for the device.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, device or value.
        BackendUnavailable: the backend that was named cannot run here.

    Source:
        Carrara et al. 2017, "Detecting adversarial example attacks to deep neural networks", eq. 2 and table 1.
    """
    return foreign.give_back(_op.call(distances, labels, predicted, weighting, backend), distances)


def _empty(distances: Tensor, labels: Tensor, predicted: Tensor, weighting: str) -> Tensor:
    return distances.new_empty((distances.shape[0],))


_op = Op(
    "knn_score",
    rows("distances", torch.float32, least=1),
    rows("labels", torch.int64, like="distances"),
    per_image("predicted", torch.int64, like="distances", lent=True),
    result(),
    Argument(kind="shape", native=("*distances.shape",)),
    choice("weighting", {"uniform": 0, "rank": 1, "inverse_square": 2}),
    make=_empty,
)
