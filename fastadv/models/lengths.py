"""Lengths of axes that know, while a network is recorded, from which node of the graph they are."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx


class Recorder(Protocol):
    """What records: :mod:`fastadv.models.dataflow`."""

    open: bool

    def computed(self, function: Any, *operands: int) -> Length:
        """A length that is computed from others."""


def _both(function: Any) -> tuple[Any, Any]:
    """The two methods of an operator, with the length on the left and on the right."""

    def left(self: Length, other: Any) -> Any:
        return self._with(function, self, other)

    def right(self: Length, other: Any) -> Any:
        return self._with(function, other, self)

    return left, right


class Length(int):
    """The length of an axis, or what is computed from such: an integer that knows its node while the pass runs."""

    recorder: Recorder
    node: Callable[[], fx.Node]

    def __new__(cls, value: int, recorder: Recorder, node: Callable[[], fx.Node]) -> Length:
        made = super().__new__(cls, value)
        made.recorder, made.node = recorder, node
        return made

    def _with(self, function: Any, *operands: Any) -> Any:
        if not all(isinstance(value, int) for value in operands):
            return NotImplemented
        return self.recorder.computed(function, *operands) if self.recorder.open else function(*map(int, operands))

    __add__, __radd__ = _both(operator.add)
    __sub__, __rsub__ = _both(operator.sub)
    __mul__, __rmul__ = _both(operator.mul)
    __floordiv__, __rfloordiv__ = _both(operator.floordiv)
    __mod__ = _both(operator.mod)[0]

    def __neg__(self) -> Any:
        return self._with(operator.neg, self)

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


def plain(value: Any) -> Any:
    """The same with bare integers."""
    if isinstance(value, Length):
        return int(value)
    if type(value) in (tuple, list, torch.Size):
        return type(value)(map(plain, value))
    if type(value) is dict:
        return {key: plain(part) for key, part in value.items()}
    return value
