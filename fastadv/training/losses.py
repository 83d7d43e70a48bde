"""The losses, as modules from features and class indices to one number."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.training.config import LOSSES, TrainConfig


class Softmax(nn.Module):
    """A linear layer and the cross-entropy: `-log softmax(W f + b)[y]`, the mean over the batch.

    Args:
        features: D.
        classes: K.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(features), labels)


class Triplet(nn.Module):
    """`max(0, d(a, p) - d(a, n) + m)`, the mean over the semi-hard triplets of the batch that are above 0.

    d is the distance of unit embeddings; semi-hard: the negative is farther than the positive by less than m.
    Source: Schroff et al. 2015, "FaceNet", eq. 2 and section 3.2, without the squares.

    Args:
        margin: m.
    """

    def __init__(self, margin: float) -> None:
        super().__init__()
        metric = _metric_learning()
        self.miner = metric.miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard")
        self.loss = metric.losses.TripletMarginLoss(margin=margin)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        found = self.miner(features, labels)
        loss: Tensor = self.loss(features, labels, found)
        return loss


def make_loss(config: TrainConfig, *, features: int, classes: int) -> nn.Module:
    """The loss of a configuration, with weights from its seed; PyTorch's random state is left as it was.

    CosFace (Wang et al. 2018, eq. 4): `-log e^{s(cos θ_y - m)} / (e^{s(cos θ_y - m)} + Σ_{j≠y} e^{s cos θ_j})`.
    ArcFace (Deng et al. 2019, eq. 3): the same with `cos(θ_y + m)`. θ_j is the angle between the feature and the j-th
    class vector. Both, and the triplet loss, are those of pytorch-metric-learning.

    Raises:
        ImportError: That package is not installed: the extra `train`.
    """
    assert config.loss in LOSSES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.loss == "softmax":
            return Softmax(features, classes)
        if config.loss == "triplet":
            return Triplet(config.effective_margin)
        losses = _metric_learning().losses
        if config.loss == "cosface":
            made = losses.CosFaceLoss(classes, features, margin=config.effective_margin, scale=config.scale)
        else:
            degrees = math.degrees(config.effective_margin)
            made = losses.ArcFaceLoss(classes, features, margin=degrees, scale=config.scale)
        assert isinstance(made, nn.Module)
        # The class vectors begin with a standard deviation of 0.01, as the papers' do: only their directions count, and
        # long vectors (the library's have 1) hardly turn.
        weight = made.W
        assert isinstance(weight, Tensor)
        with torch.no_grad():
            weight.mul_(0.01)
        return made


def _metric_learning():  # type: ignore[no-untyped-def]
    try:
        import pytorch_metric_learning
        from pytorch_metric_learning import losses, miners  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"training with this loss needs pytorch-metric-learning ({error}): pip install 'fastadv[train]'"
        ) from error
    return pytorch_metric_learning
