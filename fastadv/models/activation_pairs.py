"""Convolutions whose output an activation alone reads, by the recorded data flow of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from fastadv.models.folding import called_once, is_torch_layer, only_reader, recorded
from fastadv.models.frozen_activation import FrozenPReLU

# Exact types only: a subclass may compute something else.
_ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, FrozenPReLU)
# What may give the memory that it reads.
_ALIASES = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    nn.modules.dropout._DropoutNd,
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A convolution and the activation behind it, by name.

    Attributes:
        convolution: called once.
        activation: called once; it alone reads the convolution's output, directly or through identities.
        unchanged: whether known layers alone read the result, none of which changes it in place.
        for_convolution: whether one known convolution alone reads it, and nothing asks for it.
    """

    convolution: str
    activation: str
    unchanged: bool
    for_convolution: bool


def activation_pairs(backbone: nn.Module, probe: Tensor, *, keep: Collection[str]) -> tuple[list[Pair], object]:
    """The pairs of a network, whose modules have one name each, no hooks and no forward pass of their own.

    Beside them, what the network gives for the image.

    Args:
        backbone: in evaluation mode, and the caller's own, as for :func:`fastadv.models.dataflow.record`.
        probe: the image of the forward pass. A network that branches on values has no pairs.
        keep: names of submodules whose outputs are asked for: an activation may be among them, a convolution not.

    Raises:
        Exception: whatever the network raises.
    """
    recording, _ = recorded(backbone, probe, keep, is_layer=_is_layer)
    if recording.reads_values:
        return [], recording.output
    modules = dict(backbone.named_modules(remove_duplicate=False))
    places = Counter(map(id, modules.values()))
    once = called_once(recording.graph)
    plain = {name for name in once if places[id(modules[name])] == 1 and not _is_special(modules[name])}

    def kind(node: fx.Node | None) -> type[nn.Module]:
        return type(modules[str(node.target)]) if node is not None and node.op == "call_module" else nn.Module

    def reader(node: fx.Node) -> fx.Node | None:
        """The layer that alone reads a value that nothing asks for, through identities."""
        found = None if str(node.target) in keep else only_reader(node)
        if found is None or str(found.target) not in plain:
            return None
        return reader(found) if kind(found) is nn.Identity else found

    pairs = []
    for node in recording.graph.nodes:
        if not issubclass(kind(node), nn.Conv2d) or str(node.target) not in plain:
            continue
        activation = reader(node)
        if activation is None or kind(activation) not in _ACTIVATIONS:
            continue
        behind = kind(reader(activation))
        pairs.append(
            Pair(
                convolution=str(node.target),
                activation=str(activation.target),
                unchanged=is_unchanged(activation, modules),
                for_convolution=issubclass(behind, nn.Conv2d) and is_known(behind),
            )
        )
    return pairs, recording.output


def is_unchanged(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether known layers alone read what a node makes, and none of them changes it in place."""
    for user in node.users:
        layer = modules.get(str(user.target)) if user.op == "call_module" else None
        if layer is None or not is_known(type(layer)) or getattr(layer, "inplace", False):
            return False
        if isinstance(layer, _ALIASES) and not is_unchanged(user, modules):
            return False
    return True


def is_known(kind: type[nn.Module]) -> bool:
    """Whether a layer is torch's or ours: others may change what they read, or hand on a gradient as it is."""
    return kind.__module__.startswith(("torch.nn.modules.", "fastadv.models."))


def _is_layer(module: nn.Module) -> bool:
    return is_torch_layer(module) or isinstance(module, (nn.Conv2d, nn.PReLU))


def _is_special(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in vars(module)
