"""Folding of batch norms into the layers before or behind them, where the data flow shows that it is right."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastadv.models import dataflow
from fastadv.models.frozen_conv import is_depthwise
from fastadv.models.hooks import Hook, hooked
from fastadv.models.memory import is_out_of_memory
from fastadv.models.untied_bias import UntiedBiasConv2d, pads_with_zeros

# Exact types only: a subclass, or a layer with a parametrisation, may compute something else.
_NORM_BEHIND: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: nn.BatchNorm2d, nn.Linear: nn.BatchNorm1d}
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation mode
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold_batch_norms(
    backbone: nn.Module, *, keep: Collection[str] = (), image_shape: tuple[int, int, int] = (3, 112, 112)
) -> nn.Module:
    """Merge batch norms in evaluation mode into the layers before them, or else into the layers behind them.

    A batch norm is `s x + t` with `s = γ/√(σ² + ε)` and `t = β - μ s`. The layer before it gets `W' = s W` and
    `b' = s b + t`. Where no convolution or linear layer is right before it, the layer behind it gets `W' = W s`, over
    the input channels, and `b' = b + W * t`. In a convolution that pads with zeros that bias depends on the position
    (`UntiedBiasConv2d`), and from then on the convolution takes only maps of the size that an image of `image_shape`
    gives it. Between a batch norm and the layer behind it there may be dropout, and before a linear layer
    `flatten(1)`. All is computed in float64; the batch norm becomes an identity.

    A pair is merged only where the data flow shows that nothing else reads the value between the two: the layer and
    the batch norm are each called once, the one behind is the only reader, neither has hooks, and nothing in `keep`
    outputs that value. The data flow is that of one forward pass. A backbone that branches on the values of its input
    may take another way for another image: it is folded inside plain `nn.Sequential` parts, into the layers before.
    The result is compared with the original on one image; where they differ, nothing is folded.

    Args:
        backbone: in evaluation mode; changed in place.
        keep: names of submodules whose outputs must stay what they are.
        image_shape: channels, height and width of the image for that pass and the comparison.

    Returns:
        The same backbone.
    """
    types = {type(module) for module in backbone.modules()}
    if types.isdisjoint(BATCH_NORMS) or types.isdisjoint(_NORM_BEHIND):
        return backbone
    trial, probe = dataflow.copy_of(backbone), probe_of(backbone, image_shape)
    try:
        recording, shapes = recorded(trial, probe, keep)
        folds = []
        for fold in _folds(trial, recording, shapes, set(keep)):
            fold.apply(trial)
            folds.append(fold)
        right = not folds or computes(trial, probe, recording.output)
    except Exception as error:  # any code may run in there; who uses the backbone will see what it raises
        if is_out_of_memory(error):
            raise
        return backbone
    for fold in folds if right else ():
        fold.apply(backbone)
    return backbone


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


def probe_of(backbone: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """An image of noise ``(1, C, H, W)`` of the type and on the device of the parameters."""
    parameter = next(backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    return torch.randn((1, *image_shape), generator=generator, device="cpu").to(parameter.device, parameter.dtype)


def computes(backbone: nn.Module, probe: Tensor, expected: object) -> bool:
    """Whether it gives what is expected for an image, but for rounding."""
    with torch.no_grad(), dataflow.exact(probe.device):
        return dataflow.agree(expected, backbone(probe))


# -- the data flow --


def recorded(
    trial: nn.Module, probe: Tensor, keep: Collection[str], *, is_layer: dataflow.IsLayer | None = None
) -> tuple[dataflow.Recording, dict[str, torch.Size]]:
    """What one forward pass does, and the shapes of what batch norms read, by name; the layers are torch's own.

    What a module reads or gives that is made of others counts as read once more if it has hooks or is in `keep`.
    """
    is_layer = is_layer or is_torch_layer
    shapes: dict[str, torch.Size] = {}
    before: list[tuple[nn.Module, Hook]] = []
    after: list[tuple[nn.Module, Hook]] = []
    for name, module in trial.named_modules():
        if isinstance(module, BATCH_NORMS):
            before.append((module, _noting(shapes, name)))
        if is_layer(module):
            continue
        if module._forward_pre_hooks:
            before.append((module, _reading))
        if module._forward_hooks or name in keep:
            after.append((module, _reading))
    with hooked(after, before):
        return dataflow.record(trial, probe, is_layer=is_layer), shapes


def _noting(shapes: dict[str, torch.Size], name: str) -> Hook:
    def note(module: nn.Module, args: Any) -> None:
        if args:
            shapes[name] = args[0].shape

    return note


def _reading(module: nn.Module, *values: Any) -> None:
    for tensor in dataflow.tensors(values[-1]):
        _ = tensor.shape  # noted as a reader


def is_torch_layer(module: nn.Module) -> bool:
    """Whether the module is torch's own: a subclass defined elsewhere may read what its kind does not."""
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.")) and not isinstance(module, nn.Sequential)


def _folds(
    trial: nn.Module, recording: dataflow.Recording, shapes: dict[str, torch.Size], keep: set[str]
) -> Iterator[_Fold]:
    """What may be folded; each is to be applied to the network before the next is asked for."""
    walked = recording.reads_values
    for layer, norm in list(_sequential_pairs(trial) if walked else _recorded_pairs(trial, recording.graph)):
        if layer not in keep and _are_plain(trial, norm, layer):
            yield _Fold.into_layer_before(trial, layer, norm)
    for norm, *between, layer in [] if walked else list(_paths(trial, recording.graph, shapes)):
        if keep.isdisjoint((norm, *between)) and _are_plain(trial, norm, *between, layer):
            yield _Fold.into_layer_behind(trial, norm, layer, shapes[norm])


def _are_plain(network: nn.Module, norm: str, *others: str) -> bool:
    """Whether the batch norm does not normalise by the batch, and nothing has hooks."""
    modules = [network.get_submodule(name) for name in (norm, *others)]
    if getattr(modules[0], "running_mean", None) is None or getattr(modules[0], "running_var", None) is None:
        return False
    return not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def called_once(graph: fx.Graph) -> set[str]:
    """The layers that are called once, and whose weights nothing else reads."""
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    return {name for name, count in calls.items() if count == 1} - read


def only_reader(node: fx.Node) -> fx.Node | None:
    """The layer, or the flattening, that alone reads a value, and reads nothing else."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    layer = user.op == "call_module" and user.args == (node,) and not user.kwargs
    return user if layer or _is_flatten(user) else None


def _is_flatten(node: fx.Node) -> bool:
    """Whether it is the function or method that makes `(N, D)` of every shape."""
    if node.op == "call_module" or node.target not in ("flatten", torch.flatten):
        return False
    return (node.args[1:], dict(node.kwargs)) in (((1,), {}), ((), {"start_dim": 1}))


def _recorded_pairs(backbone: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, str]]:
    """Layers whose only reader is a batch norm, both called once, in the order of the calls."""
    modules, once = dict(backbone.named_modules()), called_once(graph)
    for node in graph.nodes:
        reader = only_reader(node)
        if node.op != "call_module" or reader is None or reader.op != "call_module":
            continue
        layer, norm = str(node.target), str(reader.target)
        if {layer, norm} <= once and _NORM_BEHIND.get(type(modules[layer])) is type(modules[norm]):
            yield layer, norm


def _sequential_pairs(backbone: nn.Module) -> Iterator[tuple[str, str]]:
    """Such neighbours in plain `nn.Sequential` containers, neither of which is registered twice."""
    names = {id(module): name for name, module in backbone.named_modules()}
    places = Counter(id(module) for _, module in backbone.named_modules(remove_duplicate=False))
    for container in backbone.modules():
        if not isinstance(container, nn.Sequential) or type(container).forward is not nn.Sequential.forward:
            continue
        for layer, norm in itertools.pairwise(container):
            alone = places[id(layer)] == places[id(norm)] == 1
            if alone and _NORM_BEHIND.get(type(layer)) is type(norm):
                yield names[id(layer)], names[id(norm)]


def _paths(backbone: nn.Module, graph: fx.Graph, shapes: dict[str, torch.Size]) -> Iterator[list[str]]:
    """The modules from each batch norm that is not right behind a layer to the layer that alone reads its values."""
    modules, once = dict(backbone.named_modules()), called_once(graph)

    def kind(node: fx.Node) -> type[nn.Module] | None:
        return type(modules[str(node.target)]) if node.op == "call_module" else None

    for start in graph.nodes:
        if kind(start) not in BATCH_NORMS or any(kind(source) in _NORM_BEHIND for source in start.all_input_nodes):
            continue
        path, flat = [start], False
        while (reader := only_reader(path[-1])) is not None:
            path.append(reader)
            module = modules.get(str(reader.target))
            flattens = _is_flatten(reader) or _flattens(module)
            flat = flat or flattens
            if not flattens and type(module) not in _IDLE:
                break
        names = [str(node.target) for node in path if node.op == "call_module"]
        shape = shapes.get(names[0])
        if shape is not None and once.issuperset(names) and _takes(modules[names[-1]], shape, flat=flat):
            yield names


def _flattens(module: nn.Module | None) -> bool:
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def _takes(layer: nn.Module, shape: torch.Size, *, flat: bool) -> bool:
    """Whether a batch norm of a shape can be folded into a layer that reads its values, flattened or not."""
    if type(layer) is nn.Linear:
        return flat or len(shape) == 2
    if type(layer) is not nn.Conv2d or flat or len(shape) != 4:
        return False
    # a depthwise one with a stride is to get its own twin
    return not (pads_with_zeros(layer) and is_depthwise(layer) and max(layer.stride) > 1)


# -- the weights --


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """The layer and the batch norm of a network, by name, and what the layer's weights become.

    With an `input_size` the bias is untied, and the layer takes maps of that size only.
    """

    layer: str
    norm: str
    weight: nn.Parameter
    bias: nn.Parameter
    input_size: tuple[int, int] | None = None

    @staticmethod
    def into_layer_before(network: nn.Module, layer_name: str, norm_name: str) -> _Fold:
        layer, norm = network.get_submodule(layer_name), network.get_submodule(norm_name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        scale, shift = norm_affine(norm, None if layer.bias is None else layer.bias.detach())
        weight = layer.weight.detach().double() * scale.view(-1, *(1,) * (layer.weight.dim() - 1))
        new = (_frozen_like(value, layer.weight) for value in (weight, shift))
        return _Fold(layer=layer_name, norm=norm_name, weight=next(new), bias=next(new))

    @staticmethod
    def into_layer_behind(network: nn.Module, norm_name: str, layer_name: str, shape: torch.Size) -> _Fold:
        layer, norm = network.get_submodule(layer_name), network.get_submodule(norm_name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        scale, shift = norm_affine(norm)
        weight = layer.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
        size: tuple[int, int] | None = None
        if isinstance(layer, nn.Linear):
            positions = layer.in_features // len(scale)
            scale, shift = (value.repeat_interleave(positions) for value in (scale, shift))
            bias = bias + weight @ shift
        else:
            scale, shift = (_per_filter(value, layer) for value in (scale, shift))
            taps = (weight * shift).sum(1, keepdim=True)
            if pads_with_zeros(layer):
                size = (shape[2], shape[3])
                ones = F.pad(taps.new_ones(1, 1, *size), layer._reversed_padding_repeated_twice)
                bias = F.conv2d(ones, taps, bias, layer.stride, dilation=layer.dilation)
            else:
                bias = bias + taps.sum((1, 2, 3))
        new = (_frozen_like(value, layer.weight) for value in (weight * scale, bias))
        return _Fold(layer=layer_name, norm=norm_name, weight=next(new), bias=next(new), input_size=size)

    def apply(self, network: nn.Module) -> None:
        layer, norm = network.get_submodule(self.layer), network.get_submodule(self.norm)
        layer.weight = self.weight
        if self.input_size is None:
            layer.bias = self.bias
        else:
            assert isinstance(layer, nn.Conv2d)
            replace_module(network, layer, UntiedBiasConv2d(layer, self.bias, input_size=self.input_size))
        replace_module(network, norm, nn.Identity().train(norm.training))


def _per_filter(values: Tensor, layer: nn.Conv2d) -> Tensor:
    """Values of the input channels as `(C_out, C_in / groups, 1, 1)`: those that each filter reads."""
    grouped = values.view(layer.groups, 1, -1, 1, 1)
    return grouped.expand(-1, layer.out_channels // layer.groups, -1, -1, -1).flatten(0, 1)


def replace_module(network: nn.Module, module: nn.Module, other: nn.Module) -> None:
    """Put another module in the place of one, under all of its names."""
    for name, found in list(network.named_modules(remove_duplicate=False)):
        if found is module:
            network.set_submodule(name, other)


def _frozen_like(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype), requires_grad=like.requires_grad)
