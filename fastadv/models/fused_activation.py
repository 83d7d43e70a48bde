"""Activations of a frozen network in one operation with the bias of the convolution before them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastadv.models import dataflow
from fastadv.models.activation_pairs import Pair, activation_pairs
from fastadv.models.folding import computes, probe_of
from fastadv.models.frozen_activation import FrozenActivation, has_kernel
from fastadv.models.frozen_conv import FrozenDepthwiseConv2d
from fastadv.models.memory import is_out_of_memory
from fastadv.models.untied_bias import UntiedBiasConv2d

# Those that keep nothing of their output. Exact types only: a subclass may compute something else.
_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv2d, FrozenDepthwiseConv2d, UntiedBiasConv2d)


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivatedForward:
    """The ``forward`` of a convolution with the activation behind it.

    Attributes:
        convolution: of ``_CONVOLUTIONS``.
        activation: of its output.
        adds_bias: whether the activation adds the convolution's bias.
    """

    convolution: nn.Conv2d
    activation: FrozenActivation
    adds_bias: bool

    def __call__(self, x: Tensor) -> Tensor:
        """The activated output ``(N, C, H, W)``."""
        layer = self.convolution
        if not self.adds_bias:
            made = type(layer).forward(layer, x)
        elif isinstance(layer, UntiedBiasConv2d):
            made = layer.without_bias(x)
        else:
            made = layer._conv_forward(x, layer.weight, None)
        return self.activation(made)


def activated_already(x: Tensor) -> Tensor:
    """The ``forward`` of an activation that is part of a convolution: ``x`` itself."""
    return x


def fusible_activations(
    backbone: nn.Module, *, keep: Collection[str] = (), image_shape: tuple[int, int, int] = (3, 112, 112)
) -> list[Pair]:
    """What :func:`fuse_activations` may fuse: pairs that leave the output for one image what it is.

    Args:
        backbone: frozen and in evaluation mode; not changed.
        keep: names of submodules whose outputs must stay what they are.
        image_shape: channels, height and width of the image.

    Returns:
        See :class:`fastadv.models.activation_pairs.Pair`; none where the device has no kernel for it, or where a copy
        with them computes something else, or shares modules with the backbone.
    """
    if not any(type(module) in _CONVOLUTIONS for module in backbone.modules()):
        return []
    trial, probe = dataflow.copy_of(backbone), probe_of(backbone, image_shape)
    if not has_kernel(probe.device) or not set(trial.modules()).isdisjoint(backbone.modules()):
        return []
    with torch.random.fork_rng(devices=[probe.device] if probe.is_cuda else []):
        try:
            found, expected = activation_pairs(trial, probe, keep=keep)
            pairs = [pair for pair in found if type(trial.get_submodule(pair.convolution)) in _CONVOLUTIONS]
            fuse_activations(trial, pairs)
            return pairs if not pairs or computes(trial, probe, expected) else []
        except Exception as error:  # any code may run in there; who uses the backbone will see what it raises
            if is_out_of_memory(error):
                raise
            return []


def fuse_activations(backbone: nn.Module, pairs: Sequence[Pair]) -> None:
    """Let convolutions give the output of the activations behind them, which then change nothing, in place.

    Modules, parameters and their names stay what they are: :func:`split_activations` is the way back. A bias for each
    position, and on CUDA every bias, is added by the activation, since the convolution would take another pass for it.
    On a CPU the activation takes the place of the convolution's output: no new memory is touched.
    """
    for pair in pairs:
        convolution = backbone.get_submodule(pair.convolution)
        activation = backbone.get_submodule(pair.activation)
        assert isinstance(convolution, nn.Conv2d)
        bias = _added_bias(convolution)
        shift = convolution.weight.new_full((convolution.out_channels,), -0.0) if bias is None else bias
        fused = FrozenActivation(activation, shift, overwrite=(True, pair.for_convolution), keep_result=pair.unchanged)
        convolution.forward = ActivatedForward(  # type: ignore[assignment, method-assign]
            convolution=convolution, activation=fused, adds_bias=bias is not None
        )
        activation.forward = activated_already


def split_activations(backbone: nn.Module) -> None:
    """Undo :func:`fuse_activations`, in place."""
    for module in backbone.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, ActivatedForward) or forward is activated_already:
            del module.forward


def _added_bias(convolution: nn.Conv2d) -> Tensor | None:
    """The bias that the activation adds; None where the convolution adds its own, or has none."""
    if isinstance(convolution, UntiedBiasConv2d):
        return convolution.untied_bias[0]
    return convolution.bias if convolution.weight.is_cuda else None
