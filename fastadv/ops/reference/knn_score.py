"""The score of a predicted label among the nearest neighbours in plain PyTorch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def knn_score(distances: Tensor, labels: Tensor, predicted: Tensor, weighting: str) -> Tensor:
    """See :func:`fastadv.ops.knn_score`."""
    wide = distances.double()
    if weighting == "uniform":
        weight = torch.ones_like(wide)
    elif weighting == "rank":
        weight = (1.0 / torch.arange(1, wide.shape[1] + 1, device=wide.device, dtype=torch.float64)).expand_as(wide)
    else:
        zero = wide == 0
        weight = torch.where(zero.any(1, keepdim=True), zero.double(), 1.0 / wide.square())
    same = torch.where(labels == predicted[:, None], weight, torch.zeros_like(weight))
    return (same.sum(1) / weight.sum(1)).float()
