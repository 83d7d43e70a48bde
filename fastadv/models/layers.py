"""Making a trained model fast to differentiate: folding of batch norms, freezing, layout and precision."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fastadv.core.errors import ArgumentError
from fastadv.core.fields import check_one_of
from fastadv.models import dataflow
from fastadv.models.face_model import PRECISIONS, FaceModel, check_face_model, copy_of
from fastadv.models.frozen_conv import FrozenDepthwiseConv2d, is_depthwise
from fastadv.models.frozen_prelu import FrozenPReLU
from fastadv.models.fused_depthwise import FusedDepthwiseConv2d, fuse_depthwise
from fastadv.models.independence import check_independent
from fastadv.models.memory import is_out_of_memory
from fastadv.models.modes import plain_modes

# Exact types only: a subclass, or a layer with a parametrisation, may compute something else.
_FOLDS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: nn.BatchNorm2d, nn.Linear: nn.BatchNorm1d}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def prepare(
    model: FaceModel,
    *,
    precision: str = "fp32",
    channels_last: bool = True,
    fold: bool = True,
    fuse: bool = True,
) -> FaceModel:
    """A copy of the model that is ready to be attacked: frozen, folded, in the fastest layout and precision.

    The original is left as it is. The copy's parameters need no gradient, so a backward pass computes the
    gradient to the images only. Names of submodules are kept, so taps and `layers` go on working.

    Args:
        model: in evaluation mode.
        precision: "fp32"; "bf16", where the backbone computes in bfloat16, and images, batch norms that
            cannot be folded, and outputs stay float32; or "tf32", the float32 model with a mark that the
            engine reads (CUDA only).
        channels_last: store the weights, and thereby compute, in channels-last layout.
        fold: merge each batch norm into the convolution or linear layer before it. Turn it off for a
            surrogate that changes the output of a convolution *before* its batch norm (DFANet).
        fuse: on CUDA, and with `fold`, compute an activation in the kernel of the depthwise convolution before it,
            whose output is then the activated one. Turn it off for what reads the outputs of convolutions.

    Returns:
        The prepared copy.

    Raises:
        TypeError: if `model` is no `FaceModel`.
        ValueError: if the precision is unknown or not available on the model's device, if the model was
            already prepared in another precision, if any part of it is in training mode, or if what it says of
            an image depends on the other images of the batch or on chance (measured once for each model).
    """
    check_face_model(model)
    check_one_of("precision", precision, PRECISIONS)
    if precision == "tf32" and model.device.type != "cuda":
        raise ArgumentError(
            f"precision: expected a model on a CUDA device with 'tf32', got one on {str(model.device)!r}; "
            "use 'fp32' or 'bf16'"
        )
    if model.precision == "bf16" and precision != "bf16":
        raise ArgumentError(
            f"model: expected one that is not rounded for {precision!r}, got {model.name!r} in bf16; "
            "prepare the original"
        )
    _check_evaluating(model)
    with plain_modes(model.device):
        prepared = _prepared(model, precision=precision, channels_last=channels_last, fold=fold, fuse=fuse)
        if not model._independent:
            check_independent(prepared)
            model._independent = prepared._independent = True
    return prepared


def _prepared(model: FaceModel, *, precision: str, channels_last: bool, fold: bool, fuse: bool) -> FaceModel:
    prepared = freeze(copy_of(model))
    if model.precision != "bf16":
        prepared.backbone.to(torch.float32)
    if prepared.head is not None and any(p.dtype == torch.float64 for p in prepared.head.parameters()):
        prepared.head.to(torch.float32)
    if fold:
        prepared.backbone = fold_batch_norms(prepared.backbone, keep=prepared.layers, image_shape=model.image_shape)
    if channels_last and model.device.type == "cuda":
        fuse_depthwise(prepared.backbone, model.image_shape, keep=prepared.layers, activations=fold and fuse)
    if precision == "bf16":
        _cast(prepared.backbone, torch.bfloat16)
    if model.device.type == "cpu":
        _install_fast_backward(prepared.backbone, depthwise=precision == "bf16")
    if channels_last:
        _to_channels_last(prepared.backbone)
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


def fold_batch_norms(
    backbone: nn.Module, *, keep: Collection[str] = (), image_shape: tuple[int, int, int] = (3, 112, 112)
) -> nn.Module:
    """Merge batch norms in evaluation mode into the layers before them.

    `W' = W·γ/√(σ² + ε)` and `b' = β + (b - μ)·γ/√(σ² + ε)`, computed in float64; the batch norm becomes an
    identity. A pair is merged only where the data flow shows that nothing else sees the output between the
    two: the layer and the batch norm are each called once, the batch norm is the only reader, neither has
    hooks, and the layer is not in `keep`. The data flow is that of one forward pass. A backbone that branches on the
    values of its input may take another way for another image: it is folded inside plain `nn.Sequential` parts.
    The result is compared with the original on one image; where they differ, nothing is folded.

    Args:
        backbone: in evaluation mode; changed in place.
        keep: names of submodules whose outputs must stay what they are.
        image_shape: channels, height and width of the image for that pass and the comparison.

    Returns:
        The same backbone.
    """
    types = {type(module) for module in backbone.modules()}
    if not any(layer in types and norm in types for layer, norm in _FOLDS.items()):
        return backbone
    trial, probe = dataflow.copy_of(backbone), _probe(backbone, image_shape)
    try:
        pairs, expected = _pairs(trial, probe)
        names = {id(module): name for name, module in trial.named_modules()}
        safe = [(names[id(layer)], names[id(norm)]) for layer, norm in pairs if _is_safe(layer, norm)]
        folds = [_Fold.of(trial, layer, norm) for layer, norm in safe if layer not in keep]
        for fold in folds:
            fold.apply(trial)
        right = not folds or _computes(trial, probe, expected)
    except Exception as error:  # any code may run in there; who uses the backbone will see what it raises
        if is_out_of_memory(error):
            raise
        return backbone
    for fold in folds if right else ():
        fold.apply(backbone)
    return backbone


def _check_evaluating(model: FaceModel) -> None:
    for name, module in model.named_modules():
        if module.training:
            where = f"whose submodule {name!r} is" if name else "that is"
            raise ArgumentError(
                f"model: expected one in evaluation mode, got one {where} in training mode, where batch norm "
                "and dropout compute something else; call .eval()"
            )


def _probe(backbone: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    parameter = next(backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    return torch.randn((1, *image_shape), generator=generator, device="cpu").to(parameter.device, parameter.dtype)


def _pairs(backbone: nn.Module, probe: Tensor) -> tuple[list[tuple[nn.Module, nn.Module]], object]:
    """The (layer, batch norm) pairs that may be folded if nothing else forbids it, and what the backbone computes."""
    recording = dataflow.record(backbone, probe, is_layer=_is_torch_layer)
    if recording.reads_values:
        return list(_sequential_pairs(backbone)), recording.output
    return list(_recorded_pairs(backbone, recording.graph)), recording.output


def _is_torch_layer(module: nn.Module) -> bool:
    """Whether the module is torch's own: a subclass defined elsewhere may read what its kind does not."""
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, nn.Sequential)


def _recorded_pairs(backbone: nn.Module, graph: fx.Graph) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Layers whose only reader is a batch norm, both called once, in the order of the calls."""
    modules = dict(backbone.named_modules())
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    # A weight that is read outside its layer must not change.
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        if node.op != "call_module" or len(node.users) != 1:
            continue
        (user,) = node.users
        if user.op != "call_module" or user.args != (node,) or user.kwargs:
            continue
        names = {str(node.target), str(user.target)}
        if all(calls[name] == 1 for name in names) and not read & names:
            yield modules[str(node.target)], modules[str(user.target)]


def _sequential_pairs(backbone: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Neighbours in plain `nn.Sequential` containers, neither of which is registered twice."""
    places = Counter(id(module) for _, module in backbone.named_modules(remove_duplicate=False))
    for container in backbone.modules():
        if not isinstance(container, nn.Sequential) or type(container).forward is not nn.Sequential.forward:
            continue
        children = list(container)
        for layer, norm in itertools.pairwise(children):
            if places[id(layer)] == 1 and places[id(norm)] == 1:
                yield layer, norm


def _is_safe(layer: nn.Module, norm: nn.Module) -> bool:
    if _FOLDS.get(type(layer)) is not type(norm):
        return False
    if getattr(norm, "running_mean", None) is None or getattr(norm, "running_var", None) is None:
        return False  # it normalises by the batch: no constant
    return not any(module._forward_hooks or module._forward_pre_hooks for module in (layer, norm))


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """The layer and the batch norm of a network, by name, and what the layer's weights become."""

    layer: str
    norm: str
    weight: nn.Parameter
    bias: nn.Parameter

    @staticmethod
    def of(network: nn.Module, layer_name: str, norm_name: str) -> _Fold:
        layer, norm = network.get_submodule(layer_name), network.get_submodule(norm_name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        scale, shift = norm_affine(norm, None if layer.bias is None else layer.bias.detach())
        weight = layer.weight.detach().double() * scale.view(-1, *(1,) * (layer.weight.dim() - 1))
        new = (_frozen_like(value, layer.weight) for value in (weight, shift))
        return _Fold(layer=layer_name, norm=norm_name, weight=next(new), bias=next(new))

    def apply(self, network: nn.Module) -> None:
        layer, norm = network.get_submodule(self.layer), network.get_submodule(self.norm)
        layer.weight, layer.bias = self.weight, self.bias
        network.set_submodule(self.norm, nn.Identity().train(norm.training))


def norm_affine(norm: nn.BatchNorm1d | nn.BatchNorm2d, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The scale and shift ``(C,)`` float64 of an evaluating batch norm, on a value to which ``bias`` is added."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if bias is not None:
        shift = shift + bias.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def _frozen_like(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype), requires_grad=like.requires_grad)


def _computes(backbone: nn.Module, probe: Tensor, expected: object) -> bool:
    with torch.no_grad(), dataflow.exact(probe.device):
        return dataflow.agree(expected, backbone(probe))


def _to_channels_last(backbone: nn.Module) -> None:
    for parameter in backbone.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    for module in backbone.modules():
        if isinstance(module, FusedDepthwiseConv2d):
            module.arrange()


def _install_fast_backward(backbone: nn.Module, *, depthwise: bool) -> None:
    """Replace layers by frozen twins with the same forward bits; hooked ones are left alone."""
    for name, module in list(backbone.named_modules(remove_duplicate=False)):
        twin: nn.Module
        if not name or module._forward_hooks or module._forward_pre_hooks:
            continue
        if type(module) is nn.PReLU:
            twin = FrozenPReLU(module)
        elif depthwise and type(module) is nn.Conv2d and max(module.stride) > 1 and is_depthwise(module):
            twin = FrozenDepthwiseConv2d(module)
        else:
            continue
        backbone.set_submodule(name, twin)


def _cast(backbone: nn.Module, dtype: torch.dtype) -> None:
    for module in backbone.modules():
        if isinstance(module, _BATCH_NORMS):
            continue  # statistics rounded to 8 bits would shift every activation
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(dtype))
