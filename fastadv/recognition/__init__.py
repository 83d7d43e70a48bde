"""How recognition is measured: metrics of scores, and verification of pairs."""

from fastadv.recognition.intervals import PairedDifference, paired_difference, wilson
from fastadv.recognition.metrics import (
    KFoldAccuracy,
    Roc,
    accuracy_at,
    auc,
    best_threshold,
    eer,
    kfold_accuracy,
    roc,
    tar_at_far,
    threshold_at_far,
)
from fastadv.recognition.verification import (
    AttackedReport,
    VerificationReport,
    cosine_scores,
    euclidean_scores,
    evaluate,
    under_attack,
)

__all__ = [
    "AttackedReport",
    "KFoldAccuracy",
    "PairedDifference",
    "Roc",
    "VerificationReport",
    "accuracy_at",
    "auc",
    "best_threshold",
    "cosine_scores",
    "eer",
    "euclidean_scores",
    "evaluate",
    "kfold_accuracy",
    "paired_difference",
    "roc",
    "tar_at_far",
    "threshold_at_far",
    "under_attack",
    "wilson",
]
