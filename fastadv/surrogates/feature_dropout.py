"""DFANet: every evaluation meets another subnetwork, made by dropping elements after every convolution."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_type
from fastadv.models import FaceModel, fold_batch_norms, prepare
from fastadv.models.face_model import check_face_model, copy_of
from fastadv.surrogates.key import StepKey
from fastadv.surrogates.masks import Draw, install

LAST_LAYER = 3999
"""The last Philox layer that a mask may use; those above it are input diversity's."""

# Zhong and Deng 2020, section IV-C, by the beginning of a name.
_PAPERS = {
    "iresnet50": 0.1,
    "se_iresnet": 0.1,
    "ir_se": 0.1,
    "se_resnet": 0.1,
    "senet": 0.1,
    "inception_resnet": 0.05,
    "mobilenet": 0.025,
}
# Of other networks: a rate, the number of convolutions that it is for, and the largest rate.
_DEPTHWISE = (0.0125, 37, 0.025)  # the best on MobileFace v2 (docs/transfer.md), MobileNet's
_FULL = (0.1, 53, 0.1)  # ResNet-50's


@dataclass(frozen=True, kw_only=True)
class FeatureDropout:
    r"""Dropout on the output of every convolution of a network, drawn anew for every evaluation (DFANet).

    .. math:: o_i \leftarrow M_i \odot o_i, \qquad M_i \sim \mathrm{Bernoulli}(1 - p_d)

    for every ``nn.Conv2d`` of the backbone: depthwise ones, 1×1 ones and those of shortcuts too; linear layers not.
    The mask comes directly behind the convolution, before its batch norm, and the backward pass uses the same one.
    Nothing is stored: a mask is a function of the evaluation's :class:`~fastadv.surrogates.key.StepKey` and its layer,
    so the two images of a pair that are evaluated with one key pass through the same subnetwork.

    Attributes:
        rate: ``p_d``, the share of the elements that is dropped, in [0, 1). 0 is the prepared model, bit for bit. None:
            the paper's for its own architectures, by the model's name: 0.1 for ResNet-50 and SENet-50, 0.05 for
            Inception-ResNet, 0.025 for MobileNet. **choice**: of other networks with n convolutions
            ``min(0.025, 0.0125 * 37 / n)`` where one is depthwise, else ``min(0.1, 0.1 * 53 / n)``: the number of masks
            times the rate is that of MobileFace v2, where 0.0125 was the best, or of ResNet-50.
        rescale: Multiply what is kept by 1 / (1 - rate), as dropout in training does; the paper does not.

    Raises:
        ValueError: The rate is out of range.

    Source:
        Zhong and Deng 2020, "Towards transferable adversarial attack against deep face recognition", section III-B,
        eq. 11 and 12, algorithm 1.
    """

    rate: float | None = None
    rescale: bool = False

    def __post_init__(self) -> None:
        if self.rate is not None and not (isinstance(self.rate, (int, float)) and 0 <= self.rate < 1):
            raise ArgumentError(f"rate: expected None or a number in [0, 1), got {brief(self.rate)}")

    def rate_for(self, model: FaceModel) -> float:
        """The rate that is used on a model."""
        if self.rate is not None:
            return float(self.rate)
        for prefix, known in _PAPERS.items():
            if model.name.lower().startswith(prefix):
                return known
        convolutions = [module for module in model.backbone.modules() if isinstance(module, nn.Conv2d)]
        depthwise = any(1 < each.groups == each.in_channels for each in convolutions)
        rate, count, largest = _DEPTHWISE if depthwise else _FULL
        return min(largest, rate * (count / max(len(convolutions), 1)))

    def bind(
        self, model: FaceModel, *, precision: str = "fp32", channels_last: bool = True, first_layer: int = 1
    ) -> MaskedModel:
        """Prepare a model and put the masks into it.

        Where the data flow shows that a batch norm, and a ReLU or PReLU behind it, are the only readers of a
        convolution, mask, batch norm and activation are one operation. A backbone that cannot be traced has the same
        masks, with less fused.

        Args:
            model: In evaluation mode, not prepared; it is left as it is.
            precision: See :func:`fastadv.models.prepare`; likewise ``channels_last``.
            channels_last: The layout of the weights.
            first_layer: The Philox layer of the first convolution; the others follow in the order in which the
                backbone registers them. Two models of one attack need ranges that do not overlap.

        Returns:
            The model that takes a key with the images.

        Raises:
            TypeError: ``model`` is no ``FaceModel``.
            ValueError: The backbone has no convolution, the layers do not fit into [1, 3999], or
                :func:`fastadv.models.prepare` refuses.
        """
        check_face_model(model)
        rate = self.rate_for(model)
        names = [name for name, module in model.backbone.named_modules() if isinstance(module, nn.Conv2d)]
        if not names:
            raise ArgumentError(
                f"model: expected a backbone with nn.Conv2d to drop features of, got {model.name!r} without"
            )
        if not (first_layer >= 1 and first_layer + len(names) - 1 <= LAST_LAYER):
            raise ArgumentError(
                f"first_layer: expected a number in [1, {LAST_LAYER + 1 - len(names)}] for the {len(names)} "
                f"convolutions of {model.name!r}, got {brief(first_layer)}"
            )
        draw = Draw()
        if rate == 0:
            prepared = prepare(model, precision=precision, channels_last=channels_last)
        else:
            folded = _folded(model, names)
            prepared = prepare(folded, precision=precision, channels_last=channels_last, fold=False)
            install(prepared, draw, rate=rate, rescale=self.rescale, first_layer=first_layer)
        return MaskedModel(model=prepared, rate=rate, layers_used=len(names), draw=draw)


@dataclass(frozen=True, kw_only=True)
class MaskedModel:
    """A prepared model whose convolutions are masked; its methods are a ``FaceModel``'s with a key.

    Attributes:
        model: The prepared model. Its masks can be drawn only through the methods of this class.
        rate: The share of the elements that is dropped.
        layers_used: How many Philox layers the masks take, from ``first_layer`` on: one for each convolution.
        draw: What tells the masks the key.
    """

    model: FaceModel
    rate: float
    layers_used: int
    draw: Draw

    def features(self, images: Tensor, key: StepKey) -> Tensor:
        """The raw features ``(N, D)`` of the subnetworks that the key draws.

        Args:
            images: ``(N, 3, H, W)`` in [0, 1].
            key: Of the N images.

        Raises:
            TypeError: ``key`` is no ``StepKey``.
            ValueError: It is not the key of N images, or the images do not fit the model.
        """
        return self._run(self.model.features, images, key)

    def __call__(self, images: Tensor, key: StepKey) -> Tensor:
        """The unit embeddings ``(N, D)``; see :meth:`features`."""
        return F.normalize(self.features(images, key), dim=1)

    def logits(self, images: Tensor, key: StepKey) -> Tensor:
        """The logits ``(N, K)`` of the class head; see :meth:`features`. ValueError without a head."""
        return self._run(self.model.logits, images, key)

    def _run(self, function: Any, images: Tensor, key: StepKey) -> Tensor:
        check_type("key", key, StepKey)
        for name, value in (("ids", key.ids), ("ticks", key.ticks)):
            if value.shape != images.shape[:1]:
                raise ArgumentError(
                    f"key: expected {name} of shape {tuple(images.shape[:1])}, one per image, got {tuple(value.shape)}"
                )
        self.draw.begin(key)
        try:
            return function(images)
        finally:
            self.draw.end()


def _folded(model: FaceModel, convolutions: Collection[str]) -> FaceModel:
    """A copy in which batch norms are merged into other layers, but for those right behind the convolutions."""
    made = copy_of(model)
    made.backbone = fold_batch_norms(made.backbone, keep={*convolutions, *model.layers}, image_shape=model.image_shape)
    return made
