"""The network that an ONNX graph is converted to: layers of torch, and functions between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

INPUT = "images"


@dataclass(frozen=True)
class Ref:
    """A value of the forward pass, or a constant (a buffer of the network), by its name."""

    name: str
    constant: bool = False

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call: ``name = target(*args, **kwargs)``.

    Attributes:
        name: of the result.
        target: the name of a submodule, or a function.
        args: positional arguments; a `Ref` in them, or in their tuples and lists, stands for a value.
        kwargs: further arguments, plain values.
    """

    name: str
    target: str | Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        target = self.target if isinstance(self.target, str) else self.target.__name__
        given = ", ".join((*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())))
        return f"{self.name} = {target}({given})"


class OnnxNetwork(nn.Module):
    """Runs the steps of a converted graph in their order; a value is dropped after its last use.

    Args:
        layers: the submodules, by name.
        constants: the buffers, by name.
        steps: the calls.
        output: the name of the result.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], constants: Mapping[str, Tensor], steps: Sequence[Step], output: str
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        for name, constant in constants.items():
            self.register_buffer(name, constant)
        self._steps = tuple(steps)
        self._output = output
        last = {ref.name: i for i, step in enumerate(steps) for ref in refs(step.args) if not ref.constant}
        self._ends: list[list[str]] = [[] for _ in steps]
        for name, i in last.items():
            self._ends[i] += [name] * (name != output)

    def forward(self, images: Tensor) -> Tensor:
        """The output of the graph."""
        values: dict[str, Any] = {INPUT: images}
        for step, ends in zip(self._steps, self._ends, strict=True):
            target = self._modules[step.target] if isinstance(step.target, str) else step.target
            assert target is not None
            args = replaced(step.args, lambda ref: self._buffers[ref.name] if ref.constant else values[ref.name])
            values[step.name] = target(*args, **step.kwargs)
            for name in ends:
                del values[name]
        output: Tensor = values[self._output]
        return output

    def extra_repr(self) -> str:
        """The steps, so that two networks of the same layers print differently where their data flow differs."""
        return "\n".join((*map(str, self._steps), f"return {self._output}"))


class Sum(nn.Module):
    """The sum of two values: the end of a residual block."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """``first + second``."""
        return first + second


def refs(value: Any) -> Iterator[Ref]:
    """The references in the arguments of a call."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from refs(part)


def replaced(value: Any, by: Callable[[Any], Any], kind: type = Ref) -> Any:
    """Arguments with every reference, or every value of another ``kind``, replaced."""
    if isinstance(value, kind):
        return by(value)
    if isinstance(value, tuple | list):
        return type(value)(replaced(part, by, kind) for part in value)
    return value
