"""The objects of a pickle, read without running it: classes and functions stay names, what objects hold is kept.

Nothing is imported or called. A pickle that would call a function of Python's own library that is not known to be
harmless (``os.system``, ``builtins.eval``) is refused: files of weights do not need it.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastadv.core.pickle_values import Array, Dtype, PickleRefusedError, Span
from fastadv.core.symbolic_pickle import STEPS, Machine, Name, Step, known_name, table, text_of

_DICTS = ("collections.OrderedDict", "collections.Counter", "collections.defaultdict", "builtins.dict")
_LISTS = ("builtins.set", "builtins.frozenset", "builtins.list", "__builtin__.set", "__builtin__.frozenset")
_PYTHON_2 = ("__builtin__", "commands")  # modules of Python's library that Python 3 does not have
_HARMLESS = re.compile(
    r"(?:builtins|__builtin__)\.(?:object|list|dict|tuple|int|long|float|bool|complex|str|unicode|x?range|slice|getattr"
    r"|type)"
    r"|_?(?:collections|datetime|pathlib|decimal|fractions|uuid|enum|argparse|types|copyreg|copy_reg|codecs|functools"
    r"|operator|random|array|logging|re|string|math|typing|abc|weakref|itertools|dataclasses|zoneinfo)\..*"
)


@dataclass(kw_only=True, eq=False)
class Made:
    """An object that a pickle would make.

    Attributes:
        name: its class, or the function that would make it, as ``module.name``.
        arguments: what that would be given.
        state: what it would take as its attributes, or None.
        items: what would be put into it by key.
        listed: what would be appended to it.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    listed: list[Any] = field(default_factory=list)

    def attributes(self) -> dict[Any, Any]:
        """Its attributes by name, also of classes with slots."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


class Objects(Machine):
    """The reader of pickles of any objects."""

    steps: ClassVar[tuple[Step | None, ...]]
    purpose = "weights"

    def name(self, module: str, what: str) -> Any:
        """The name of a global, known or not."""
        return known_name(module, what) or Name(f"{module}.{what}")

    def call(self, function: Any, arguments: Any) -> Any:
        """What a call would give: a value where that is known, an inert object else."""
        given = arguments if isinstance(arguments, tuple) else ()
        name = function.text if isinstance(function, Name) else "a value of its own"
        if name in _DICTS:
            return _dict_of(given)
        if name in _LISTS:
            return next((part for part in given if isinstance(part, list)), [])
        _refuse_code(name)
        try:
            return super().call(function, arguments)
        except PickleRefusedError:
            return Made(name=name, arguments=given)

    def set_state(self, top: Any, state: Any) -> None:
        """Keep the state of an object."""
        if isinstance(top, Made):
            top.state = state
        elif isinstance(top, Dtype) or (
            isinstance(top, Array) and isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], Dtype)
        ):
            super().set_state(top, state)

    def external(self, persistent: Any) -> Any:
        """What stands for a value that lies outside of the pickle."""
        return Made(name="a value outside of the pickle", arguments=(persistent,))

    def real(self) -> None:
        self.stack.append(struct.unpack(">d", self.reader.take(8))[0])

    def real_line(self) -> None:
        line = self.reader.line()
        try:
            self.stack.append(float(line))
        except ValueError:
            raise PickleRefusedError(f"{line[:20]!r} is no number") from None

    def dict_above(self) -> None:
        self.stack.append(put({}, self._above_mark()))

    def set_item(self) -> None:
        self._put(self._pop(2))

    def set_items(self) -> None:
        self._put(self._above_mark())

    def new(self) -> None:
        self.stack.append(self.call(*self._pop(2)))

    def new_with_keywords(self) -> None:
        function, arguments, _ = self._pop(3)
        self.stack.append(self.call(function, arguments))

    def instance_above(self) -> None:
        items = self._above_mark()
        if not items:
            raise PickleRefusedError("it makes an object of no class")
        self.stack.append(self.call(items[0], tuple(items[1:])))

    def named_instance(self) -> None:
        arguments = tuple(self._above_mark())
        self.named()
        self.stack.append(self.call(self._pop(1)[0], arguments))

    def persistent(self) -> None:
        self.stack.append(self.external(self._pop(1)[0]))

    def twice(self) -> None:
        self.stack.append(self._top())

    def _put(self, items: list[Any]) -> None:
        top = self._top()
        put(top.items if isinstance(top, Made) else top if isinstance(top, dict) else {}, items)

    def _list_on_top(self) -> list[Any]:
        top = self._top()
        return top.listed if isinstance(top, Made) else super()._list_on_top()


Objects.steps = table(
    {
        **STEPS,
        b"G": Objects.real,
        b"F": Objects.real_line,
        b"}": lambda m: m.stack.append({}),
        b"d": Objects.dict_above,
        b"s": Objects.set_item,
        b"u": Objects.set_items,
        b"\x8f": lambda m: m.stack.append([]),
        b"\x90": Objects.appends,
        b"\x91": Objects.list_above,
        b"\x81": Objects.new,
        b"\x92": Objects.new_with_keywords,
        b"o": Objects.instance_above,
        b"i": Objects.named_instance,
        b"P": lambda m: m.stack.append(m.external(m.reader.line())),
        b"Q": Objects.persistent,
        b"2": Objects.twice,
    }
)


def put(found: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """Add keys and values that follow one another; keys other than texts and numbers are left out."""
    for key, value in zip(items[::2], items[1::2], strict=False):
        if isinstance(key, Span) and key.short is not None:
            found[text_of(key)] = value
        elif isinstance(key, (int, float)):
            found[key] = value
    return found


def _dict_of(given: Iterable[Any]) -> dict[Any, Any]:
    """The dict that its arguments make: other dicts, or lists of a key and a value each."""
    found: dict[Any, Any] = {}
    for part in given:
        if isinstance(part, dict):
            found.update(part)
        elif isinstance(part, (list, tuple)):
            for pair in part:
                if isinstance(pair, (list, tuple)) and len(pair) == 2:
                    put(found, list(pair))
    return found


def _refuse_code(name: str) -> None:
    """Refuse a call of a function of Python's own library that files of weights do not need."""
    module = name.partition(".")[0]
    if (module in sys.stdlib_module_names or module in _PYTHON_2) and _HARMLESS.fullmatch(name) is None:
        raise PickleRefusedError(f"it calls {name[:80]}, which could run code; nothing was run")
