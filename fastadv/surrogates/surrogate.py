"""What an attack differentiates in place of the bare model: its parts, and how they go together."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.models import FaceModel, in_precision, prepare
from fastadv.models.outputs import output_of
from fastadv.surrogates.feature_dropout import FeatureDropout, MaskedModel
from fastadv.surrogates.input_diversity import InputDiversity
from fastadv.surrogates.key import StepKey
from fastadv.surrogates.skip_gradient import SkipGradient
from fastadv.surrogates.translation_invariant import TranslationInvariant

_FIRST_MASK = 1  # Philox layer 0 is the random start's


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Further models that the gradient is taken of: ``sum_k w_k grad J_k``, ``w >= 0``, ``sum w = 1``.

    Attributes:
        others: The models besides the one that is attacked, of the same input size and device.
        weights: One number a model, the attacked one first; None weighs all alike. They are divided by their sum.

    Raises:
        ValueError: There is no model, or the weights do not fit.

    Source: Zhong and Deng 2020, algorithm 3.
    """

    others: tuple[FaceModel, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.others or not all(isinstance(m, FaceModel) for m in self.others):
            raise ArgumentError(f"others: expected at least one FaceModel, got {brief(self.others)}")
        if self.weights is None:
            return
        expected = len(self.others) + 1
        good = all(math.isfinite(w) and w >= 0 for w in self.weights) and sum(self.weights) > 0
        if len(self.weights) != expected or not good:
            raise ArgumentError(
                f"weights: expected {expected} numbers of at least 0, not all 0 (the attacked model's first), got "
                f"{brief(self.weights)}"
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, divided by their sum."""
        weights = self.weights or (1.0,) * (len(self.others) + 1)
        return tuple(w / sum(weights) for w in weights)


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """The composition of a surrogate; without parts it is the bare model.

    The source image passes ``diversity``; the networks of model and ``ensemble`` are edited by ``skip`` and
    ``dropout``; ``smoothing`` is applied to the sum of their gradients. With ``dropout`` the image that a goal
    compares with is embedded anew at every evaluation, by the same subnetwork as the source.

    Attributes:
        diversity: Random transformation of the source image (DI), or None.
        dropout: Random masks on the output of every convolution (DFANet), or None.
        skip: Damped gradients of the residual branches (SGM), or None.
        ensemble: Further models (E), or None.
        smoothing: Convolution of the gradient with a kernel (TI), or None.
    """

    diversity: InputDiversity | None = None
    dropout: FeatureDropout | None = None
    skip: SkipGradient | None = None
    ensemble: Ensemble | None = None
    smoothing: TranslationInvariant | None = None

    @property
    def needs_images(self) -> bool:
        """Whether a goal's references must be images: embeddings of the attacked model alone do not do."""
        return self.dropout is not None or self.ensemble is not None

    def bind(
        self,
        model: FaceModel,
        *,
        precision: str,
        channels_last: bool,
        prepared: FaceModel | None = None,
        keep: Collection[str] = (),
        bare: bool = False,
    ) -> BoundSurrogate:
        """The surrogate on a model, prepared to be differentiated.

        Args:
            model: The model that is attacked, in evaluation mode.
            precision: Of the gradients.
            channels_last: Run convolutions in the channels-last layout.
            prepared: The same model, prepared in float32 already, in the same layout and with the same `keep`.
            keep: Names of submodules whose outputs are asked for; see :func:`fastadv.models.prepare`.
            bare: Hold the model without its random parts too, where there are any.

        Raises:
            ValueError: A model of the ensemble differs in input size or device, or a part does not fit a model.
        """

        def plain(edited: FaceModel) -> FaceModel:
            if prepared is None or edited is not model:
                return prepare(edited, precision=precision, channels_last=channels_last, keep=keep)
            return prepared if precision == "fp32" else in_precision(prepared, precision, channels_last=channels_last)

        members, layer = [], _FIRST_MASK
        others = () if self.ensemble is None else self.ensemble.others
        shares = (1.0,) if self.ensemble is None else self.ensemble.shares
        for each in (model, *others):
            if each.image_shape != model.image_shape or each.device != model.device:
                raise ArgumentError(
                    f"others: expected models for images {model.image_shape} on {model.device} like "
                    f"{model.name!r}, got {each.name!r} for {each.image_shape} on {each.device}"
                )
            edited = each if self.skip is None else self.skip.bind(each)
            if self.dropout is None:
                members.append(Member(model=plain(edited), masked=None))
                continue
            masked = self.dropout.bind(edited, precision=precision, channels_last=channels_last, first_layer=layer)
            layer += masked.layers_used
            members.append(Member(model=edited, masked=masked))
        if not bare or (self.dropout is None and self.diversity is None):
            untouched = None
        else:
            untouched = members[0].model if self.dropout is None else plain(model)
        return BoundSurrogate(
            members=tuple(members),
            shares=shares,
            diversity=self.diversity,
            smoothing=self.smoothing,
            bare=untouched,
        )


@dataclass(frozen=True, kw_only=True)
class Member:
    """One network of a bound surrogate: prepared, or masked afresh at every evaluation."""

    model: FaceModel
    masked: MaskedModel | None

    def outputs(self, kind: str, images: Tensor, key: StepKey) -> Tensor:
        """Unit embeddings ``(N, D)``, logits ``(N, K)`` or a layer's features, by ``kind`` (``models.outputs``).

        Raises:
            ValueError: A layer is asked for, and the network is masked.
        """
        if self.masked is None:
            return output_of(self.model, kind, images)
        if kind not in ("embedding", "logits"):
            raise ArgumentError(
                f"goal: expected one on embeddings or logits where convolutions are masked, got one on {brief(kind)}"
            )
        return self.masked.logits(images, key) if kind == "logits" else self.masked(images, key)


@dataclass(frozen=True, kw_only=True)
class BoundSurrogate:
    """A surrogate with its networks: the attacked model's own first.

    Attributes:
        members: The networks.
        shares: Their weights, of sum 1.
        diversity: See ``Surrogate``.
        smoothing: See ``Surrogate``.
        bare: The attacked model without masks, where its outputs are asked for and the first network's are others: the
            masked ones, or of transformed images. Else None.
    """

    members: tuple[Member, ...]
    shares: tuple[float, ...]
    diversity: InputDiversity | None
    smoothing: TranslationInvariant | None
    bare: FaceModel | None = None

    @property
    def stochastic(self) -> bool:
        """Whether the networks change from one evaluation to the next."""
        return self.members[0].masked is not None

    @property
    def needs_images(self) -> bool:
        """Whether a goal's references must be images: embeddings of the attacked model alone do not do."""
        return self.stochastic or len(self.members) > 1

    def seen(self, images: Tensor, key: StepKey) -> Tensor:
        """The source images as the networks see them."""
        return images if self.diversity is None else self.diversity(images, key)

    def smoothed(self, gradient: Tensor) -> Tensor:
        """The gradient as the attack sees it."""
        return gradient if self.smoothing is None else self.smoothing(gradient)
