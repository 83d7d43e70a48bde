"""Depthwise convolutions of a frozen network in Triton, each with the activation that alone reads it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastadv import backends
from fastadv.core.brief import brief
from fastadv.core.errors import ArgumentError
from fastadv.models import dataflow
from fastadv.models.activation_pairs import activation_pairs
from fastadv.models.frozen_activation import FrozenPReLU
from fastadv.models.frozen_conv import FrozenDepthwiseConv2d, is_depthwise
from fastadv.models.memory import is_out_of_memory

_STEM = "depthwise_conv"  # of the kernel's file
_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}
_ACTIVATIONS |= dict.fromkeys((nn.PReLU, FrozenPReLU), "prelu")
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST = 7  # rows and columns of the weights; the kernel unrolls them
# A gradient has more rounding than an output, and a ReLU near 0 may flip; another function is off by far more.
_TOLERANCE = 1e-2
_log = logging.getLogger("fastadv")


class FusedDepthwiseConv2d(FrozenDepthwiseConv2d):
    r"""A depthwise convolution and the activation behind it in one kernel, and the gradient to the input in another.

    .. math:: y_{n,c,i,j} = \mathrm{act}\Bigl(b_c + \sum_{a,b} w_{c,a,b}\,x_{n,c,si+a-p,sj+b-p}\Bigr)

    Results and gradients are channels-last. Sums are made in float32, in an order that depends on the shapes without
    the batch, and are rounded once to the type of ``x``: an image's bits depend neither on its slot nor on other
    images, nor on the size of the batch. The mask of the activation is taken from the result; the input is not kept.
    The weights get no gradient. An input that the kernel does not take, as on a device without Triton, goes through
    the convolution and the activation of PyTorch.

    Args:
        convolution: depthwise, of one stride, 1 or 2, at most 7 x 7, without dilation; its weights are shared.
        activation: ``nn.ReLU``, ``nn.ReLU6`` or an ``nn.PReLU`` without negative slopes, below which the result would
            not tell the sign; None for none.

    Raises:
        ValueError: if the convolution or the activation is another one.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None = None) -> None:
        super().__init__(convolution)
        if not _has_kernel(convolution):
            raise ArgumentError(
                f"convolution: expected stride 1 or 2, no dilation and at most {_LARGEST} x {_LARGEST} weights a "
                f"channel, got {brief(convolution)}"
            )
        if activation is not None and not _has_mask(activation, convolution.out_channels):
            raise ArgumentError(
                f"activation: expected ReLU, ReLU6 or a PReLU of 1 or {convolution.out_channels} slopes, none "
                f"negative, got {brief(activation)}"
            )
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        """The activated convolution of `(N, C, H, W)`."""
        if not self._takes(input):
            y = super().forward(input)
            return y if self.activation is None else self.activation(y)
        kind = "none" if self.activation is None else _ACTIVATIONS[type(self.activation)]
        slope = self.activation.weight if kind == "prelu" else None  # type: ignore[union-attr]
        return _Convolution.apply(input, self.weight, self.bias, slope, self.stride[0], self.padding, kind)

    def arrange(self) -> None:
        """Store the weights as the kernel reads them, channels side by side: a call then copies none."""
        self.weight.data = _by_channel(self.weight).permute(2, 0, 1).unsqueeze(1)

    def _takes(self, x: Tensor) -> bool:
        where = x.device == self.weight.device and (x.is_cuda or (x.device.type == "cpu" and backends.interpreted()))
        kinds = x.dtype == self.weight.dtype and x.dtype in _TYPES
        shape = x.dim() == 4 and x.shape[1] == self.in_channels
        return where and kinds and shape and min(_output_size(x, self.kernel_size, 1, self.padding)) > 0  # type: ignore[arg-type]


def fuse_depthwise(
    backbone: nn.Module, image_shape: tuple[int, int, int], *, keep: Collection[str] = (), activations: bool = True
) -> None:
    """Replace depthwise convolutions by :class:`FusedDepthwiseConv2d`, in place; hooked ones are left alone.

    An activation becomes part of its convolution, and an identity, where the data flow of one forward pass shows that
    it alone reads the convolution, directly or through identities, and each is called once and has no hooks. A copy is
    tried first: where its output or its gradient to one image is another one, or the kernels cannot be compiled,
    nothing is replaced.

    Args:
        backbone: frozen and in evaluation mode, in float32.
        image_shape: channels, height and width of the image for that pass and the trial.
        keep: names of submodules whose outputs must stay what they are.
        activations: also fuse activations.
    """
    layers = [name for name, module in backbone.named_modules(remove_duplicate=False) if name and _fits(module)]
    parameter = next(backbone.parameters(), None)
    if not layers or parameter is None or backends.triton_problem(_STEM, parameter.device):
        return
    draw = torch.Generator().manual_seed(0)
    probe = torch.randn((1, *image_shape), generator=draw, device="cpu").to(parameter.device, parameter.dtype)
    trial = dataflow.copy_of(backbone)
    try:
        behind = _behind(trial, probe, keep) if activations else {}
        expected = _evaluated(trial, probe)
    except Exception as error:  # any code may run in there; who uses the backbone will see what it raises
        if is_out_of_memory(error):
            raise
        return
    try:
        _replace(trial, layers, behind)
        found = _evaluated(trial, probe)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _log.warning("depthwise convolutions: PyTorch's are used, since Triton's fail: %s", error)
        return
    if all(bool((a - b).norm() <= _TOLERANCE * b.norm()) for a, b in zip(found, expected, strict=True)):
        _replace(backbone, layers, behind)


def _fits(module: nn.Module) -> bool:
    plain = type(module) is nn.Conv2d and "forward" not in vars(module) and not _hooked(module)
    return plain and is_depthwise(module) and _has_kernel(module)  # type: ignore[arg-type]


def _has_kernel(convolution: nn.Conv2d) -> bool:
    strided = convolution.stride in ((1, 1), (2, 2)) and convolution.dilation == (1, 1)
    return strided and max(convolution.kernel_size) <= _LARGEST


def _has_mask(activation: nn.Module, channels: int) -> bool:
    if isinstance(activation, nn.PReLU) and (
        activation.num_parameters not in (1, channels) or bool((activation.weight < 0).any())
    ):
        return False
    return type(activation) in _ACTIVATIONS


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _behind(backbone: nn.Module, probe: Tensor, keep: Collection[str]) -> dict[str, str]:
    """The activation that alone reads a convolution, by the convolution's name."""
    found = {}
    for pair in activation_pairs(backbone, probe, keep=keep)[0]:
        convolution, activation = (backbone.get_submodule(name) for name in (pair.convolution, pair.activation))
        if (
            isinstance(convolution, nn.Conv2d)
            and _fits(convolution)
            and _has_mask(activation, convolution.out_channels)
        ):
            found[pair.convolution] = pair.activation
    return found


def _evaluated(backbone: nn.Module, probe: Tensor) -> tuple[Tensor, Tensor]:
    """The output for an image and the gradient of a sum of it."""
    with torch.enable_grad(), dataflow.exact(probe.device):
        x = probe.clone().requires_grad_()
        output = backbone(x)
        weights = torch.linspace(-1, 2, output.numel(), device=output.device, dtype=output.dtype).view(output.shape)
        return output.detach(), torch.autograd.grad(output, x, weights)[0]


def _replace(backbone: nn.Module, layers: Sequence[str], behind: Mapping[str, str]) -> None:
    for name in layers:
        activation = behind.get(name)
        fused = None if activation is None else backbone.get_submodule(activation)
        convolution = backbone.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        backbone.set_submodule(name, FusedDepthwiseConv2d(convolution, fused))
        if activation is not None:
            backbone.set_submodule(activation, nn.Identity().eval())


def _by_channel(weight: Tensor) -> Tensor:
    """The weights ``(C, 1, KH, KW)`` as ``(KH, KW, C)``, contiguous."""
    return weight.detach()[:, 0].permute(1, 2, 0).contiguous()


def _output_size(x: Tensor, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> list[int]:
    return [(n + 2 * p - k) // stride + 1 for n, k, p in zip(x.shape[2:], kernel, padding, strict=True)]


def _launch(out: Tensor, *tensors: Tensor | None, **options: Any) -> Tensor:
    if out.numel():
        importlib.import_module(f"fastadv.kernels.triton.{_STEM}").launch(*tensors, out, **options)
    return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        slope: Tensor | None,
        stride: int,
        padding: tuple[int, int],
        activation: str,
    ) -> Tensor:
        x, taken = x.contiguous(memory_format=torch.channels_last), _by_channel(weight)
        size = _output_size(x, (taken.shape[0], taken.shape[1]), stride, padding)
        shape = (*x.shape[:2], *size)
        made = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        ctx.shape, ctx.options = x.shape, {"stride": stride, "padding": padding, "activation": activation}
        _launch(made, x, None, taken, bias, slope, backward=False, **ctx.options)
        ctx.save_for_backward(taken, slope, None if activation == "none" else made)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, slope, made = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if made is None and ctx.shape[2:] == weight.shape[:2] and not any(ctx.options["padding"]):
            result = gradient * weight.permute(2, 0, 1)  # of one result a channel, in one product each
        else:
            result = torch.empty(
                ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last
            )
            _launch(result, gradient, made, weight, None, slope, backward=True, **ctx.options)
        return result, None, None, None, None, None, None
