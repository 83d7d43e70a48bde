"""What a training depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError, Error
from fastadv.core.fields import check_least, check_one_of, check_positive
from fastadv.models.training_loop import annealed
from fastadv.training.adversarial import LOGITS, Adversarial

LOSSES = ("softmax", "cosface", "arcface", "triplet", "keep")
_WITHOUT_CLASSES = ("triplet", "keep")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("fp32", "bf16")

# CosFace and ArcFace: the papers' margins (cosine, radians); triplet: of unit embeddings' distances.
_MARGINS = {"softmax": 0.0, "cosface": 0.35, "arcface": 0.5, "triplet": 0.3, "keep": 0.0}


class TrainingError(Error, ValueError):
    """A training that cannot begin or go on; the message says what was wrong and what was expected."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train an embedding network. Every field decides about the weights that come out.

    Attributes:
        loss: One of `LOSSES`; "keep", for fine-tuning, holds every embedding where the first network has it.
        epochs: Passes over the images.
        batch: Images a step; the rest of an epoch that does not fill a batch is left out.
        lr: Peak learning rate: reached after the warm-up, then lowered to 0 along half a cosine.
        optimizer: "sgd" (momentum 0.9, Nesterov) or "adamw".
        weight_decay: Of weights with two or more axes.
        warmup: Share of the steps in which the rate rises from 0.
        margin: Of the loss; None takes 0.35 (CosFace), 0.5 rad (ArcFace), 0.3 (triplet).
        scale: Of the cosines; CosFace, ArcFace and keep.
        per_identity: Images of each identity in a batch, triplet loss only.
        flip: Mirror half of the images.
        shift: Move images by up to so many pixels, edges repeated.
        precision: "bf16" runs the network in bfloat16 autocast, with float32 weights and loss.
        seed: Of the order, the augmentation and the loss's own weights.
        fine_tune: Go on with a trained network: the class vectors begin as the mean embeddings of the classes, and
            batch norms keep their statistics, which batches of few people or of attacked images would shift.
        clip: Largest norm of the gradient of all weights together; a longer one is scaled down to it. None: any. Frozen
            batch norms with small variances make the gradients of a fine-tuned network long.
        adversarial: Which share of every batch is attacked, and how; None trains on clean images.
        checkpoint_steps: Also save the state within an epoch, every so many steps; None saves after epochs only.

    Raises:
        ValueError: A field out of its range, with the name, the value and what was expected.
    """

    loss: str = "cosface"
    epochs: int = 10
    batch: int = 128
    lr: float = 0.1
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    warmup: float = 0.1
    margin: float | None = None
    scale: float = 32.0
    per_identity: int = 4
    flip: bool = True
    shift: int = 4
    precision: str = "fp32"
    seed: int = 0
    fine_tune: bool = False
    clip: float | None = None
    adversarial: Adversarial | None = None
    checkpoint_steps: int | None = None

    def __post_init__(self) -> None:
        check_one_of("loss", self.loss, LOSSES)
        check_one_of("optimizer", self.optimizer, OPTIMIZERS)
        check_one_of("precision", self.precision, PRECISIONS)
        for name, least in (("epochs", 1), ("batch", 2), ("per_identity", 2), ("shift", 0)):
            check_least(name, getattr(self, name), least)
        check_least("checkpoint_steps", 1 if self.checkpoint_steps is None else self.checkpoint_steps, 1)
        check_positive("lr", self.lr)
        check_positive("scale", self.scale)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ArgumentError(f"weight_decay: expected a number >= 0, got {self.weight_decay}")
        if not 0 <= self.warmup < 1:
            raise ArgumentError(f"warmup: expected a share in [0, 1), got {self.warmup}")
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin >= 0):
            raise ArgumentError(f"margin: expected a number >= 0 or None, got {self.margin}")
        if not 0 <= self.seed < 1 << 63:
            raise ArgumentError(f"seed: expected a number in [0, 2^63), got {self.seed}")
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip > 0):
            raise ArgumentError(f"clip: expected a number > 0 or None, got {self.clip}")
        if self.adversarial is not None and not isinstance(self.adversarial, Adversarial):
            raise ArgumentError(f"adversarial: expected an Adversarial or None, got {brief(self.adversarial)}")
        if self.adversarial is not None and self.adversarial.level == LOGITS and self.loss in _WITHOUT_CLASSES:
            raise ArgumentError(
                f"adversarial: expected fim or ffm with the loss {self.loss!r}, which has no classes, got "
                f"{self.adversarial.attack}, which ascends the loss of a class"
            )
        if self.loss == "keep" and not self.fine_tune:
            raise ArgumentError("fine_tune: expected True (--fine-tune) with the loss 'keep', got False")
        if self.loss == "triplet" and self.batch < 2 * self.per_identity:
            raise ArgumentError(
                f"batch: expected {2 * self.per_identity} or more with the triplet loss, two identities of "
                f"{self.per_identity} images, got {self.batch}"
            )

    @property
    def effective_margin(self) -> float:
        """The margin, or the loss's own where none is given."""
        return _MARGINS[self.loss] if self.margin is None else self.margin

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of so many.

        `lr·(step + 1)/w` in the w warm-up steps, then `lr·(1 + cos(π t))/2` with t from 0 to 1.
        """
        return annealed(self.lr, step, steps, warmup=self.warmup)
