"""One operator of an ONNX graph while it is converted: what it reads, and how its calls are written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.models.onnx_file import OnnxGraph, Operator, refused
from fastadv.models.onnx_network import INPUT, Ref, Step, refs, replaced
from fastadv.models.tensor_content import CheckpointError

Value = Ref | Tensor
"""What depends on the images, or a constant."""

_MOST_ELEMENTS = 2**28  # of one value, for one image
_MOST_COMPUTED = 2**27  # of all constants that are computed from others


class Building:
    """The parts of a network so far.

    Every step is run on tensors without content (the device "meta"), for one number of images and for twice as many:
    the shapes of all values are known, and which axis is that of the images.

    Attributes:
        graph: what is converted.
        values: by the graph's names.
        layers, constants, steps: of the network.
        taps: names of layers with outputs (N, C, H, W) that may be offered as taps.
        traced: what the steps give on "meta", for ``graph.batch or 1`` images and for twice as many.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.values: dict[str, Value] = {**graph.constants, graph.input: Ref(INPUT)}
        self.layers: dict[str, nn.Module] = {}
        self.constants: dict[str, Tensor] = {}
        self.steps: list[Step] = []
        self.taps: list[str] = []
        self._names = {INPUT: 1}  # with the number of the next one of the same stem
        self._computed = 0
        self._most = _MOST_ELEMENTS * (graph.batch or 1)
        counts = (graph.batch or 1, 2 * (graph.batch or 1))
        inputs = tuple(torch.empty((count, graph.channels, *graph.size), device="meta") for count in counts)
        self.traced: dict[str, tuple[Any, ...]] = {INPUT: inputs}

    def step(self, stem: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Ref:
        """Write a call down; a constant among its arguments becomes a buffer, a module a layer.

        Raises:
            ValueError: its result is too large.
        """
        name = self._free(stem)
        noted = replaced(args, lambda value: self._constant(f"{name}_constant", value), Tensor)
        self.traced[name] = tuple(self._trace(target, noted, kwargs or {}, k) for k in (0, 1))
        if isinstance(target, nn.Module):
            self.layers[name] = target
            target = name
        self.steps.append(Step(name=name, target=target, args=noted, kwargs=kwargs or {}))
        return Ref(name)

    def image_axis(self, name: str) -> int | None:
        """The axis of a value that is as long as there are images, or a multiple of it."""
        one, two = (value.shape for value in self.traced[name])
        return next((axis for axis, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), None)

    def _trace(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], k: int) -> Any:
        empty = replaced(args, lambda r: self.constants[r.name].to("meta") if r.constant else self.traced[r.name][k])
        result = _on_meta(target, empty, kwargs)
        for part in result if isinstance(result, tuple) else (result,):
            if part.numel() > (k + 1) * self._most:
                raise ValueError(f"a value of {tuple(part.shape)}, more than {self._most:,} numbers for an image")
        return result

    def _constant(self, stem: str, value: Tensor) -> Ref:
        name = self._free(stem)
        self.constants[name] = value
        return Ref(name, constant=True)

    def compute(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of a call on constants, once its size is known to be small.

        Raises:
            ValueError: it, or all such results together, are too large.
        """
        empty = _on_meta(target, replaced(args, lambda value: value.to("meta"), Tensor), kwargs)
        self.take(sum(part.numel() for part in (empty if isinstance(empty, tuple) else (empty,))))
        with torch.no_grad():
            return target(*args, **kwargs)

    def take(self, count: int) -> None:
        """Count the numbers of a constant that is made; raises ``ValueError`` where there are too many in all."""
        self._computed += count
        if self._computed > _MOST_COMPUTED:
            raise ValueError(f"constants of more than {_MOST_COMPUTED:,} numbers that are computed from others")

    def _free(self, stem: str) -> str:
        name = stem
        while name in self._names:
            self._names[stem] = self._names.get(stem, 1) + 1
            name = f"{stem}_{self._names[stem]}"
        self._names.setdefault(name, 1)
        return name


def _on_meta(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a call gives without content."""
    if isinstance(target, nn.Module):
        weights = {key: value.to("meta") for key, value in target.state_dict().items()}
        return torch.func.functional_call(target, weights, args)
    return target(*args, **kwargs)


class Site:
    """One operator that is converted.

    Args:
        building: the network so far.
        operator: the operator.
    """

    def __init__(self, building: Building, operator: Operator) -> None:
        self._building = building
        self._operator = operator
        self.kind = operator.kind
        self.opset = building.graph.opset

    def refuse(self, expected: str, got: object) -> CheckpointError:
        """The error of an operator that is known, and is not converted in this form."""
        return refused(self._building.graph.file, expected, f"{got} for {self.kind} ({self._operator.place})")

    # -- what it reads --

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default."""
        return self._operator.attributes.get(name, default)

    def has(self, i: int) -> bool:
        """Whether there is an input of this number."""
        return i < len(self._operator.inputs) and bool(self._operator.inputs[i])

    def value(self, i: int = 0) -> Value:
        """An input."""
        name = self._operator.inputs[i] if self.has(i) else ""
        if name not in self._building.values:
            raise self.refuse(f"a value for input {i}", f"{name!r}, which is not converted")
        return self._building.values[name]

    def all_values(self) -> list[Value]:
        """The inputs."""
        return [self.value(i) for i in range(len(self._operator.inputs))]

    def constant(self, i: int, what: str) -> Tensor:
        """An input that may not depend on the images."""
        value = self.value(i)
        if not isinstance(value, Tensor):
            raise self.refuse(f"{what} that are constants", f"{what} that depend on the images")
        return value

    def integers(self, name: str, i: int) -> list[int] | None:
        """Whole numbers that are an attribute, or an input in later versions; None where they are left out."""
        if name in self._operator.attributes:
            return [int(v) for v in self.attribute(name)]
        return [int(v) for v in self.constant(i, name).flatten().tolist()] if self.has(i) else None

    def number(self, name: str, i: int, default: float | None = None) -> float | None:
        """Likewise one number."""
        if name in self._operator.attributes:
            return float(self.attribute(name))
        return float(self.constant(i, name).item()) if self.has(i) else default

    def empty(self, i: int = 0) -> Tensor:
        """An input without its content, for one image."""
        value = self.value(i)
        made: Tensor = value if isinstance(value, Tensor) else self._building.traced[value.name][0]
        return made

    def image_axis(self, i: int = 0) -> int | None:
        """The axis of an input along which the images lie; None for one that does not depend on their number."""
        value = self.value(i)
        return self._building.image_axis(value.name) if isinstance(value, Ref) else None

    def shape(self, i: int = 0) -> tuple[int, ...]:
        """The shape of an input, for one image."""
        return tuple(self.empty(i).shape)

    def rank(self, i: int = 0) -> int:
        """Its number of axes."""
        return self.empty(i).dim()

    def outputs(self) -> int:
        """How many outputs there are."""
        return len(self._operator.outputs)

    # -- what becomes of it --

    def take(self, count: int) -> None:
        """As of ``Building``."""
        self._building.take(count)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of a function: at once where it depends on constants alone."""
        if not any(refs(args)):
            return self._building.compute(function, args, kwargs)
        return self._building.step(self._operator.name, function, args, kwargs)

    def layer(self, module: nn.Module, *args: Value, tap: bool = False) -> Value:
        """The output of a module, which becomes a layer under the operator's name.

        Args:
            module: with its weights.
            args: its inputs; the operator's first one where none are given.
            tap: whether the output, if it is (N, C, H, W), may be offered as a tap.
        """
        args = args or (self.value(),)
        if not any(refs(args)):
            return self.call(module.eval(), *args)
        made = self._building.step(self._operator.name, module.eval(), args)
        if tap and self._building.traced[made.name][0].dim() == 4 and self._building.image_axis(made.name) == 0:
            self._building.taps.append(made.name)
        return made
