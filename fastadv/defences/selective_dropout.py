"""Selective dropout: the filters that an attack moves most are switched off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_int, check_range
from fastadv.defences.defended import Traits
from fastadv.models import FaceModel
from fastadv.models.checks import check_images
from fastadv.models.face_model import check_face_model, copy_of
from fastadv.models.hooks import Hook, hooked


@dataclass(frozen=True, kw_only=True)
class SelectiveDropout:
    r"""Find, on clean and attacked images, the filters that attacks move most.

    With :math:`\phi_{l,j}` the map of filter j of convolution l, and means over pixels and images,

    .. math:: e_{l,j} = \overline{|\phi_{l,j}(x') - \phi_{l,j}(x)|}, \qquad
              E_l = \sum_j e_{l,j} \Big/ \sum_j \overline{|\phi_{l,j}(x)|}

    The ``gamma`` layers with the largest ``E`` lose the share ``kappa`` of their filters with the largest ``e``.
    **choice**: the layers are compared by their change relative to what they carry, since scales differ from layer to
    layer; within a layer one scale is common, and the change itself is taken. Every ``nn.Conv2d`` of the backbone is a
    candidate that images pass.

    Attributes:
        gamma: Number of layers, at least 1; the paper's is 4.
        kappa: Share of the filters of a layer, in (0, 1); at least one filter is switched off; the paper's is 0.05.

    Raises:
        ValueError: A field is out of range.

    Source:
        Goswami et al. 2018, "Unravelling robustness of deep learning based face recognition against adversarial
        attacks"; gamma and kappa: Zhong and Deng 2020, table VI (lower part).
    """

    gamma: int = 4
    kappa: float = 0.05

    def __post_init__(self) -> None:
        check_int("gamma", self.gamma, 1, 4096)
        check_range("kappa", self.kappa, 0.0, 0.999, positive=True)

    def fit(self, model: FaceModel, clean: Tensor, attacked: Tensor, *, batch: int = 16) -> DroppedFilters:
        """Measure the filters.

        Args:
            model: In evaluation mode.
            clean: ``(N, 3, H, W)`` in [0, 1].
            attacked: The same images, attacked, in the same order.
            batch: Pairs of images per forward pass.

        Raises:
            TypeError: ``model`` is no ``FaceModel``.
            ValueError: The shapes differ, there is no image, the images do not differ, the model is in training mode,
                or it has fewer convolutions than ``gamma``.
        """
        check_face_model(model, evaluating=True)
        if clean.shape != attacked.shape or not len(clean):
            raise ArgumentError(
                f"attacked: expected the shape of clean, with at least one image, got {tuple(attacked.shape)} and "
                f"{tuple(clean.shape)}"
            )
        check_images("clean", clean)
        check_images("attacked", attacked)
        check_int("batch", batch, 1, 1 << 16)
        names = [name for name, module in model.backbone.named_modules() if isinstance(module, nn.Conv2d)]
        if len(names) < self.gamma:
            raise ArgumentError(
                f"gamma: expected at most {len(names)}, the convolutions of {model.name!r}, got {self.gamma}"
            )
        moved: dict[str, Tensor] = {}
        carried: dict[str, Tensor] = {}
        measured = [(model.backbone.get_submodule(name), _measuring(name, moved, carried)) for name in names]
        with torch.no_grad(), hooked(measured):
            for begin in range(0, len(clean), batch):
                pair = (clean[begin : begin + batch], attacked[begin : begin + batch])
                model.features(torch.cat(pair).to(model.device))
        if len(moved) < self.gamma:
            raise ArgumentError(
                f"gamma: expected at most {len(moved)}, the convolutions that images pass, got {self.gamma}"
            )
        change = {name: float(moved[name].sum() / carried[name].sum().clamp(min=1e-30)) for name in moved}
        if not any(change.values()):
            raise ArgumentError("attacked: expected images that move a filter away from clean, got some that move none")
        layers = sorted(change, key=lambda name: (-change[name], names.index(name)))[: self.gamma]
        found = []
        for name in sorted(layers, key=names.index):
            count = max(1, math.floor(self.kappa * len(moved[name]) + 0.5))
            order = moved[name].sort(descending=True, stable=True).indices[:count]
            found.append((name, tuple(sorted(order.tolist()))))
        return DroppedFilters(filters=tuple(found), gamma=self.gamma, kappa=self.kappa)


@dataclass(frozen=True, kw_only=True)
class DroppedFilters(Traits):
    """The filters that are switched off, by layer; found by :meth:`SelectiveDropout.fit`.

    Attributes:
        filters: Names of convolutions of the backbone, and the numbers of their filters.
        gamma: See ``SelectiveDropout``; for reports.
        kappa: The same.
    """

    filters: tuple[tuple[str, tuple[int, ...]], ...]
    gamma: int
    kappa: float

    @property
    def name(self) -> str:
        """``"selective4-0.05"``."""
        return f"selective{self.gamma}-{self.kappa:g}"

    def wrap(self, model: FaceModel, *, seed: int = 0) -> FaceModel:
        """A copy of the model without the filters: their weights and biases are zero, so their maps are.

        A batch norm behind the convolution still adds its constant.

        Args:
            model: Any ``FaceModel`` with these layers, not prepared.
            seed: Nothing is drawn.

        Raises:
            TypeError: ``model`` is no ``FaceModel``.
            ValueError: A layer is missing, is no convolution, or has no such filter.
        """
        check_face_model(model)
        made = copy_of(model)
        made.name = f"{model.name}+{self.name}"
        modules = dict(made.backbone.named_modules())
        for name, numbers in self.filters:
            layer = modules.get(name)
            if not isinstance(layer, nn.Conv2d) or max(numbers) >= layer.out_channels:
                raise ArgumentError(
                    f"model: expected a convolution {name!r} with at least {max(numbers) + 1} filters, got "
                    f"{model.name!r} without one"
                )
            with torch.no_grad():
                layer.weight[list(numbers)] = 0
                if layer.bias is not None:
                    layer.bias[list(numbers)] = 0
        return made


def _measuring(name: str, moved: dict[str, Tensor], carried: dict[str, Tensor]) -> Hook:
    """Compares the first half of every batch with the second, filter by filter."""

    def measure(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if len(output) == 1:  # of a table, as an encoding of positions is: no image passes here
            return
        before, after = output.double().chunk(2)
        for into, value in ((moved, after - before), (carried, before)):
            means = value.abs().mean((2, 3)).sum(0)
            into[name] = into[name] + means if name in into else means

    return measure
