"""Training of embedding networks and class heads on any source of faces."""

from fastadv.training.adversarial import ATTACKS, Adversarial, Adversary, AwayOrTowards
from fastadv.training.cache import CachedFaces
from fastadv.training.checkpoint import save_weights
from fastadv.training.config import LOSSES, TrainConfig, TrainingError
from fastadv.training.head import HeadConfig, HeadResult, train_head
from fastadv.training.loop import EpochRecord, TrainResult, train
from fastadv.training.losses import make_loss
from fastadv.training.validation import Held, verify_pairs

__all__ = [
    "ATTACKS",
    "LOSSES",
    "Adversarial",
    "Adversary",
    "AwayOrTowards",
    "CachedFaces",
    "EpochRecord",
    "HeadConfig",
    "HeadResult",
    "Held",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "make_loss",
    "save_weights",
    "train",
    "train_head",
    "verify_pairs",
]
