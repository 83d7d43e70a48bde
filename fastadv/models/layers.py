"""Making a trained model fast to differentiate: folding of batch norms, freezing, layout and precision."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, fx, nn

from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.models.face_model import PRECISIONS, FaceModel
from fastadv.models.frozen_conv import FrozenDepthwiseConv2d, is_depthwise
from fastadv.models.frozen_prelu import FrozenPReLU
from fastadv.models.independence import check_independent
from fastadv.models.modes import plain_modes

# Exact types only: a subclass, or a layer with a parametrisation, may compute something else.
_FOLDS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: nn.BatchNorm2d, nn.Linear: nn.BatchNorm1d}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# A wrong fold is off by far more than this, and rounding by far less.
_PROBE_TOLERANCE = 1e-3


def prepare(model: FaceModel, *, precision: str = "fp32", channels_last: bool = True, fold: bool = True) -> FaceModel:
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

    Returns:
        The prepared copy.

    Raises:
        TypeError: if `model` is no `FaceModel`.
        ValueError: if the precision is unknown or not available on the model's device, if the model was
            already prepared in another precision, if any part of it is in training mode, or if what it says of
            an image depends on the other images of the batch or on chance (measured once for each model).
    """
    if not isinstance(model, FaceModel):
        raise ArgumentTypeError(f"model: expected a FaceModel, got {type(model).__name__}")
    if precision not in PRECISIONS:
        raise ArgumentError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "tf32" and model.device.type != "cuda":
        raise ArgumentError(
            f"precision: 'tf32' exists only on CUDA devices, the model is on {str(model.device)!r}; "
            "use 'fp32' or 'bf16'"
        )
    if model.precision == "bf16" and precision != "bf16":
        raise ArgumentError(
            f"model: {model.name!r} was already rounded to bf16; prepare the original for {precision!r}"
        )
    _check_evaluating(model)
    with plain_modes(model.device):
        prepared = _prepared(model, precision=precision, channels_last=channels_last, fold=fold)
        if not model._independent:
            check_independent(prepared)
            model._independent = prepared._independent = True
    return prepared


def _prepared(model: FaceModel, *, precision: str, channels_last: bool, fold: bool) -> FaceModel:
    prepared = freeze(copy.deepcopy(model))
    if model.precision != "bf16":
        prepared.backbone.to(torch.float32)
    if prepared.head is not None and any(p.dtype == torch.float64 for p in prepared.head.parameters()):
        prepared.head.to(torch.float32)
    if fold:
        prepared.backbone = fold_batch_norms(prepared.backbone, keep=prepared.layers, input_size=model.input_size)
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
    backbone: nn.Module, *, keep: Collection[str] = (), input_size: tuple[int, int] = (112, 112)
) -> nn.Module:
    """Merge batch norms in evaluation mode into the layers before them.

    `W' = W·γ/√(σ² + ε)` and `b' = β + (b - μ)·γ/√(σ² + ε)`, computed in float64; the batch norm becomes an
    identity. A pair is merged only where the data flow proves that nothing else sees the output between the
    two: the layer and the batch norm are each called once, the batch norm is the only reader, neither has
    hooks, and the layer is not in `keep`. The data flow is read from a symbolic trace; a backbone that cannot
    be traced is folded inside plain `nn.Sequential` parts, and the result is compared with the original on
    one image and given up where they differ.

    Args:
        backbone: changed in place, unless it is given up.
        keep: names of submodules whose outputs must stay what they are.
        input_size: height and width of the image for that comparison.

    Returns:
        The folded backbone.
    """
    pairs = _traced_pairs(backbone)
    if pairs is not None:
        for layer, norm in pairs:
            _fold_if_safe(backbone, layer, norm, keep)
        return backbone
    original = copy.deepcopy(backbone)
    for layer, norm in list(_sequential_pairs(backbone)):
        _fold_if_safe(backbone, layer, norm, keep)
    return backbone if _agree(original, backbone, input_size) else original


def _check_evaluating(model: FaceModel) -> None:
    for name, module in model.named_modules():
        if module.training:
            where = f"its submodule {name!r}" if name else "it"
            raise ArgumentError(
                f"model: {where} is in training mode, where batch norm and dropout compute something else; "
                "call .eval() first"
            )


class _Tracer(fx.Tracer):
    """Keeps torch's own layers whole, and does not look into functions that need values."""

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=True)


def _traced_pairs(backbone: nn.Module) -> list[tuple[nn.Module, nn.Module]] | None:
    """The (layer, batch norm) pairs of the data flow, or None where it cannot be traced."""
    try:
        graph = _Tracer().trace(backbone)
    except Exception:  # any code may run in there, and fail in any way on symbolic values
        return None
    modules = dict(backbone.named_modules())
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    # A weight that is read outside its layer must not change.
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or len(node.users) != 1:
            continue
        (user,) = node.users
        if user.op != "call_module" or user.args != (node,) or user.kwargs:
            continue
        layer, norm = modules[str(node.target)], modules[str(user.target)]
        once = calls[id(layer)] == 1 and calls[id(norm)] == 1
        if once and not read & {str(node.target), str(user.target)}:
            pairs.append((layer, norm))
    return pairs


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


def _fold_if_safe(backbone: nn.Module, layer: nn.Module, norm: nn.Module, keep: Collection[str]) -> None:
    if _FOLDS.get(type(layer)) is not type(norm):
        return
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    if norm.running_mean is None or norm.running_var is None:  # it normalises by the batch: no constant
        return
    if any(module._forward_hooks or module._forward_pre_hooks for module in (layer, norm)):
        return
    names = {id(module): name for name, module in backbone.named_modules()}
    if names[id(layer)] in keep:
        return
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if layer.bias is not None:
        shift = shift + layer.bias.detach().double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    weight = layer.weight.detach().double() * scale.view(-1, *(1,) * (layer.weight.dim() - 1))
    layer.weight = _frozen_like(weight, layer.weight)
    layer.bias = _frozen_like(shift, layer.weight)
    parent, _, child = names[id(norm)].rpartition(".")
    identity = nn.Identity()
    identity.train(norm.training)
    setattr(backbone.get_submodule(parent), child, identity)


def _frozen_like(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype), requires_grad=like.requires_grad)


def _agree(original: nn.Module, folded: nn.Module, input_size: tuple[int, int]) -> bool:
    parameter = next(original.parameters(), None)
    if parameter is None:
        return True
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn((1, 3, *input_size), generator=generator).to(parameter.device, parameter.dtype)
    with torch.no_grad():
        expected, got = original(probe), folded(probe)
    return bool((got - expected).norm() <= _PROBE_TOLERANCE * expected.norm())


def _to_channels_last(backbone: nn.Module) -> None:
    for parameter in backbone.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


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
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, twin)


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
