"""Making a trained model fast to differentiate: folding of batch norms, freezing, layout and precision."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_one_of
from fastadv.models.face_model import PRECISIONS, FaceModel, check_face_model, copy_of
from fastadv.models.folding import BATCH_NORMS, fold_batch_norms
from fastadv.models.frozen_activation import FrozenPReLU, has_kernel
from fastadv.models.frozen_conv import FrozenDepthwiseConv2d, is_depthwise
from fastadv.models.fused_activation import fuse_activations, fusible_activations, split_activations
from fastadv.models.fused_depthwise import FusedDepthwiseConv2d, fuse_depthwise
from fastadv.models.independence import check_independent
from fastadv.models.modes import plain_modes


def prepare(
    model: FaceModel,
    *,
    precision: str = "fp32",
    channels_last: bool = True,
    fold: bool = True,
    keep: Collection[str] = (),
    fuse: bool = True,
) -> FaceModel:
    """A copy of the model that is ready to be attacked: frozen, folded, in the fastest layout and precision.

    The original is left as it is. The copy's parameters need no gradient, so a backward pass computes the
    gradient to the images only. Names of submodules are kept, and the outputs of `layers` up to rounding.

    Args:
        model: in evaluation mode.
        precision: "fp32"; "bf16", where the backbone computes in bfloat16, and images, batch norms that
            cannot be folded, and outputs stay float32; or "tf32", the float32 model with a mark that the
            engine reads (CUDA only).
        channels_last: store the weights, and thereby compute, in channels-last layout.
        fold: merge each batch norm into the convolution or linear layer before or behind it. Turn it off for a
            surrogate that changes the output of a convolution *before* its batch norm (DFANet).
        keep: names of further submodules of the backbone whose outputs must stay what they are.
        fuse: with `fold`, make an activation part of the convolution before it, whose output is then the activated
            one. On a CPU its gradient may be overwritten in the backward pass. Turn it off for what reads outputs of
            convolutions, or their gradients, that are not in `layers` or `keep`.

    Returns:
        The prepared copy.

    Raises:
        TypeError: if `model` is no `FaceModel`.
        ValueError: if the precision is unknown or not available on the model's device, if the model was
            already prepared in another precision, if any part of it is in training mode, or if what it says of
            an image depends on the other images of the batch or on chance (measured once for each model).
    """
    check_face_model(model)
    _check_precision(precision, model.device)
    if model.precision == "bf16" and precision != "bf16":
        raise ArgumentError(
            f"model: expected one that is not rounded for {precision!r}, got {model.name!r} in bf16; "
            "prepare the original"
        )
    _check_evaluating(model)
    with plain_modes(model.device):
        prepared = _prepared(
            model, precision=precision, channels_last=channels_last, fold=fold, keep={*model.layers, *keep}, fuse=fuse
        )
        if not model._independent:
            check_independent(prepared)
            model._independent = prepared._independent = True
    return prepared


def in_precision(prepared: FaceModel, precision: str, *, channels_last: bool = True) -> FaceModel:
    """A copy of a model that is prepared in float32, in another precision: to the bit what `prepare` gives in that.

    What `prepare` found, which takes most of its time, is not looked for again.

    Args:
        prepared: the result of `prepare` with the precision "fp32".
        precision: as of `prepare`.
        channels_last: as of `prepare`, with which the model was prepared.

    Raises:
        ValueError: if the precision is unknown or not available on the model's device, or the model is not in float32.
    """
    _check_precision(precision, prepared.device)
    if prepared.precision != "fp32":
        raise ArgumentError(f"prepared: expected a model prepared in 'fp32', got one in {prepared.precision!r}")
    with plain_modes(prepared.device):
        made = freeze(copy_of(prepared))
        split_activations(made.backbone)
        return _arranged(made, precision=precision, channels_last=channels_last)


def _check_precision(precision: str, device: torch.device) -> None:
    check_one_of("precision", precision, PRECISIONS)
    if precision == "tf32" and device.type != "cuda":
        raise ArgumentError(
            f"precision: expected a model on a CUDA device with 'tf32', got one on {str(device)!r}; "
            "use 'fp32' or 'bf16'"
        )


def _prepared(
    model: FaceModel, *, precision: str, channels_last: bool, fold: bool, keep: Collection[str], fuse: bool
) -> FaceModel:
    prepared = freeze(copy_of(model))
    split_activations(prepared.backbone)  # of a model that was prepared before: `keep` may name others now
    if model.precision != "bf16":
        prepared.backbone.to(torch.float32)
    if prepared.head is not None and any(p.dtype == torch.float64 for p in prepared.head.parameters()):
        prepared.head.to(torch.float32)
    if fold:
        prepared.backbone = fold_batch_norms(prepared.backbone, keep=keep, image_shape=model.image_shape)
    if channels_last and model.device.type == "cuda":
        fuse_depthwise(prepared.backbone, model.image_shape, keep=keep, activations=fold and fuse)
    # looked for in float32, before there are twins
    found = fusible_activations(prepared.backbone, keep=keep, image_shape=model.image_shape) if fold and fuse else ()
    prepared._fused = tuple(found)
    return _arranged(prepared, precision=precision, channels_last=channels_last)


def _arranged(prepared: FaceModel, *, precision: str, channels_last: bool) -> FaceModel:
    """In place: precision, twins, layout, and the activations that were found to be parts of convolutions."""
    if precision == "bf16":
        _cast(prepared.backbone, torch.bfloat16)
    _install_fast_backward(
        prepared.backbone,
        depthwise=precision == "bf16" and prepared.device.type == "cpu",
        prelu=has_kernel(prepared.device),
    )
    if channels_last:
        to_channels_last(prepared.backbone)
    fuse_activations(prepared.backbone, prepared._fused)
    prepared.precision = precision
    return prepared


def freeze(model: FaceModel) -> FaceModel:
    """Switch off the gradients of every parameter, in place, and drop those that were there.

    Args:
        model: any model.

    Returns:
        The same model.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return model


def _check_evaluating(model: FaceModel) -> None:
    for name, module in model.named_modules():
        if module.training:
            where = f"whose submodule {name!r} is" if name else "that is"
            raise ArgumentError(
                f"model: expected one in evaluation mode, got one {where} in training mode, where batch norm "
                "and dropout compute something else; call .eval()"
            )


def to_channels_last(backbone: nn.Module) -> None:
    """Store the weights of convolutions, and thereby compute, in channels-last layout, in place."""
    for parameter in backbone.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    for module in backbone.modules():
        if isinstance(module, FusedDepthwiseConv2d):
            module.arrange()


def _install_fast_backward(backbone: nn.Module, *, depthwise: bool, prelu: bool) -> None:
    """Replace layers by frozen twins with the same forward bits; hooked ones are left alone."""
    for name, module in list(backbone.named_modules(remove_duplicate=False)):
        twin: nn.Module
        if not name or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            continue
        if prelu and type(module) in (nn.PReLU, FrozenPReLU):  # a twin has the slopes of its former precision
            twin = FrozenPReLU(module)
        elif depthwise and type(module) is nn.Conv2d and max(module.stride) > 1 and is_depthwise(module):
            twin = FrozenDepthwiseConv2d(module)
        else:
            continue
        backbone.set_submodule(name, twin)


def _cast(backbone: nn.Module, dtype: torch.dtype) -> None:
    for module in backbone.modules():
        if isinstance(module, BATCH_NORMS):
            continue  # statistics rounded to 8 bits would shift every activation
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(dtype))
