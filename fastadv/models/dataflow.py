"""The data flow of a network, recorded in one forward pass. What other threads run in the meantime is left alone."""

from __future__ import annotations

import copy
import linecache
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from fastadv.models.float32_math import float32_math
from fastadv.models.lengths import Length, plain
from fastadv.models.memory import is_out_of_memory

IsLayer = Callable[[nn.Module], bool]

# Rounding is off by far less than this, and another function by far more.
_TOLERANCE = 1e-3
_UNITS = 16  # of a 16-bit type's rounding unit, where that is more
# Functions that tell of a tensor what does not hang on its values.
_LENGTHS = frozenset({"size", "dim", "ndimension", "numel", "nelement", "stride"})
_METADATA = _LENGTHS | {
    *("__len__", "__repr__", "__format__", "__hash__", "can_cast", "element_size", "get_device", "is_complex"),
    *("is_contiguous", "is_floating_point", "is_inference", "is_same_size", "is_signed", "result_type"),
    *("storage_offset", "type"),
}
# Functions that a reader of the graph may look for, as they are; fx can write them into the code of a graph.
_KNOWN = frozenset({torch.add, torch.conv2d, torch.flatten, F.linear, torch._C._set_grad_enabled})
_PLAIN = (bool, int, float, complex, str, type(None), type(Ellipsis), torch.memory_format, torch.layout)


class Whole(nn.Module):
    """A module that the data flow shows as one layer, though torch does not know it."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a forward pass did.

    Attributes:
        graph: Every layer that was called, every function of torch outside of them, and what reads what.
        output: What the pass returned.
        reads_values: Whether the network looked at values that depend on its input, as a branch does: for other images
            it may do something else.
        complete: Whether the graph holds every argument.
    """

    graph: fx.Graph
    output: Any
    reads_values: bool
    complete: bool


def copy_of(network: nn.Module) -> nn.Module:
    """A copy that shares the parameters, and has modules, buffers and attributes of its own; nothing is compiled."""
    made = copy.deepcopy(network, {id(value): value for value in network.parameters()})
    for module in made.modules():
        inner = getattr(module, "_orig_mod", None)  # of torch.compile, which would compile what records
        if isinstance(inner, nn.Module):
            module.forward = inner.__call__
    return made


def record(network: nn.Module, probe: Tensor, *, is_layer: IsLayer, symbolic: bool = False) -> Recording:
    """Run a network once, and note what it calls.

    Functions are seen by a ``TorchFunctionMode``, which is one thread's, and layers by hooks, which are taken away.

    Args:
        network: In evaluation mode, and the caller's own: another thread must not run it meanwhile (:func:`copy_of`).
        probe: Its input.
        is_layer: Which modules are noted as one node; the network itself is not asked about.
        symbolic: Note the lengths of axes, and dtypes and devices, as nodes too, so that the graph can be run on other
            batches. The network computes with integers that know where they come from.

    Raises:
        Exception: Whatever the network raises.
    """
    recorder = _Recorder(network, symbolic=symbolic)
    try:
        for name, module in network.named_modules():
            if name and is_layer(module):
                recorder.watch(module, name)
        with torch.set_grad_enabled(symbolic), exact(probe.device):
            return recorder.run(network, probe)
    finally:
        recorder.close()


class GraphModule(fx.GraphModule):
    """A network of a graph that leaves no source behind: torch.fx keeps that of every one, and of every copy."""

    def recompile(self) -> Any:
        made = super().recompile()
        file = type(self).forward.__code__.co_filename
        linecache.cache.pop(file, None)
        getattr(getattr(fx.graph_module, "_loader", None), "eval_cache", {}).pop(file, None)
        return made


def stands_for(graph: fx.Graph, network: nn.Module, probe: Tensor, *, gradients: bool) -> bool:
    """Whether a recorded graph computes what its network does, on other images, and another number of them.

    Args:
        graph: Of :func:`record`, with ``symbolic``.
        network: The network.
        probe: An input like the recorded one, of another batch size and values.
        gradients: Compare the gradients to the input too.
    """
    results = []
    try:
        made = GraphModule(network, copy.deepcopy(graph))  # a module keeps the graph it is made of
        with torch.set_grad_enabled(gradients), exact(probe.device):
            for function in (network, made):
                x = probe.clone().requires_grad_(gradients)
                output = function(x)
                result = [output.detach()]
                if gradients:
                    draw = torch.Generator().manual_seed(1)
                    weights = torch.randn(output.shape, generator=draw, device="cpu").to(output.device, output.dtype)
                    result += torch.autograd.grad((output * weights).sum(), x)
                results.append(result)
    except Exception as error:  # any code may run in there; where only the graph fails, it does not stand for it
        if is_out_of_memory(error):
            raise
        return False
    return agree(*results)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Products in the types of the network, whatever the caller's autocast or TF32."""
    with torch.autocast(device.type, enabled=False), float32_math(device, tf32=False):
        yield


def agree(expected: Any, got: Any) -> bool:
    """Whether the tensors in two results are the same but for rounding."""
    pairs = list(zip(tensors(expected), tensors(got), strict=False))
    if len(pairs) != len(list(tensors(expected))) or len(pairs) != len(list(tensors(got))):
        return False
    for one, other in pairs:
        if one.shape != other.shape:
            return False
        precise = not one.is_floating_point() or torch.finfo(one.dtype).bits > 16
        tolerance = _TOLERANCE if precise else max(_TOLERANCE, _UNITS * torch.finfo(one.dtype).eps)
        if not bool((other.double() - one.double()).norm() <= tolerance * one.double().norm()):
            return False
    return True


class _Recorder(TorchFunctionMode):
    """Builds the graph of one forward pass of a network that nobody else has."""

    def __init__(self, network: nn.Module, *, symbolic: bool) -> None:
        super().__init__()
        self._graph = fx.Graph()
        self._symbolic = symbolic
        self._names = {id(value): name for name, value in (*network.named_parameters(), *network.named_buffers())}
        self._nodes: dict[int, Callable[[], fx.Node]] = {}  # of tensors, by id
        self._kept: list[Any] = list(network.buffers())  # as long as they live, their ids are theirs
        self._kinds: dict[torch.dtype | torch.device, Callable[[], fx.Node]] = {}
        self._of_input: set[fx.Node] = set()
        self._calls: list[tuple[Any, Any] | None] = []  # of layers that are running; None inside of another one
        self._own: set[int] = set()  # what the running layer may read
        self._reads_values = False
        self._complete = True
        self._hooks: list[RemovableHandle] = []
        self.open = False

    def close(self) -> None:
        """Take the hooks away, and forget the tensors: lengths may live on in a cache of the network."""
        self.open = False
        for hook in self._hooks:
            hook.remove()
        self._nodes, self._kept, self._kinds, self._graph = {}, [], {}, fx.Graph()

    def run(self, network: nn.Module, probe: Tensor) -> Recording:
        start = self._graph.placeholder("x")
        self._of_input.add(start)
        self._name(probe, _known(start))
        self.open = True
        with self:
            output = network(probe)
        self._graph.output(self._argument(output))
        return Recording(graph=self._graph, output=output, reads_values=self._reads_values, complete=self._complete)

    # -- layers --

    def watch(self, layer: nn.Module, name: str) -> None:
        """Note the calls of a layer, with all that happens in it, as one node."""

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._calls:
                self._calls.append(None)
                return
            self._calls.append((self._argument(args), self._argument(kwargs)))
            inputs = (id(value) for value in tensors((args, kwargs)))
            self._own = {*inputs, *map(id, module.parameters()), *map(id, module.buffers())}

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            call = self._calls.pop()
            if call is not None:
                node = self._graph.call_module(name, *call)
                self._note_origin(node)
                self._name(output, _known(node))

        self._hooks.append(layer.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
        self._hooks.append(layer.register_forward_hook(after, with_kwargs=True))

    # -- functions --

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._calls:
            self._read_inside(args, kwargs)
            return func(*args, **kwargs)
        noted = self._argument(args), self._argument(kwargs)  # before a function may overwrite them
        result = func(*plain(args), **plain(kwargs))
        name = getattr(func, "__name__", "")
        node = self._function(func, name, noted[0], noted[1], args)
        self._note_origin(node)
        if name == "__setitem__":
            self._name(args[0], _known(node))
        metadata = name == "__get__" or name in _METADATA
        if not metadata and node in self._of_input and _is_value(result):
            self._reads_values = True
        self._name(result, _known(node))
        if self._symbolic and (name == "__get__" or name in _LENGTHS):
            return self._symbolic_of(result, _known(node))
        return result

    def _function(self, func: Any, name: str, args: Any, kwargs: Any, given: Any) -> fx.Node:
        if name == "__get__":
            return self._graph.call_function(getattr, (args[0], func.__self__.__name__))
        if name == "__getitem__":
            return self._graph.call_function(operator.getitem, args)
        if name == "__setitem__":
            return self._graph.call_function(_assigned, args)
        if given and isinstance(given[0], Tensor) and getattr(Tensor, name, None) is func:
            return self._graph.call_method(name, args, kwargs)
        return self._graph.call_function(func if func in _KNOWN else _Function(func, name), args, kwargs)

    def _read_inside(self, args: Any, kwargs: Any) -> None:
        """What a layer reads besides its arguments and its own weights has one more reader."""
        for value in tensors((args, kwargs)):
            if id(value) not in self._own and (id(value) in self._nodes or id(value) in self._names):
                self._graph.call_function(_read, (self._node_of(value),))

    # -- values --

    def _name(self, value: Any, node: Callable[[], fx.Node]) -> None:
        """Tensors in a result are from now on known as what a node made."""
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node
            self._kept.append(value)
        elif isinstance(value, tuple | list):
            for i, part in enumerate(value):
                self._name(part, self._part(node, i))
        elif isinstance(value, dict):
            for key, part in value.items():
                self._name(part, self._part(node, key))

    def _part(self, whole: Callable[[], fx.Node], key: Any) -> Callable[[], fx.Node]:
        """The node of a part of a result; there is one only where the part is read."""
        made: list[fx.Node] = []

        def part() -> fx.Node:
            if not made:
                made.append(self._graph.call_function(operator.getitem, (whole(), key)))
                self._note_origin(made[0])
            return made[0]

        return part

    def _node_of(self, value: Tensor) -> fx.Node:
        known = self._nodes.get(id(value))
        if known is None:
            name = self._names.get(id(value))
            # A tensor of no known origin was there before, or came out of code that torch does not show.
            node = self._graph.call_function(_Constant(value)) if name is None else self._graph.get_attr(name)
            self._name(value, known := _known(node))
        return known()

    def _argument(self, value: Any) -> Any:
        """A value as the argument of a node."""
        if isinstance(value, Tensor):
            return self._node_of(value)
        if isinstance(value, Length) and value.recorder is self:
            return value.node()
        if isinstance(value, tuple | list):
            return type(value)(map(self._argument, value)) if type(value) is list else tuple(map(self._argument, value))
        if isinstance(value, dict):
            return {key: self._argument(part) for key, part in value.items()}
        if isinstance(value, slice):
            return slice(*(self._argument(part) for part in (value.start, value.stop, value.step)))
        if isinstance(value, torch.dtype | torch.device):
            kind = self._kinds.get(value)
            return value if kind is None else kind()
        if isinstance(value, _PLAIN):
            return plain(value)
        self._complete = False
        return None

    def _symbolic_of(self, value: Any, node: Callable[[], fx.Node]) -> Any:
        """Lengths that know their node; of a dtype or device is remembered whose it is."""
        if isinstance(value, torch.Size):
            return torch.Size([self._symbolic_of(n, self._part(node, i)) for i, n in enumerate(value)])
        if type(value) is tuple:
            return tuple(self._symbolic_of(n, self._part(node, i)) for i, n in enumerate(value))
        if type(value) is int:
            return Length(value, self, node)
        if isinstance(value, torch.dtype | torch.device):
            self._kinds[value] = node
        return value

    def _note_origin(self, node: fx.Node) -> None:
        if not self._of_input.isdisjoint(node.all_input_nodes):
            self._of_input.add(node)

    def computed(self, function: Any, *operands: int) -> Length:
        """A length that is computed from others."""
        node = self._graph.call_function(function, tuple(self._argument(value) for value in operands))
        self._note_origin(node)
        return Length(function(*map(int, operands)), self, _known(node))


class _Function:
    """A function under a name of this module: fx writes the names of torch's own into code, and not all can be."""

    def __init__(self, function: Any, name: str) -> None:
        self.function = function
        self.__name__ = name or "function"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class _Constant:
    """Gives a tensor."""

    __name__ = "constant"

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self) -> Tensor:
        return self.value


def _assigned(x: Tensor, where: Any, value: Any) -> Tensor:
    x[where] = value
    return x


def _read(value: Any) -> None:
    """Stands for a reader inside of a layer."""


def _known(node: fx.Node) -> Callable[[], fx.Node]:
    return lambda: node


def _is_value(result: Any) -> bool:
    """Whether a result is one that Python can see: no tensor, nor several of them."""
    if isinstance(result, tuple | list) and not isinstance(result, torch.Size):
        return any(map(_is_value, result))
    return result is not None and not isinstance(result, Tensor | torch.Size | torch.dtype | torch.device)


def tensors(value: Any) -> Iterator[Tensor]:
    """Those in a value, or in the lists, tuples and dicts that it is made of."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
