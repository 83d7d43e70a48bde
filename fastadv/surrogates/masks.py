"""Masks behind the convolutions of a frozen network, fused with the batch norm and activation that follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from fastadv import ops
from fastadv.models import FaceModel
from fastadv.models.activation_pairs import is_unchanged
from fastadv.models.folding import norm_affine
from fastadv.models.frozen_activation import FrozenPReLU
from fastadv.models.frozen_conv import FrozenDepthwiseConv2d
from fastadv.models.fused_depthwise import FusedDepthwiseConv2d
from fastadv.models.untied_bias import UntiedBiasConv2d
from fastadv.ops.random_key import BatchKey
from fastadv.surrogates import flow
from fastadv.surrogates.key import StepKey

# Exact types only: a subclass may compute something else.
_ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.PReLU, FrozenPReLU)
_CONVOLUTIONS: tuple[type[nn.Module], ...] = (
    *(nn.Conv2d, UntiedBiasConv2d),
    *(FrozenDepthwiseConv2d, FusedDepthwiseConv2d),
)


class Draw:
    """Holds the key of the evaluation that is running; one for all masks of a model."""

    def __init__(self) -> None:
        self.key: BatchKey | None = None

    def begin(self, key: StepKey) -> None:
        """Let the masks draw from a key.

        Raises:
            TypeError, ValueError: It is not the key of a batch.
        """
        self.key = BatchKey(key.seed, key.ids, key.ticks)

    def end(self) -> None:
        """Forget it."""
        self.key = None


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedForward:
    """The ``forward`` of a convolution with a fresh mask on its output, and with what is fused with it.

    In place of a hook, which sends a call of the module through the slow half of ``nn.Module.__call__``: 1 % of a tick
    of a network of many small layers.
    """

    forward: Callable[[Tensor], Tensor]
    draw: Draw
    operation: ops.PreparedDropout

    def __call__(self, x: Tensor) -> Tensor:
        """The masked output ``(N, C, H, W)``."""
        key = self.draw.key
        if key is None:
            raise RuntimeError("the masks need a key: call the MaskedModel, not the model inside it")
        output = self.forward(x)
        if output.shape[0] == 1 != key.count:
            # A constant that is added to every image, such as a table of positions: each image masks its own.
            output = output.expand(key.count, *output.shape[1:])
        return self.operation.keyed(output, key)


def install(model: FaceModel, draw: Draw, *, rate: float, rescale: bool, first_layer: int) -> int:
    """Put a mask behind every ``nn.Conv2d`` of a prepared model's backbone, in place.

    A batch norm and an activation that alone read the convolution become part of the mask's operation and an identity.

    Args:
        model: Prepared without folding its convolutions.
        draw: Where the masks read the key.
        rate: Share of the elements that is dropped.
        rescale: Multiply what is kept by 1 / (1 - rate).
        first_layer: The Philox layer of the first convolution, in the order of ``backbone.modules()``.

    Returns:
        The number of masks.
    """
    backbone = model.backbone
    behind = _fusible(model)
    layers = [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d)]
    for i, (name, convolution) in enumerate(layers):
        follows = behind.get(name, _Follows())
        tail = [backbone.get_submodule(other) for other in follows.fused]
        operation = ops.PreparedDropout(
            rate=rate,
            rescale=rescale,
            layer=first_layer + i,
            # a convolution keeps nothing of its output, unless an activation is fused with it, and makes the gradient
            # of its input for one reader
            overwrite_map=type(convolution) in _CONVOLUTIONS and getattr(convolution, "activation", None) is None,
            overwrite_gradient=follows.convolution_only,
            **(_parameters(convolution, tail, unchanged=follows.unchanged) if tail else {}),
        )
        for other in follows.fused:
            backbone.set_submodule(other, nn.Identity().eval())
        masked = MaskedForward(forward=convolution.forward, draw=draw, operation=operation)
        convolution.forward = masked  # type: ignore[assignment, method-assign]
    return len(layers)


@dataclass(frozen=True, kw_only=True)
class _Follows:
    """What follows a convolution.

    Attributes:
        fused: the names of the batch norm, the activation, or both, that can be fused with it.
        convolution_only: whether the result of these is read by one convolution and by nothing else.
        unchanged: whether layers alone read it, none of which changes it in place.
    """

    fused: tuple[str, ...] = ()
    convolution_only: bool = False
    unchanged: bool = False


def _fusible(model: FaceModel) -> dict[str, _Follows]:
    """What follows each convolution, by its name."""
    backbone = model.backbone
    graph = flow.trace_model(model)
    if graph is None:
        return {}
    modules = dict(backbone.named_modules(remove_duplicate=False))
    places = Counter(id(module) for module in modules.values())
    called = flow.calls(backbone, graph)

    def reader(node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> fx.Node | None:
        """The only reader of a value, if it is such a layer, called once, of one name and without hooks."""
        if len(node.users) != 1 or str(node.target) in model.layers:  # a tap must see what it saw
            return None
        (user,) = node.users
        if user.op != "call_module" or user.args != (node,) or user.kwargs:
            return None
        layer = modules[str(user.target)]
        once = called[id(layer)] == places[id(layer)] == 1
        hooked = layer._forward_hooks or layer._forward_pre_hooks
        return user if type(layer) in kinds and once and not hooked else None

    found: dict[str, _Follows] = {}
    for node in graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, nn.Conv2d) or called[id(layer)] != 1:
            continue
        norm = reader(node, (nn.BatchNorm2d,))
        if norm is not None and modules[str(norm.target)].running_mean is None:  # it normalises by the batch
            continue
        activation = reader(norm or node, _ACTIVATIONS)
        fused = [n for n in (norm, activation) if n is not None]
        last = fused[-1] if fused else node
        found[str(node.target)] = _Follows(
            fused=tuple(str(n.target) for n in fused),
            convolution_only=reader(last, _CONVOLUTIONS) is not None,
            unchanged=is_unchanged(last, modules),
        )
    return found


def _parameters(convolution: nn.Conv2d, layers: list[nn.Module], *, unchanged: bool) -> dict[str, Any]:
    """What follows a mask: ``min(prelu(scale * o + shift), ceiling)`` per channel.

    The derivative is made from the result, which the next layer mostly keeps anyway; of a PReLU only where the network
    leaves its result `unchanged` and no slope is negative, else from the input.
    """
    channels = convolution.out_channels
    scale = torch.ones(channels, dtype=torch.float64, device=convolution.weight.device)
    shift = torch.zeros_like(scale)
    slope: float | Tensor | None = None
    ceiling = None
    keep: Literal["input", "result"] = "input"
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            scale, shift = norm_affine(layer)
        elif isinstance(layer, nn.PReLU):
            slope = layer.weight.detach().float()
            keep = "result" if unchanged and not bool((slope < 0).any()) else "input"
        else:
            slope, ceiling, keep = 0.0, 6.0 if isinstance(layer, nn.ReLU6) else None, "result"
    return {"scale": scale.float(), "shift": shift.float(), "slope": slope, "ceiling": ceiling, "keep": keep}
