"""The skip gradient method: gradients that pass through residual branches count less than those of shortcuts."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.models import FaceModel, dataflow
from fastadv.models.face_model import check_face_model, copy_of
from fastadv.surrogates import flow

_OUT_OF_PLACE: dict[Any, Any] = {operator.iadd: operator.add, "add_": "add"}


@dataclass(frozen=True, kw_only=True)
class SkipGradient:
    r"""Scales the gradient of every residual branch in the backward pass.

    For blocks :math:`z_{i+1} = z_i + f_i(z_i)` the gradient of a loss becomes

    .. math:: \nabla_{z_0} J = \prod_i \Bigl(1 + \gamma\,\frac{\partial f_i}{\partial z_i}\Bigr)^{\!\top} \nabla_{z_L} J

    and the forward pass stays what it is, to the bit. A shortcut with a projection keeps its gradient as it is. Nested
    branches are scaled once for each level.

    Attributes:
        gamma: The decay, in (0, 1]; 1 is the plain gradient. The default is what Zhong and Deng found best for a
            ResNet-50 on faces.

    Raises:
        ValueError: ``gamma`` is out of range.

    Source:
        Wu et al. 2020, "Skip connections matter: on the transferability of adversarial examples generated with
        ResNets", eq. 5; Zhong and Deng 2020, "Towards transferable adversarial attack against deep face recognition",
        section IV-F (S-FIM).
    """

    gamma: float = 0.3

    def __post_init__(self) -> None:
        if not (isinstance(self.gamma, (int, float)) and math.isfinite(self.gamma) and 0 < self.gamma <= 1):
            raise ArgumentError(f"gamma: expected a number in (0, 1], got {brief(self.gamma)}")

    def bind(self, model: FaceModel) -> FaceModel:
        """A copy of the model whose residual branches have the scaled gradient.

        The branches are found in the data flow: sums of a value, or of a projection of it, and something that is
        computed from that value by more convolutions or linear layers.

        Args:
            model: In evaluation mode, prepared or not. The copy can be prepared and can be given
                :class:`~fastadv.surrogates.feature_dropout.FeatureDropout`.

        Returns:
            The copy. Its backbone is a graph of layers, so only taps (``layers``) that are single layers are left.

        Raises:
            TypeError: ``model`` is no ``FaceModel``.
            ValueError: It is in training mode, cannot be traced, or has no residual branch.
        """
        check_face_model(model, evaluating=True)
        made = copy_of(model)
        graph = flow.trace_model(made, gradients=True)
        if graph is None:
            raise ArgumentError(
                "model: expected a backbone that can be traced, to find its residual branches, got "
                f"{model.name!r}, which cannot; does its forward pass branch on values, or use autocast?"
            )
        found = flow.residuals(made.backbone, graph)
        if not found:
            raise ArgumentError(
                f"model: expected residual branches to skip the gradient of, got {model.name!r} without"
            )
        names = _free_names(made.backbone, len(found))
        for residual, name in zip(found, names, strict=True):
            made.backbone.add_module(name, ScaledGradient(self.gamma).eval())
            with graph.inserting_before(residual.total):
                scaled = graph.call_module(name, (residual.branch,))
            residual.total.replace_input_with(residual.branch, scaled)
            # what leaves the scaling shares the memory of its input, and may not be written
            residual.total.target = _OUT_OF_PLACE.get(residual.total.target, residual.total.target)
        made.backbone = dataflow.GraphModule(made.backbone, graph, type(made.backbone).__name__).eval()
        called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
        made.layers = tuple(layer for layer in made.layers if layer in called)
        return made


class ScaledGradient(dataflow.Whole):
    """The identity, with a gradient that is multiplied by a factor.

    Args:
        factor: Of the gradient.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return _Scale.apply(x, self.factor)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"factor={self.factor}"


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def _free_names(backbone: nn.Module, count: int) -> list[str]:
    stem = "skip_gradient"
    while any(name.startswith(stem) for name, _ in backbone.named_children()):
        stem += "_"
    return [f"{stem}{i}" for i in range(count)]
