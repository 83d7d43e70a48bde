"""The losses, as modules from features and class indices to one number."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.core.errors import MissingPackageError
from fastadv.training.config import LOSSES, TrainConfig, TrainingError


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


class Keep(nn.Module):
    """`s (1 - cos(F(x'), F_0(x)))`, the mean over the batch: every embedding stays where the first network has it.

    x' is the image as it is trained on, attacked or not, x the clean one, F_0 the network before the training. With
    unit embeddings it is `s/2 ||F(x') - F_0(x)||²`. No identity is needed, so that few people suffice.
    Source: Schlarmann et al. 2024, "Robust CLIP", eq. 3 (FARE), here for unit embeddings and mixed batches.

    Args:
        scale: s.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, features: Tensor, kept: Tensor) -> Tensor:
        """Features `(N, D)` and unit embeddings `(N, D)`."""
        return self.scale * (1 - F.cosine_similarity(features, kept, dim=1)).mean()


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
        if config.loss == "keep":
            return Keep(config.scale)
        losses = _metric_learning().losses
        if config.loss == "cosface":
            made = losses.CosFaceLoss(classes, features, margin=config.effective_margin, scale=config.scale)
        else:
            degrees = math.degrees(config.effective_margin)
            made = losses.ArcFaceLoss(classes, features, margin=degrees, scale=config.scale)
        assert isinstance(made, nn.Module)
        # The class vectors begin with a standard deviation of 0.01, as the papers' do: only their directions count, and
        # long vectors (the library's have 1) hardly turn.
        with torch.no_grad():
            class_vectors(made).mul_(0.01)
        return made


class CosineLogits(nn.Module):
    """`s cos θ_j`, what a CosFace or ArcFace classifier decides by: without the margin, which is for training only.

    Args:
        loss: The loss; its class vectors, `(D, K)`, are shared.
        scale: s.
    """

    def __init__(self, loss: nn.Module, scale: float) -> None:
        super().__init__()
        self.vectors, self.scale = class_vectors(loss), scale

    def forward(self, features: Tensor) -> Tensor:
        """Features `(N, D)` to logits `(N, K)`."""
        return self.scale * (F.normalize(features, dim=1) @ F.normalize(self.vectors, dim=0))


def class_vectors(loss: nn.Module) -> nn.Parameter:
    """The class vectors of a CosFace or ArcFace loss, `(D, K)`."""
    vectors = loss.W
    assert isinstance(vectors, nn.Parameter)
    return vectors


def finite(loss: Tensor, step: int, steps: int, remedy: str) -> float:
    """The loss of a step, counted from 0, of so many.

    Raises:
        TrainingError: It is NaN or infinite.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"loss: expected a finite number, got {value} at step {step + 1} of {steps}; nothing of this "
            f"step was kept; {remedy}"
        )
    return value


def logits_of(loss: nn.Module, config: TrainConfig) -> nn.Module | None:
    """What the loss knows of its classes, from features to logits, with its own weights; None where there are none."""
    if isinstance(loss, Triplet | Keep):
        return None
    return loss.linear if isinstance(loss, Softmax) else CosineLogits(loss, config.scale)


def start_from_means(loss: nn.Module, config: TrainConfig, features: Tensor, labels: Tensor) -> None:
    """Lets the class vectors begin as the mean unit embeddings of the classes, where the loss has such.

    CosFace and ArcFace: `W_k = μ_k/‖μ_k‖`. Softmax: `W_k = s μ_k/(‖μ_k‖ f̄)` with f̄ the mean length of a feature, and
    `b = 0`, so that a logit is about `s cos θ_k`. Source: Qi et al. 2018, "Low-shot learning with imprinted weights",
    eq. 4.

    Args:
        loss: Of `make_loss`.
        config: Its `scale`.
        features: Raw features `(N, D)`.
        labels: Their classes `(N,)`; every class occurs.
    """
    if isinstance(loss, Triplet | Keep):
        return
    unit = F.normalize(features, dim=1)
    count = int(labels.max()) + 1
    means = F.normalize(torch.zeros(count, unit.shape[1]).index_add_(0, labels, unit), dim=1)
    with torch.no_grad():
        if isinstance(loss, Softmax):
            loss.linear.weight.copy_(means * (config.scale / features.norm(dim=1).mean()))
            loss.linear.bias.zero_()
        else:
            class_vectors(loss).copy_(means.T)


def _metric_learning():  # type: ignore[no-untyped-def]
    try:
        import pytorch_metric_learning
        from pytorch_metric_learning import losses, miners  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"loss: expected the package pytorch-metric-learning, got no such package ({error}); pip "
            "install 'fastadv[train]'"
        ) from error
    return pytorch_metric_learning
