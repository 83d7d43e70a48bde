"""The data flow of a network, as a graph that can be run: its layers, its residual branches."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fastadv.models import FaceModel, dataflow
from fastadv.models.memory import is_out_of_memory

_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _is_layer(module: nn.Module) -> bool:
    """Torch's layers and their subclasses, and those of ours that are one."""
    return isinstance(module, dataflow.Whole) or any(
        kind.__module__.startswith("torch.nn.modules") and kind not in _CONTAINERS for kind in type(module).__mro__
    )


def trace(backbone: nn.Module, probe: Tensor, *, gradients: bool = False) -> fx.Graph | None:
    """The graph of the backbone, with torch's layers (and their subclasses) as single nodes.

    It is recorded in one forward pass, and compared with the backbone on other images and another number of them: a
    network that looks at values, or at the number of images in a way that torch does not show, has no graph.

    Args:
        backbone: In evaluation mode; not changed.
        probe: ``(N, 3, H, W)`` of the type, size and device that the backbone takes.
        gradients: Compare the gradients to the images too, for a graph that takes the backbone's place.

    Returns:
        The graph, or None where no graph computes what the backbone does.
    """
    private = dataflow.copy_of(backbone)
    try:
        recording = dataflow.record(private, probe, is_layer=_is_layer, symbolic=True)
    except Exception as error:  # any code may run in there, and may fail on what it is given
        if is_out_of_memory(error):
            raise
        return None
    if recording.reads_values or not recording.complete:
        return None
    draw = torch.Generator().manual_seed(0)
    others = torch.randn((len(probe) + 1, *probe.shape[1:]), generator=draw, device="cpu").to(probe.device, probe.dtype)
    right = dataflow.stands_for(recording.graph, private, others, gradients=gradients)
    return recording.graph if right else None


def trace_model(model: FaceModel, *, gradients: bool = False) -> fx.Graph | None:
    """The graph of a model's backbone, on a grey image; see :func:`trace`."""
    probe = torch.full((1, *model.image_shape), 0.5, device=model.device, dtype=model.dtype)
    return trace(model.backbone, probe, gradients=gradients)


def calls(backbone: nn.Module, graph: fx.Graph) -> Counter[int]:
    """How often each layer is called, by its ``id``; reading a weight from outside counts as a call."""
    modules = dict(backbone.named_modules(remove_duplicate=False))
    found = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        if node.op == "get_attr":
            owner = modules.get(str(node.target).rpartition(".")[0])
            found[id(owner)] += 1
    return found


@dataclass(frozen=True, kw_only=True)
class Residual:
    """A sum of a shortcut and a residual branch, which start from one value.

    Attributes:
        total: The node of the sum.
        branch: Which of its operands is the end of the branch.
        inside: The nodes of the branch and of the shortcut, without the value they start from.
    """

    total: fx.Node
    branch: fx.Node
    inside: frozenset[fx.Node]


_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


def residuals(backbone: nn.Module, graph: fx.Graph) -> list[Residual]:
    """The residual blocks ``shortcut(x) + branch(x)`` of a graph, in the order of their sums.

    Of the two operands of a sum, the shortcut is ``x`` itself, or else the one with fewer convolutions and linear
    layers; a branch has at least one. ``x`` is the last value that both depend on alone. Sums of equal sides, of parts
    of a split value, and of constants are no residual blocks.

    Args:
        backbone: The network of the graph.
        graph: Of :func:`trace`.
    """
    modules = dict(backbone.named_modules(remove_duplicate=False))
    parents = _immediate_dominators(graph)
    found = []
    for node in graph.nodes:
        operands = [a for a in node.args if isinstance(a, fx.Node) and a in parents]
        if node.target not in _ADDITIONS or len(operands) != 2 or operands[0] is operands[1] or node not in parents:
            continue
        start = parents[node]
        assert start is not None
        sides = [_between(start, operand) for operand in operands]
        weights = [sum(_has_weights(modules, inner) for inner in side) for side in sides]
        shortcut, branch = sorted((0, 1), key=lambda i: (operands[i] is not start, weights[i]))
        if weights[shortcut] >= weights[branch] or any(inner.target is operator.getitem for inner in sides[shortcut]):
            continue
        inside = frozenset(sides[shortcut] | sides[branch])
        found.append(Residual(total=node, branch=operands[branch], inside=inside))
    return found


def _immediate_dominators(graph: fx.Graph) -> dict[fx.Node, fx.Node | None]:
    """For every node that depends on the input, the last other one that all of its paths from there pass."""
    parents: dict[fx.Node, fx.Node | None] = {}
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            parents[node], depth[node] = None, 0
            continue
        sources = [source for source in node.all_input_nodes if source in parents]
        if not sources:
            continue
        common = sources[0]
        for other in sources[1:]:
            while common is not other:
                deeper = common if depth[common] >= depth[other] else other
                above = parents[deeper]
                assert above is not None  # the input is the root of all
                common, other = (above, other) if deeper is common else (common, above)
        parents[node], depth[node] = common, depth[common] + 1
    return parents


def _between(start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The nodes after `start` that `end` depends on, and `end`; none where they are the same."""
    found: set[fx.Node] = set()
    open_ends = [end]
    while open_ends:
        node = open_ends.pop()
        if node is not start and node not in found:
            found.add(node)
            open_ends.extend(node.all_input_nodes)
    return found


def _has_weights(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    if node.op != "call_module":
        return node.target in (nn.functional.linear, nn.functional.conv2d, torch.conv2d)
    return isinstance(modules[str(node.target)], nn.Linear | nn.Conv2d)
